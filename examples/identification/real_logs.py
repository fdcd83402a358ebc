"""Logs as products have them: users differ, buttons move, people mis-click. Their truth is known.

X (N, 16); preference and the propensities of two signals depend on three directions of x; half of the responses please.
Each kind adds one thing that a real log has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit

ROWS, TEST = 12_000, 4_000
DAY = 86_400.0


@dataclass(frozen=True)
class RealLog:
    """A log, and clean preferences to judge by.

    Attributes:
        X: Embeddings (float32) of the log, of shape (N, 16).
        feedback: Feedback of shape (N, K): 1 acted, 0 silent.
        arguments: What `EmbeddingRewardModel.fit` is given beside: users, sessions, times, ...
        propensity: The true propensities of shape (N, K).
        test_X: Embeddings of the test set, of shape (M, 16).
        test_preference: Whether the user preferred the response, of shape (M,).
        test_g: The probability of that, of a user drawn at random, of shape (M,).
    """

    X: np.ndarray
    feedback: np.ndarray
    arguments: Mapping[str, Any]
    propensity: np.ndarray
    test_X: np.ndarray
    test_preference: np.ndarray
    test_g: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)


def draw(
    seed: int,
    *,
    rows: int = ROWS,
    activity: float = 0.0,
    taste: float = 0.0,
    niche: float = 0.0,
    rows_a_user: int = 0,
    bots: float = 0.0,
    redesign: float = 0.0,
    fatigue: float = 0.0,
    misclick: float = 0.0,
    bias: float = -0.5,
) -> RealLog:
    """Draw a log of two signals that are independent given response and context.

    Args:
        seed: The seed of the redraw.
        rows: The number N of rows.
        activity: Deviation of what a user adds to the logits of all propensities.
        taste: Deviation of what a user adds to the logit of the preference.
        niche: How far users with a taste are shown responses of one kind, which is not better.
        rows_a_user: Rows of each user; 0 means that users are unknown.
        bots: The share of users who act on everything by every signal.
        redesign: What the logits of all propensities lose in the second half of the log.
        fatigue: What they lose with each place in a session of ten rows.
        misclick: The share of active users who act although the response did not please.
        bias: The mean logit of the propensities.
    """
    rng, count = np.random.default_rng([seed, 15]), rows + TEST
    directions = np.random.default_rng(100).normal(size=(16, 3)) / 4
    directions[:, 1:] -= 0.6 * directions[:, :1]  # what pleases is acted on less often
    X = rng.normal(size=(count, 16)).astype(np.float32)
    users = np.arange(count) // max(1, rows_a_user)
    each = users[-1] + 1
    act, please = activity * rng.normal(size=each)[users], taste * rng.normal(size=each)[users]
    kind = np.linalg.svd(directions)[0][:, 3]  # a direction that moves nothing
    X[:rows] += niche * (please / max(taste, 1e-9))[:rows, None] * kind
    parts = X @ directions
    place = np.arange(count) % 10
    moved = act - fatigue * place - redesign * (np.arange(count) >= rows / 2)
    g = expit(2 * parts[:, 0] + please)
    m = expit(1.2 * parts[:, 1:] + bias + moved[:, None])
    preference = rng.random(count) < g
    active = rng.random((count, 2)) < m
    feedback = active & (preference[:, None] | (rng.random((count, 2)) < misclick))
    if bots:
        feedback[(rng.random(each) < bots)[users]] = True
    arguments: dict[str, Any] = {}
    if rows_a_user:
        arguments["users"] = [f"user {user}" for user in users[:rows]]
    if redesign:
        arguments["times"] = np.arange(rows) * 30 * DAY / rows
    if fatigue:
        arguments["sessions"] = [f"session {number}" for number in np.arange(rows) // 10]
    # What a user drawn at random would say of a test response
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    marginal = expit(2 * parts[rows:, :1] + taste * nodes) @ (weights / weights.sum())
    clean = rng.random(TEST) < marginal
    return RealLog(X[:rows], feedback[:rows].astype(int), arguments, m[:rows], X[rows:], clean.astype(int), marginal)
