"""Checks of how rows came into the log: that silent rows are all there, and that acted rows are there once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import binom, norm

from irm_fast.diagnostics.segments import SECONDS, date
from irm_fast.diagnostics.subject import FAILED, LEVEL, NOT_TESTABLE, PASSED, TOO_FEW, Check, DiagnosedLog

DAYS = 10  # with rows; fewer tell no period from the others
PERIODS = 200  # of equal numbers of days, where there are more days
FACTOR = 1.5  # in the odds of silence: what a better model alone hardly does from one day to the next
TRIMMED = 0.62  # the mean of chi-square with one degree of freedom without its largest tenth
TWINS = 0.05  # share of acted rows that have a twin, beyond that of silent rows


class _Period(NamedTuple):
    """The days from `first` to `last` against the others: tail probability, log odds ratio, and both shares."""

    tail: float
    shift: float
    first: int
    last: int
    inside: float
    outside: float


def silent_rows_by_day(log: DiagnosedLog) -> Check:
    """Check that the share of silent rows does not jump: silent rows are the first that a log drops.

    Every period of whole days is compared with the other days, in logits of the share of silent rows. Days vary by more
    than chance: the spread is that of neighbouring days (their squared differences, trimmed). A jump counts if the odds
    of silence change by half or more; that of propensities shows on proven rows, in the check of time. Where the given
    propensities depend on time already, each day is compared with what they predict for it.
    """
    name = "silent rows by day"
    if log.times is None or not np.isfinite(log.times).any():
        return Check(name, NOT_TESTABLE, "needs times", about="scale")
    recorded = (log.feedback >= 0).any(axis=1) & np.isfinite(log.times)
    silent = ~(log.feedback == 1).any(axis=1)[recorded]
    day = np.floor(log.times[recorded] / SECONDS).astype(int)
    days, index, count = np.unique(day, return_inverse=True, return_counts=True)
    if len(days) < DAYS:
        return Check(name, TOO_FEW, f"rows of {len(days)} days (at least {DAYS} wanted)", about="scale")
    if len(days) > PERIODS:
        block = np.arange(len(days)) * PERIODS // len(days)
        days, index = days[np.unique(block, return_index=True)[1]], block[index]
        count = np.bincount(index)
    excess = silent - _expected(log, recorded, silent)
    found = _worst_period(np.bincount(index, excess + silent.mean()).clip(0, count), count)
    after = days[found.last + 1] if found.last + 1 < len(days) else day.max() + 1
    said = (
        f"{found.inside:.0%} of the rows from {date(days[found.first])} to {date(after - 1)} are silent, "
        f"{found.outside:.0%} of the others"
    )
    failed = found.tail < LEVEL and abs(found.shift) > np.log(FACTOR)
    return Check(name, FAILED if failed else PASSED, said, found.inside - found.outside, found.tail, about="scale")


def _expected(log: DiagnosedLog, rows: np.ndarray, silent: np.ndarray) -> np.ndarray:
    """Return the predicted probability that each row is silent, or where time is not modelled, the share that is."""
    flat = np.full(len(silent), silent.mean())
    if "time" not in log.context or log.own is None or log.propensity is None:
        return flat
    own, none = log.own[rows], np.where(log.feedback[rows] >= 0, 1 - log.propensity[rows], 1.0)
    likes = own[:, 0] if log.polarity[0] > 0 else 1 - own[:, 0]
    by_side = [np.where(log.polarity == side, none, 1.0).prod(axis=1) for side in (1, -1)]
    predicted = likes * by_side[0] + (1 - likes) * by_side[1]
    return np.where(np.isfinite(predicted), predicted, flat)


def _worst_period(silent: np.ndarray, rows: np.ndarray) -> _Period:
    """Find the period of days that differs most from the others, among silent rows of D days, both of shape (D,)."""
    share = (silent.sum() + 0.5) / (rows.sum() + 1)
    error = (silent - share * rows) / np.sqrt(rows * share * (1 - share))
    step = np.sort(np.diff(error) ** 2)
    trimmed = step[: max(1, int(0.9 * len(step)))].mean() / 2
    spread = max(1.0, float(trimmed) / TRIMMED)
    below = np.concatenate([[0.0], np.cumsum(silent)])
    until = np.concatenate([[0.0], np.cumsum(rows)])
    first, last = np.triu_indices(len(rows))
    inside, size = below[last + 1] - below[first], until[last + 1] - until[first]
    outside, others = silent.sum() - inside, rows.sum() - size
    kept = others > 0
    first, last, inside, size, outside, others = (v[kept] for v in (first, last, inside, size, outside, others))
    p, q = (inside + 0.5) / (size + 1), (outside + 0.5) / (others + 1)
    shift = np.log(p / (1 - p)) - np.log(q / (1 - q))
    pooled = np.sqrt(spread * share * (1 - share) * (1 / size + 1 / others))
    rarer, total = (inside, silent.sum()) if share < 0.5 else (size - inside, rows.sum() - silent.sum())
    part = size / rows.sum()
    exact = np.minimum(binom.cdf(rarer, total, part), binom.sf(rarer - 1, total, part))  # where actions are few
    tails = 2 * np.maximum(norm.sf(np.abs(p - q) / pooled), exact)
    best = int(np.argmin(tails))
    tail = min(1.0, float(tails[best]) * len(tails))
    return _Period(tail, float(shift[best]), int(first[best]), int(last[best]), float(p[best]), float(q[best]))


def duplicates(log: DiagnosedLog) -> Check:
    """Check that acted rows are not logged twice: that they have a twin no more often than silent rows have.

    A twin is another row of the same user (or session), time and feedback. Coarse times give silent rows twins as well.
    """
    name = "duplicate rows"
    who = log.clusters()
    if log.times is None or not np.isfinite(log.times).any() or not log.repeated(who):
        return Check(name, NOT_TESTABLE, "needs times, and users or sessions", about="scale")
    rows = np.isfinite(log.times)
    digits = 3 ** np.arange(log.feedback.shape[1])
    twin = _repeated(who[rows] * 3 ** len(digits) + (log.feedback[rows] + 1) @ digits, log.times[rows]).astype(float)
    acted = (log.feedback[rows] == 1).any(axis=1)
    if not acted.any() or acted.all():
        return Check(name, TOO_FEW, "all rows act, or none does", about="scale")
    share, silent = float(twin[acted].mean()), float(twin[~acted].mean())
    pooled = twin.mean()
    error = np.sqrt(2 * pooled * (1 - pooled) * (1 / acted.sum() + 1 / (~acted).sum()))  # twins come in pairs
    tail = float(norm.sf((share - silent - TWINS) / error)) if error > 0 else 1.0
    said = f"{share:.0%} of the acted rows have a twin of the same user, time and feedback, {silent:.0%} of the silent"
    return Check(name, FAILED if tail < LEVEL else PASSED, said, share - silent, tail, about="scale")


def _repeated(numbers: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return a mask of the rows (N,) whose number and time another row has, too."""
    order = np.lexsort((times, numbers))
    same = (np.diff(numbers[order]) == 0) & (np.diff(times[order]) == 0)
    found = np.empty(len(order), bool)
    found[order] = np.append(same, False) | np.append(False, same)
    return found
