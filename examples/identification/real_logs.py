"""Logs as products have them: users differ, buttons move, people mis-click. Their truth is known.

X (N, 16); preference and propensities depend on directions of x; half of the responses please. Each kind adds one thing
that a real log has. `draw` is of two signals, `draw_one_signal` of one, `draw_funnel` of three of which one follows
another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
        propensity: The true propensities of shape (N, K), NaN in the rows of bots.
        test_X: Embeddings of the test set, of shape (M, 16).
        test_preference: Whether the user preferred the response, of shape (M,).
        test_g: The probability of that, of a user drawn at random, of shape (M,).
        settings: What has to be declared to `EmbeddingRewardModel`.
        platform: The platform of each row, where it matters.
    """

    X: np.ndarray
    feedback: np.ndarray
    arguments: Mapping[str, Any]
    propensity: np.ndarray
    test_X: np.ndarray
    test_preference: np.ndarray
    test_g: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)
    platform: list[str] | None = None

    def without(self, rows: np.ndarray) -> RealLog:
        """The same log without some rows: a mask of shape (N,)."""
        kept = np.flatnonzero(~rows)
        arguments = {name: [values[row] for row in kept] for name, values in self.arguments.items()}
        log = {name: getattr(self, name)[kept] for name in ("X", "feedback", "propensity")}
        return replace(self, arguments=arguments, **log)


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
    declared: float | None = None,
    bias: float = -0.5,
    lost: float = 0.0,
    broken: bool = False,
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
        declared: The misclick rate that is declared; None for the true one.
        bias: The mean logit of the propensities.
        lost: The share of the silent rows of the second half that were never logged.
        broken: Whether the second signal never acts on one of two platforms, as if its button were broken there.
    """
    # Responses and users
    rng, count, directions = np.random.default_rng([seed, 15]), rows + TEST, _directions(3)
    X = rng.normal(size=(count, 16)).astype(np.float32)
    users = np.arange(count) // max(1, rows_a_user)
    each = users[-1] + 1
    act, please = activity * rng.normal(size=each)[users], taste * rng.normal(size=each)[users]
    kind = np.linalg.svd(directions)[0][:, 3]  # a direction that moves nothing
    X[:rows] += niche * (please / max(taste, 1e-9))[:rows, None] * kind
    parts = X @ directions

    # Preferences and actions
    place = np.arange(count) % 10
    moved = act - fatigue * place - redesign * (np.arange(count) >= rows / 2)
    m = expit(1.2 * parts[:, 1:] + bias + moved[:, None])
    preference = rng.random(count) < expit(2 * parts[:, 0] + please)
    active = rng.random((count, 2)) < m
    feedback = active & (preference[:, None] | (rng.random((count, 2)) < misclick))
    if bots:
        bot = (rng.random(each) < bots)[users]
        feedback[bot], m[bot] = True, np.nan
    platform = None
    if broken:
        phone = rng.random(count) < 0.4
        feedback[phone, 1] = False
        platform = np.where(phone, "phone", "web")[:rows].tolist()

    # What is on record, and the truth about the test responses
    arguments: dict[str, Any] = {}
    if rows_a_user:
        arguments["users"] = [f"user {user}" for user in users[:rows]]
    if redesign or lost:
        arguments["times"] = np.arange(rows) * 30 * DAY / rows
    if fatigue:
        arguments["sessions"] = [f"session {number}" for number in np.arange(rows) // 10]
    rate = misclick if declared is None else declared
    settings = {"misclick_rate": rate} if rate else {}
    g = _of_any_user(2 * parts[rows:, 0], taste)
    clean = (rng.random(TEST) < g).astype(int)
    acted = feedback[:rows].astype(int)
    log = RealLog(X[:rows], acted, arguments, m[:rows], X[rows:], clean, g, settings, platform)
    if lost:
        silent, late = ~feedback[:rows].any(axis=1), np.arange(rows) >= rows / 2
        log = log.without(silent & late & (rng.random(rows) < lost))
    return log


def _directions(count: int) -> np.ndarray:
    """Return directions (16, count) of the preference and of the propensities: what pleases is acted on less often."""
    directions: np.ndarray = np.random.default_rng(100).normal(size=(16, count)) / 4
    directions[:, 1:] -= 0.6 * directions[:, :1]
    return directions


def _of_any_user(logit: np.ndarray, taste: float) -> np.ndarray:
    """Return the probability that a user drawn at random is pleased: the mean over tastes, by Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    g: np.ndarray = expit(logit[:, None] + taste * nodes) @ (weights / weights.sum())
    return g


def draw_one_signal(seed: int, *, kind: str, labels: int = 0, rows: int = ROWS) -> RealLog:
    """Draw a log of one signal, two features that were on record, and labels of rows drawn at random.

    Args:
        seed: The seed of the redraw.
        kind: "features", which drive the actions; "preference", they move the preference, and the propensity is
            constant; "noisy", they move nothing, and four in ten of the labels of silent rows are wrong.
        labels: The number of labels.
        rows: The number N of rows.
    """
    rng, count = np.random.default_rng([seed, 77]), rows + TEST
    directions = np.random.default_rng(200).normal(size=(16, 4)) / 4
    X = rng.normal(size=(count, 16)).astype(np.float32)
    parts = X @ directions
    visible = parts[:, 1:3] + 0.3 * rng.normal(size=(count, 2))
    g = expit(2 * parts[:, 0] + 1.5 * (kind == "preference") * visible[:, 0])
    m = expit(-0.5 + (kind == "features") * (visible @ [1.5, -1.0]))
    preference = rng.random(count) < g
    acted = preference & (rng.random(count) < m)
    noise = (kind == "noisy") & ~acted & (rng.random(count) < 0.4)
    label = np.full(rows, -1)
    chosen = np.random.default_rng(seed).permutation(rows)[:labels]
    label[chosen] = (preference ^ noise)[chosen]
    arguments = {"propensity_features": visible[:rows]} | ({"preference": label} if labels else {})
    log, test = slice(rows), slice(rows, None)
    shown = acted[log, None].astype(int), arguments, m[log, None]
    return RealLog(X[log], *shown, X[test], preference[test].astype(int), g[test])


def draw_funnel(seed: int, *, rows: int = ROWS) -> RealLog:
    """Draw a log of copy, share and click, in which a share is possible after a copy alone."""
    rng, count = np.random.default_rng([seed, 5]), rows + TEST
    X = rng.normal(size=(count, 16)).astype(np.float32)
    parts = X @ _directions(4)
    g, m = expit(2 * parts[:, 0]), expit(1.2 * parts[:, 1:] - 0.5)
    preference = rng.random(count) < g
    active = rng.random((count, 3)) < m
    active[:, 1] &= active[:, 0]
    feedback = (active & preference[:, None]).astype(int)
    log, test = slice(rows), slice(rows, None)
    clean = preference[test].astype(int)
    return RealLog(X[log], feedback[log], {}, m[log], X[test], clean, g[test], {"after": {1: 0}})
