"""Rated responses as vectors, and the logs that are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from irm_fast.data.groups import hold_out
from irm_fast.data.rated import Rated
from irm_fast.data.simulation import draw_feedback, propensities, response_groups, standard_features

SIGNALS, TEST_FRACTION, LEVELS = 2, 0.2, 5
PROTOCOLS = ("rating", "feature")


@dataclass(frozen=True)
class Log:
    """What methods see of n rows, and nothing of what users really preferred.

    Attributes:
        X: (n, D) float32, the embeddings.
        features: (n, F) float32, visible features of the text.
        feedback: (n, K) int8, 1 where a signal acted and 0 where it was silent.
        group: (n,) numbers; rows of one group are held out together.
    """

    X: np.ndarray
    features: np.ndarray
    feedback: np.ndarray
    group: np.ndarray

    def signals(self, count: int) -> Log:
        """The same log with the first so many signals."""
        return replace(self, feedback=self.feedback[:, :count])


@dataclass(frozen=True)
class Truth:
    """The truth of a log, which only the bounds read.

    Attributes:
        preference: (n,) of 0 and 1.
        propensity: (n, K) float64, how often preferred rows act. Under the protocol "feature" it is that of each row.
            Under "rating" it is the mean over the preferred rows, since a row's own would give its rating away; it is
            no bound there, for preferred rows of a higher rating act more often.
    """

    preference: np.ndarray
    propensity: np.ndarray


@dataclass(frozen=True)
class Redraw:
    """A log, its truth, and the clean test set.

    Attributes:
        log: What methods see.
        truth: What only the bounds see.
        test_X: (m, D) float32, the embeddings of other rows.
        test_preference: (m,) of 0 and 1, whether these rows are preferred.
        test_features: (m, F) float32, their visible features.
    """

    log: Log
    truth: Truth
    test_X: np.ndarray
    test_preference: np.ndarray
    test_features: np.ndarray


@dataclass(frozen=True)
class Population:
    """N rated rows, from which logs are drawn.

    Attributes:
        X: (N, D) float32, the embeddings.
        features: (N, F) float32, standardised visible features of the text.
        rating: (N,) the ratings.
        preference: (N,) of 0 and 1.
        group: (N,) numbers; rows of one group, a prompt or a pair, are not parted.
    """

    X: np.ndarray
    features: np.ndarray
    rating: np.ndarray
    preference: np.ndarray
    group: np.ndarray

    def redraw(self, protocol: str, seed: int, *, alpha: float = 0.5, target: float = 0.2) -> Redraw:
        """Split the rows into a log and a test set, and draw the actions on the log.

        Args:
            protocol: "rating" or "feature", as in `irm_fast.data.simulation`.
            seed: The seed of the split and of the actions.
            alpha: The decay of the protocol "rating".
            target: The mean propensity of each signal.
        """
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
        truth = Truth(preference, known)
        return Redraw(log, truth, self.X[test], self.preference[test], self.features[test])


def made_embeddings(rng: np.random.Generator, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) float32 of a decaying spectrum, and a standardised quality (N,) that is linear in them."""
    X = (rng.normal(size=(rows, width)) * np.exp(-np.arange(width) / 80)).astype(np.float32)
    return X, standardised(X @ rng.normal(size=width))


def semi_synthetic(rows: int = 16_000, width: int = 1024, noise: float = 0.45) -> Population:
    """A population of made embeddings, with ratings in five equal levels.

    A rating is the quality of the row and noise: much of it makes the preference less steep. There are five visible
    features, all linear in the embedding; the first is correlated with the quality by 0.4, as length often is.

    Args:
        rows: The number of rows, N.
        width: The width of embeddings, D.
        noise: The deviation of the noise, where that of the quality is 1.
    """
    rng = np.random.default_rng(26)  # another world than that of examples/identification, on which defaults were found
    X, quality = made_embeddings(rng, rows, width)
    others = [standardised(X @ rng.normal(size=width)) for _ in range(5)]
    others[0] = standardised(0.4 * quality + np.sqrt(1 - 0.4**2) * others[0])
    noisy = quality + noise * rng.normal(size=rows)
    rating = np.argsort(np.argsort(noisy)) * LEVELS // rows
    features = np.clip(np.column_stack(others), -3, 3).astype(np.float32)
    preference = (rating > (LEVELS - 1) / 2).astype(np.int8)
    return Population(X, features, rating.astype(float), preference, np.arange(rows))


def of_rated(rated: Rated, X: np.ndarray) -> Population:
    """The population of rated responses whose embeddings (N, D) are X."""
    return Population(X, standard_features(rated.messages), rated.rating, rated.preference, response_groups(rated))


def embedded(rated: Rated, model: str, path: Path, *, max_length: int) -> np.ndarray:
    """Embed rated responses, or read the embeddings that an earlier run wrote.

    Args:
        rated: The responses.
        model: Folder or hub id of a decoder or an encoder.
        path: The file of embeddings, which is written if it does not exist.
        max_length: The number of tokens of a row, at most.

    Returns:
        (N, D) float32.
    """
    from irm_fast.embeddings.embedder import Embedder
    from irm_fast.embeddings.store import read_embeddings
    from irm_fast.embeddings.writing import write_embeddings

    if not path.exists():
        embedder = Embedder(model, max_length=max_length)
        write_embeddings(rated.ids, rated.messages, embedder, path, resume=True)
    return read_embeddings(path, rated.ids, rated.messages)


def standardised(values: np.ndarray) -> np.ndarray:
    """The values, shifted and scaled to mean 0 and deviation 1."""
    return (values - values.mean()) / values.std()
