"""What the counts of a log say against signals that are independent given the response: one test a function.

The model (implicit feedback as in arXiv:2603.23184, several signals): P(f_k=1 | x) = g m_k, and given x and the
preference the signals are independent. The tests that need predictions are in `residuals`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import binom, norm, poisson

LEVEL = 0.003  # of each test; there are six, so that together they reject what holds about once in 60 logs
NESTED_ABOVE = 0.96  # share of the inner signal's actions; a propensity as high as that is not believed
ENOUGH = 10  # actions: fewer decide nothing

NEEDS_PREDICTIONS = "needs predictions for rows that the model was not trained on"
PASSED, FAILED, NOT_TESTABLE, TOO_FEW = "passed", "failed", "not testable", "too few data"


@dataclass(frozen=True)
class Check:
    """One test of a log: `passed`, `failed`, `not testable` or `too few data`, and why in words.

    about: `identification` (a failure contradicts what identifies the reward) or `fit` (it does not).
    statistic, p_value, interval (95%): of the worst case where there are several; None where there is none.
    details: what lies behind the numbers: strata, deciles.
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
class Observations:
    """K signals in N rows.

    feedback: (N, K), 1 acted, 0 silent, -1 missing.  polarity: (K,) of +1 and -1.  misclick: (K,) in [0, 1).
    users: (N,) integers, equal for the rows of one user (a row without a user has a number of its own).
    known: (N, K) propensities where they are known, NaN elsewhere.
    own: (N, K) predicted probability of the side that each signal speaks for, and propensity: (N, K), or None.
    rates: (N, K) action rates, refitted, or None. Rows without a prediction hold NaN.
    """

    names: Sequence[str]
    feedback: np.ndarray
    polarity: np.ndarray
    misclick: np.ndarray
    users: np.ndarray
    known: np.ndarray
    own: np.ndarray | None = None
    propensity: np.ndarray | None = None
    rates: np.ndarray | None = None

    def pairs(self, same: bool = True) -> Iterator[tuple[int, int]]:
        """Pairs of signals of the same polarity, or of opposite ones."""
        for j, k in combinations(range(len(self.names)), 2):
            if (self.polarity[j] == self.polarity[k]) == same:
                yield j, k

    def recorded(self, *signals: int) -> np.ndarray:
        """(N,) bool: all of these are recorded."""
        return np.all(self.feedback[:, list(signals)] >= 0, axis=1)

    def predicted(self) -> Observations | None:
        """The rows that have predictions, or None if none has."""
        if self.rates is None or self.own is None or self.propensity is None:
            return None
        rows = np.isfinite(self.rates).all(axis=1)
        return self.subset(rows) if rows.any() else None

    def subset(self, rows: np.ndarray) -> Observations:
        """The rows that an index or a mask selects."""
        parts: dict[str, Any] = {}
        for name in ("feedback", "users", "known", "own", "propensity", "rates"):
            whole = getattr(self, name)
            parts[name] = None if whole is None else whole[rows]
        return replace(self, **parts)

    def telling(self, j: int, k: int) -> tuple[int, bool]:
        """Co-actions of two signals, and whether each is also silent where the other is recorded.

        A signal that is recorded only where another acted says nothing about the propensity of that other one.
        """
        both = self.feedback[self.recorded(j, k)][:, [j, k]]
        silent = (both == 0).sum(axis=0)
        return int((both == 1).all(axis=1).sum()), bool((silent >= ENOUGH).all())


def coactions(log: Observations) -> Check:
    """Whether two signals of one polarity act together often enough to tell preference from propensity."""
    name = "co-actions"
    pairs = list(log.pairs())
    if not pairs:
        return Check(name, NOT_TESTABLE, "needs two signals of one polarity")
    counts = {pair: log.telling(*pair) for pair in pairs}
    (j, k), (count, varied) = max(counts.items(), key=lambda item: item[1][0] * item[1][1])
    what = f"{log.names[j]} and {log.names[k]}"
    if not log.recorded(j, k).any():
        return Check(name, TOO_FEW, "no two signals of one polarity are recorded in the same rows", 0.0)
    if not varied:
        text = f"{what}: one is recorded only where the other acts ({count} times), which tells nothing"
        return Check(name, TOO_FEW, text, float(count))
    text = f"{what} act together in {count} of {log.recorded(j, k).sum()} rows"
    return Check(name, PASSED if count >= ENOUGH else TOO_FEW, f"{text} (at least {ENOUGH} wanted)", float(count))


def nesting(log: Observations) -> Check:
    """Whether one signal acts only where another does, apart from a few errors, or two are one.

    Under independence, P(outer=1 | inner=1) is the outer signal's propensity m. Nesting looks exactly like m=1, and no
    log can tell the two apart: what is rejected is a propensity of at most 0.96 (or of what is known), by the exact
    binomial tail.
    """
    name = "nesting"
    cases = []
    for pair in log.pairs():
        count, varied = log.telling(*pair)
        for inner, outer in (pair, pair[::-1]) if varied else ():
            rows = log.recorded(inner, outer) & (log.feedback[:, inner] == 1)
            known = log.known[rows, outer]
            limit = max(NESTED_ABOVE, float(known.mean())) if rows.any() and np.isfinite(known).all() else NESTED_ABOVE
            tail = float(binom.sf(count - 1, rows.sum(), limit)) if rows.any() else 1.0
            cases.append((tail, 1 - count / max(1, rows.sum()), inner, outer))
    if not cases:
        return Check(name, NOT_TESTABLE, "needs two signals of one polarity, recorded in the same rows")
    level = LEVEL / len(cases)
    tail, apart, inner, outer = min(cases)
    one, other, share = log.names[inner], log.names[outer], 1 - apart
    text = f"{other} acts in {share:.1%} of the rows where {one} acts"
    p_value = min(1.0, tail * len(cases))
    if tail < level:
        back = next(case for case in cases if case[2:] == (outer, inner))
        what = f"{one} and {other} act in the same rows" if back[0] < level else f"{one} acts only where {other} acts"
        return Check(name, FAILED, f"{what}: {text}", share, p_value)
    return Check(name, TOO_FEW if share > NESTED_ABOVE else PASSED, text, share, p_value)


def opposites(log: Observations) -> Check:
    """Whether signals of opposite polarity act together more often than the declared misclicks explain.

    P(f_j=1, f_k=1) = g m_j e_k m_k + (1-g) e_j m_j m_k <= e_k P(f_j) + e_j P(f_k): free of predictions.
    """
    name = "opposite signals"
    cases = []
    for j, k in log.pairs(same=False):
        rows = log.recorded(j, k)
        f_j, f_k = log.feedback[rows, j], log.feedback[rows, k]
        excess = f_j * f_k - log.misclick[k] * f_j - log.misclick[j] * f_k
        allowed = log.misclick[k] * f_j.sum() + log.misclick[j] * f_k.sum()
        count = int((f_j * f_k).sum())
        spread = np.sqrt((by_user(excess, log.users[rows]) ** 2).sum())
        normal = float(norm.sf(excess.sum() / spread)) if spread else 1.0
        cases.append((max(normal, float(poisson.sf(count - 1, allowed))) if allowed else float(not count), j, k, count))
    if not cases:
        return Check(name, NOT_TESTABLE, "all signals have one polarity")
    p_value, j, k, count = min(cases)
    text = f"{log.names[j]} and {log.names[k]} act together {count} times"
    failed = p_value * len(cases) < LEVEL
    why = ", more often than the declared misclicks explain" if failed else ""
    return Check(name, FAILED if failed else PASSED, text + why, float(count), min(1.0, p_value * len(cases)))


def by_user(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Sums of the values of each user's rows."""
    return np.bincount(np.unique(users, return_inverse=True)[1], values) if len(values) else values
