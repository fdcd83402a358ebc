"""Logs of embeddings whose preferences and propensities are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irm_fast.embeddings.estimator import EmbeddingRewardModel


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@dataclass(frozen=True)
class Case:
    """x: (N, D) float32.  feedback: (N, K) int8.  preferred: (N,) of 0 and 1.  g: (N,), m: (N, K) the probabilities."""

    x: np.ndarray
    feedback: np.ndarray
    preferred: np.ndarray
    g: np.ndarray
    m: np.ndarray


def make(
    n: int = 8000,
    d: int = 8,
    *,
    seed: int = 0,
    polarity: Sequence[int] = (1, 1),
    slopes: Sequence[float] = (1, 1),
    bias: float = -0.5,
    misclick_rate: float = 0.0,
    curved: bool = False,
    activity: np.ndarray | float = 0.0,
    features: np.ndarray | None = None,
) -> Case:
    """Signals that are independent given x, save for an `activity` (N,) added to the logit of all propensities.

    slopes: deviation of each propensity logit between responses.  curved: a reward that no line in x ranks.
    features: (N, F), propensities then depend on these instead of x.
    """
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d)).astype(np.float32)
    direction = random.normal(size=(1 + len(polarity), d))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    s = 4 * (np.abs(x @ direction[0]) - 0.8) if curved else 1.5 * x @ direction[0]
    moved = x @ direction[1:].T if features is None else features @ random.normal(size=(features.shape[1], len(slopes)))
    m = sigmoid(bias + moved * np.array(slopes) + np.reshape(activity, (-1, 1)))
    g = sigmoid(s)
    preferred = random.random(n) < g
    own = preferred[:, None] == (np.array(polarity) > 0)
    acted = (random.random(m.shape) < m) & (own | (random.random(m.shape) < misclick_rate))
    return Case(x, acted.astype(np.int8), preferred.astype(int), g, m)


def model(**settings: Any) -> EmbeddingRewardModel:
    """Linear and repeatable unless the settings say otherwise."""
    return EmbeddingRewardModel(**{"hidden_layers": (), "random_state": 0, "device": "cpu", **settings})


SMALL_NETWORK = {"hidden_layers": (8,), "n_folds": 2, "max_epochs": 4, "learning_rate": 0.01, "batch_size": 64}
