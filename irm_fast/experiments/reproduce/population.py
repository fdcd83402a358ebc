"""Rated responses as vectors, and the logs that are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from irm_fast.data.log import hold_out
from irm_fast.data.rated import Rated
from irm_fast.data.simulation import draw_feedback, propensities, response_groups, standard_features

SIGNALS, TEST_FRACTION, LEVELS = 2, 0.2, 5
PROTOCOLS = ("rating", "feature")


@dataclass(frozen=True)
class Log:
    """What methods see: n rows, and nothing of what users really preferred.

    X: (n, D) float32 embeddings.  features: (n, F) float32, visible ones of the text.  feedback: (n, K) int8.
    group: (n,) numbers; rows of one group are held out together.
    """

    X: np.ndarray
    features: np.ndarray
    feedback: np.ndarray
    group: np.ndarray

    def signals(self, count: int) -> Log:
        """The same with the first so many signals."""
        return replace(self, feedback=self.feedback[:, :count])


@dataclass(frozen=True)
class Truth:
    """What only the bounds read.  preference: (n,) of 0 and 1.

    propensity: (n, K) float64, how often preferred rows act: by the visible features; under "rating" their mean over
    the preferred, since a row's own would give its rating away. It is no bound there: preferred rows of a higher rating
    act more often.
    """

    preference: np.ndarray
    propensity: np.ndarray


@dataclass(frozen=True)
class Redraw:
    """A log, its truth, and the clean test set: X (m, D) and preferences (m,) of other rows."""

    log: Log
    truth: Truth
    test_X: np.ndarray
    test_preference: np.ndarray


@dataclass(frozen=True)
class Population:
    """N rated rows.

    X: (N, D) float32.  features: (N, F) float32, standardised.  rating: (N,).  preference: (N,) of 0 and 1.
    group: (N,) numbers; rows of one group, a prompt or a pair, are not parted.
    """

    X: np.ndarray
    features: np.ndarray
    rating: np.ndarray
    preference: np.ndarray
    group: np.ndarray

    def redraw(self, protocol: str, seed: int, *, alpha: float = 0.5, target: float = 0.2) -> Redraw:
        """Another split into log and test set, and other actions on the log. Protocols as in `irm_fast.simulate`."""
        held = hold_out(self.group, TEST_FRACTION, seed)
        rows, test = np.flatnonzero(~held), np.flatnonzero(held)
        seen = self.features[rows] if protocol == "feature" else None
        propensity = propensities(self.rating[rows], seen, SIGNALS, alpha, target)
        preference = self.preference[rows]
        known = propensity
        if protocol == "rating":
            known = np.tile(propensity[preference == 1].mean(axis=0), (len(rows), 1))
        feedback = draw_feedback(preference, propensity, seed)
        log = Log(self.X[rows], self.features[rows], feedback, self.group[rows])
        return Redraw(log, Truth(preference, known), self.X[test], self.preference[test])


def semi_synthetic(rows: int = 16_000, width: int = 1024, noise: float = 0.45) -> Population:
    """Made embeddings of a decaying spectrum, a quality that is linear in them, and ratings in five equal levels.

    A rating is the quality, of deviation 1, and noise: much of it makes the preference less steep. Of the five visible
    features, all linear in the embedding, the first is correlated with the quality by 0.4, as length often is.
    """
    rng = np.random.default_rng(26)  # another world than that of examples/identification, on which defaults were found
    X = (rng.normal(size=(rows, width)) * np.exp(-np.arange(width) / 80)).astype(np.float32)
    quality, *others = (_standard(X @ rng.normal(size=width)) for _ in range(6))
    others[0] = _standard(0.4 * quality + np.sqrt(1 - 0.4**2) * others[0])
    noisy = quality + noise * rng.normal(size=rows)
    rating = np.argsort(np.argsort(noisy)) * LEVELS // rows
    features = np.clip(np.column_stack(others), -3, 3).astype(np.float32)
    preference = (rating > (LEVELS - 1) / 2).astype(np.int8)
    return Population(X, features, rating.astype(float), preference, np.arange(rows))


def of_rated(rated: Rated, X: np.ndarray) -> Population:
    """The population of rated responses whose embeddings (N, D) are X."""
    return Population(X, standard_features(rated.messages), rated.rating, rated.preference, response_groups(rated))


def embedded(rated: Rated, model: str, path: Path, *, max_length: int) -> np.ndarray:
    """(N, D) embeddings of rated responses, from a file that is written first if it is not there yet."""
    from irm_fast.embeddings.embedder import Embedder, write_embeddings
    from irm_fast.embeddings.store import read_embeddings

    if not path.exists():
        embedder = Embedder(model, max_length=max_length)
        write_embeddings(rated.ids, rated.messages, embedder, path, resume=True)
    return read_embeddings(path, rated.ids, rated.messages)


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()
