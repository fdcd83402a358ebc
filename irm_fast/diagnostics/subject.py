"""The subject of a diagnosis, a log with predictions, and the result of one check of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

LEVEL = 0.001  # of each check; there are about 20, so that together they reject what holds about once in 50 logs
ENOUGH = 10  # actions: fewer decide nothing
CONTEXTS = ("user", "session", "time", "place")  # what a model may know of a row beside its text

NEEDS_PREDICTIONS = "needs predictions for rows that the model was not trained on"
PASSED, FAILED, NOT_TESTABLE, TOO_FEW = "passed", "failed", "not testable", "too few data"


ROWWISE = (
    "feedback",
    "preference",
    "users",
    "known",
    "own",
    "preferred",
    "propensity",
    "rates",
    "sessions",
    "times",
    "acted_at",
)


@dataclass(frozen=True)
class Check:
    """The result of one check of a log.

    Attributes:
        name: The name of the check, such as `nesting`.
        result: `passed`, `failed`, `not testable` or `too few data`.
        text: The reason in words.
        statistic: The statistic behind the result, or None. Where there are several cases, such as pairs of signals,
            this and the next two are those of the worst case.
        p_value: The p-value, or None.
        interval: The 95% confidence interval of the statistic, or None.
        about: What a failure says. `identification`: neither ranking nor scale can be relied on, by the log itself;
            `reward`: by the reward at hand. `scale`: the scale cannot, and the ranking hardly suffers. `learning`: the
            reward tells nothing. `fit`: the fit is poor, which contradicts nothing.
        details: The numbers behind the statistic, such as strata or deciles.
    """

    name: str
    result: str
    text: str
    statistic: float | None = None
    p_value: float | None = None
    interval: tuple[float, float] | None = None
    about: str = "identification"
    details: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class DiagnosedLog:
    """N rows of a log with K signals, and the predictions of a model for them, where there are any.

    Attributes:
        names: The names of the K signals.
        designs: The propensity design of each signal.
        feedback: Integers of shape (N, K): 1 acted, 0 silent, -1 missing.
        polarity: +1 or -1 for each signal, of shape (K,).
        misclick: The misclick rate of each signal, of shape (K,), in [0, 1).
        preference: Integers of shape (N,), from labels: 1, 0, or -1 unknown.
        users: Integers of shape (N,), equal for the rows of one user; a row without a user has a number of its own.
        known: The propensities that are known, of shape (N, K), NaN elsewhere.
        feature_names: The names of what the propensity design `features` reads.
        own: Predicted probabilities, of shape (N, K), that the preference is on the side that the signal speaks for;
            None without predictions, NaN in rows without one.
        preferred: Predicted probabilities of preference, of shape (N,), as `own`.
        propensity: Predicted propensities of shape (N, K), or None.
        rates: Predicted action rates of shape (N, K), refitted to the actions, or None; NaN in rows without one.
        user_names: The names of users by their numbers.
        sessions: Integers of shape (N,) as `users`, or None if no session is known.
        times: Seconds since 1970 of shape (N,), float64, NaN where unknown; or None if all are.
        acted_at: The time of each action in the same seconds, of shape (N, K), NaN where unknown; or None.
        segments: By name the segment of each row, texts of shape (N,), empty where unknown.
        context: What the predicted propensities know of a row beside its text, of `CONTEXTS`.
    """

    names: Sequence[str]
    designs: Sequence[str]
    feedback: np.ndarray
    polarity: np.ndarray
    misclick: np.ndarray
    preference: np.ndarray
    users: np.ndarray
    known: np.ndarray
    feature_names: Sequence[str] = ()
    own: np.ndarray | None = None
    preferred: np.ndarray | None = None
    propensity: np.ndarray | None = None
    rates: np.ndarray | None = None
    user_names: Mapping[int, Hashable] = field(default_factory=dict)
    sessions: np.ndarray | None = None
    times: np.ndarray | None = None
    acted_at: np.ndarray | None = None
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)
    context: tuple[str, ...] = ()

    def pairs(self, same: bool = True) -> Iterator[tuple[int, int]]:
        """Yield the pairs of signals of the same polarity, or of opposite ones."""
        for j, k in combinations(range(len(self.names)), 2):
            if (self.polarity[j] == self.polarity[k]) == same:
                yield j, k

    def recorded(self, *signals: int) -> np.ndarray:
        """Return a mask of shape (N,) of the rows in which all of these signals are recorded."""
        rows: np.ndarray = np.all(self.feedback[:, list(signals)] >= 0, axis=1)
        return rows

    def predicted(self) -> DiagnosedLog | None:
        """Return the rows that have predictions, or None if none has."""
        if self.rates is None or self.own is None or self.propensity is None:
            return None
        rows = np.isfinite(self.rates).all(axis=1)
        return self.subset(rows) if rows.any() else None

    def subset(self, rows: np.ndarray) -> DiagnosedLog:
        """Return the rows that an index selects: row numbers, or a mask of shape (N,). Of all rows there is no copy."""
        if rows.dtype == bool and rows.all():
            return self
        parts: dict[str, Any] = {"segments": {name: values[rows] for name, values in self.segments.items()}}
        for name in ROWWISE:
            whole = getattr(self, name)
            parts[name] = None if whole is None else whole[rows]
        return replace(self, **parts)

    def expected(self) -> np.ndarray:
        """Return the action rates (N, K) to compare with: predicted, or else the mean of each signal for all rows."""
        if self.rates is not None:
            return self.rates
        recorded = self.feedback >= 0
        mean = np.where(recorded, self.feedback, 0).sum(axis=0) / np.maximum(recorded.sum(axis=0), 1)
        return np.broadcast_to(mean, self.feedback.shape)

    def actions(self, signals: Sequence[int] | slice = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the actions of each row, those to expect, and whether any is recorded, each of shape (N,).

        Args:
            signals: The numbers of the signals that count, all by default.
        """
        rates = self.expected()[:, signals]
        recorded = (self.feedback[:, signals] >= 0) & np.isfinite(rates)
        acted = np.where(recorded, self.feedback[:, signals], 0).sum(axis=1).astype(float)
        return acted, np.where(recorded, rates, 0.0).sum(axis=1), recorded.any(axis=1)

    def acted(self, sign: int) -> np.ndarray:
        """Return a mask of shape (N,) of the rows in which a signal of this polarity acts."""
        rows: np.ndarray = (self.feedback[:, self.polarity == sign] == 1).any(axis=1)
        return rows

    def repeated(self, groups: np.ndarray | None) -> bool:
        """Return True if two rows share a number of `groups`, such as users."""
        return groups is not None and len(np.unique(groups)) < len(groups)

    def clusters(self) -> np.ndarray:
        """Return integers of shape (N,), equal for rows that may depend on each other: of one user, or one session."""
        return self.users if self.sessions is None or self.repeated(self.users) else self.sessions

    def telling(self, j: int, k: int) -> tuple[int, bool]:
        """Count the rows in which two signals act together, and find out whether that tells anything.

        A signal that is recorded only where another acted says nothing about the propensity of that other one.

        Returns:
            The number of co-actions, and True if each signal is also silent in enough rows where both are recorded.
        """
        both = self.feedback[self.recorded(j, k)][:, [j, k]]
        silent = (both == 0).sum(axis=0)
        return int((both == 1).all(axis=1).sum()), bool((silent >= ENOUGH).all())


def by_user(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Return the sum of the values (N,) of each user's rows, one number a user."""
    return np.bincount(np.unique(users, return_inverse=True)[1], values) if len(values) else values
