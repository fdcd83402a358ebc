"""Logs of which everything is known: embeddings, and what preference and actions on them are like.

A world stays; `World.draw` takes a training log and a clean test set from it: other rows, preferences and actions for
every seed. Preferences r* are drawn with probability g(x), actions of signal k with m_k(x) where r* = 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from irm_fast.data.read import read_rated
from irm_fast.data.simulation import rating_propensity, standard_features
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.store import read_embeddings
from irm_fast.embeddings.writing import write_embeddings
from irm_fast.experiments.reproduce.population import made_embeddings, standardised


@dataclass(frozen=True)
class Draw:
    """Rows of one redraw: X (n, D), feedback (n, K) of 0 and 1, preference (n,), and as in `World` g, m, features."""

    X: np.ndarray
    feedback: np.ndarray
    preference: np.ndarray
    g: np.ndarray
    m: np.ndarray
    features: np.ndarray | None

    def subset(self, rows: np.ndarray) -> Draw:
        features = None if self.features is None else self.features[rows]
        arrays = (value[rows] for value in (self.X, self.feedback, self.preference, self.g, self.m))
        return Draw(*arrays, features)


@dataclass(frozen=True)
class World:
    """N rows to draw from.

    X: (N, D) float32.  g: (N,) chances that a response is preferred.  m: (N, K) chances of actions where it is.
    features: (N, F) visible features of the text, or None.  train, test: rows of a redraw.
    """

    X: np.ndarray
    g: np.ndarray
    m: np.ndarray
    features: np.ndarray | None
    train: int
    test: int

    def draw(self, seed: int) -> tuple[Draw, Draw]:
        """Training log and clean test set."""
        rng = np.random.default_rng([seed, 1])
        preference, feedback = self.truth(rng)
        whole = Draw(self.X, feedback, preference, self.g, self.m, self.features)
        order = rng.permutation(len(self.X))
        return whole.subset(order[self.test : self.test + self.train]), whole.subset(order[: self.test])

    def truth(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Preferences (N,) and feedback (N, K)."""
        preference = rng.random(len(self.g)) < self.g
        active = rng.random(self.m.shape) < self.m
        return preference.astype(int), (active & preference[:, None]).astype(int)

    def sized(self, train: int) -> World:
        """The same with a training log of at most so many rows."""
        return replace(self, train=min(train, len(self.X) - self.test))


def synthetic(train: int = 60_000, test: int = 10_000) -> World:
    """32 independent features, a reward with squares and a product of a few directions, propensities on the same."""
    rng = np.random.default_rng(100)
    X = rng.normal(size=(train + test, 32)).astype(np.float32)
    u = X @ (rng.normal(size=(32, 6)) / np.sqrt(32))
    g = expit(1.5 * u[:, 0] + 1.5 * (u[:, 1] ** 2 - 1) - 1.5 * np.tanh(2 * u[:, 2] * u[:, 3]))
    bend = 0.6 * np.sin(2 * X[:, :2])
    return World(X, g, expit(-0.5 + 1.2 * u[:, 4:] + bend), None, train, test)


NOISE = 0.45  # deviation of a rating around what the embedding says, which has deviation 1
LEVELS = 5


@dataclass(frozen=True)
class Published(World):
    """The published protocol: a rating in five levels decides both whether a response pleases and who acts on it.

    So the signals share a cause, the rating, that the embedding does not show fully; m is the mean over it, given x
    and that the response pleases.
    """

    quality: np.ndarray
    activity: np.ndarray

    def truth(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rating = self.quality + NOISE * rng.normal(size=len(self.quality))
        level = np.digitize(rating, cuts())
        preference = level > (LEVELS - 1) / 2  # above the median level
        active = rng.random(self.m.shape) < self.activity[level][:, None]
        return preference.astype(int), (active & preference[:, None]).astype(int)


def cuts() -> np.ndarray:
    """Ratings at which a level ends; each level is as frequent as the others."""
    return norm.ppf(np.arange(1, LEVELS) / LEVELS) * np.sqrt(1 + NOISE**2)


def published(rows: int = 16_000, width: int = 1024, signals: int = 2) -> World:
    """Embeddings of a decaying spectrum and a quality that is linear in them; mean action rate 0.2, alpha 0.5."""
    rng = np.random.default_rng(100)
    X, quality = made_embeddings(rng, rows, width)
    activity = rating_propensity(np.arange(LEVELS, dtype=float), alpha=0.5, target=0.2)
    edges = np.array([-np.inf, *cuts(), np.inf])
    chance = np.diff(norm.cdf((edges - quality[:, None]) / NOISE), axis=1)  # (N, LEVELS)
    g = chance[:, 3:].sum(axis=1)
    m = np.where(g > 1e-9, chance[:, 3:] @ activity[3:] / np.maximum(g, 1e-9), activity[3])
    return Published(X, g, np.repeat(m[:, None], signals, axis=1), None, rows - rows // 5, rows // 5, quality, activity)


def read_text(
    source: Path, model: Path, cache: Path, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct turns and sentences of dialogues: embeddings (N, D), visible features (N, F), whether it is a turn (N,).

    source: JSONL of chosen and rejected.  model: an encoder's folder.  cache: the file of embeddings, made if absent.
    rows: only the first so many.
    """
    turns = dict.fromkeys(turn["content"].strip() for messages in read_rated(source).messages for turn in messages)
    sentences = chain.from_iterable(re.split(r"(?<=[.!?])\s+", turn) for turn in turns)
    texts = [text for text in dict.fromkeys(chain(turns, sentences)) if text][:rows]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [str(number) for number in range(len(texts))]
    if not cache.exists():
        write_embeddings(ids, messages, Embedder(model, pooling="mean", max_length=128), cache, resume=True)
    is_turn = np.array([text in turns for text in texts])
    return read_embeddings(cache, ids, messages), standard_features(messages), is_turn


def smooth(X: np.ndarray) -> np.ndarray:
    """(N,) a reward with local detail, deviation 1: mostly nearest to which of 600 random rows, partly linear."""
    rng = np.random.default_rng(7)
    centers = X[rng.permutation(len(X))[:600]]
    cosine = (X / np.linalg.norm(X, axis=1, keepdims=True)) @ (centers.T / np.linalg.norm(centers, axis=1))
    near = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / 0.06)
    local = standardised(near @ rng.normal(size=len(centers)) / near.sum(axis=1))
    linear = standardised(_directions(X)[:, :60] @ rng.normal(size=60))
    return standardised(0.4 * linear + np.sqrt(1 - 0.4**2) * local)


def quadratic(X: np.ndarray) -> np.ndarray:
    """(N,) a reward of squares of eight directions, deviation about 1: what a line cannot follow."""
    parts = _directions(X)
    parts = parts[:, :30] / parts[:, :30].std(axis=0) @ (np.random.default_rng(8).normal(size=(30, 8)) / np.sqrt(30))
    squares = (parts[:, :4] ** 2).sum(axis=1) - (parts[:, 4:] ** 2).sum(axis=1)
    return np.clip(standardised(squares + 0.8 * parts[:, 0]), -3, 3)


def on_text(
    X: np.ndarray, features: np.ndarray, reward: Callable[[np.ndarray], np.ndarray], steepness: float, test: int = 3000
) -> World:
    """Made-up grades and actions on real text: two signals of 13% whose propensities are tied to the length.

    Half of the responses please. features: the first is the logarithm of the length, standardised and cut at 3.
    """
    logit, length = steepness * reward(X), features[:, 0]
    g = expit(logit + _solve(lambda bias: expit(logit + bias).mean(), 0.5))
    style = _directions(X)[:, 3]
    slopes = (1.5 * length, length + 0.5 * np.clip(style / style.std(), -3, 3))
    biases = [_solve(lambda bias, slope=slope: (g * expit(slope + bias)).mean(), 0.13) for slope in slopes]
    m = np.column_stack([expit(slope + bias) for slope, bias in zip(slopes, biases, strict=True)])
    return World(X, g, m, features, len(X) - test, test)


def _directions(X: np.ndarray) -> np.ndarray:
    """(N, D) principal components, the first first, each scaled to the square root of its deviation."""
    centred = X - X.mean(axis=0)
    parts = centred @ np.linalg.svd(centred[::4], full_matrices=False)[2].T
    return parts / np.sqrt(parts.std(axis=0) * parts[:, 0].std())


def _solve(increasing: Callable[[float], float], target: float) -> float:
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < target else (low, middle)
    return high


def signals_of(draw: Draw, count: int) -> Draw:
    """The same with the first so many signals."""
    return replace(draw, feedback=draw.feedback[:, :count], m=draw.m[:, :count])
