"""Checks of who, when and where: does anything but the response predict actions on rows that are proven?

On a row where another signal, or a label, proves the side that a signal speaks for, the signal acts with its propensity
whatever the user's taste (taste moves the preference, which is settled there). So a cause that predicts actions on
proven rows moves propensities, and one that moves those of two signals alike makes preferred responses look rarer than
they are. One check a cause: its name is the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import beta

from irm_fast.diagnostics.calibration import logit, refit, refit_columns
from irm_fast.diagnostics.subject import ENOUGH, FAILED, LEVEL, NOT_TESTABLE, PASSED, TOO_FEW, Check, DiagnosedLog

SURE = 0.9  # probability of the side from which a row counts as proven
PROVEN_ROWS = 100  # of a signal; fewer decide nothing
CLUSTERS = 20  # users beyond the number of tested columns; fewer decide nothing
SLACK = 0.02  # variance of a propensity relative to its square: moves the mean preference by as much at most
BINS = 10
VALUES = 20  # of a segment; rarer ones count as one


def proven(log: DiagnosedLog, k: int) -> np.ndarray:
    """Return a mask of shape (N,) of the rows in which something beside signal k proves the side it speaks for.

    That is an action of another signal of that side, or a label, with a probability of the side above 0.9 given all
    that is recorded beside the signal. Where no misclick rate is declared, an action makes it 1.
    """
    count = len(log.feedback)
    odds = np.zeros(count) if log.own is None else np.nan_to_num(logit(log.own[:, k]))
    spoken = np.zeros(count, bool)
    side = 1 if log.polarity[k] > 0 else 0
    with np.errstate(invalid="ignore", divide="ignore"):
        for j in range(len(log.names)):
            if j == k:
                continue
            same, e, acted = log.polarity[j] * log.polarity[k], log.misclick[j], log.feedback[:, j] == 1
            odds = odds - np.where(acted, same * np.log(e), 0.0)
            if log.propensity is not None:
                m = log.propensity[:, j]
                odds = odds + np.where(log.feedback[:, j] == 0, same * np.log((1 - m) / (1 - e * m)), 0.0)
            spoken |= acted & (same > 0)
        odds = odds + np.where(log.preference == side, np.inf, np.where(log.preference == 1 - side, -np.inf, 0.0))
        found: np.ndarray = (spoken | (log.preference == side)) & (odds > np.log(SURE / (1 - SURE)))
    return found & (log.feedback[:, k] >= 0)


class Cause(NamedTuple):
    """Something beside the response that may move propensities.

    Attributes:
        bins: The bin of each row, integers of shape (N,), -1 where unknown.
        labels: What the rows of each bin are, to be read after "of the proven rows".
        value: A number for each row, of shape (N,), whose effect is tested; None: test the bins.
        beside: Bins of other causes that are accounted for first.
    """

    bins: np.ndarray
    labels: Sequence[str]
    value: np.ndarray | None = None
    beside: tuple[np.ndarray, ...] = ()


def time(log: DiagnosedLog) -> Check:
    """Check that propensities do not depend on the time: a redesign, a season, a drift."""
    if log.times is None or not np.isfinite(log.times).any():
        return Check("time", NOT_TESTABLE, "needs times", about="scale")
    bins = _time_bins(log)
    return _check(log, "time", "time", [Cause(bins, [f"tenth {b + 1} of the time" for b in range(BINS)])])


def place(log: DiagnosedLog) -> Check:
    """Check that propensities do not depend on the place of a row in its session: fatigue."""
    name = "place in session"
    if not log.repeated(log.sessions):
        return Check(name, NOT_TESTABLE, "needs sessions of several rows", about="scale")
    number = place_in_session(log)
    bins = _quantiles(number)
    first = [int(number[bins == b].min()) for b in range(bins.max() + 1)]
    ends = [*(value - 1 for value in first[1:]), None]
    return _check(log, name, "place", [Cause(bins, [_places(a, b) for a, b in zip(first, ends, strict=True)])])


def segments(log: DiagnosedLog) -> Check:
    """Check that propensities do not depend on the segment: a platform, a position, a version."""
    name = "segments"
    if not log.segments:
        return Check(name, NOT_TESTABLE, "needs segments, such as platform, version, position", about="scale")
    causes = []
    for segment, values in log.segments.items():
        found, index, count = np.unique(values, return_inverse=True, return_counts=True)
        order = np.argsort(-count, kind="stable")
        place = np.minimum(np.argsort(order), VALUES)[index]
        bins = np.where(values == "", -1, place)
        causes.append(Cause(bins, [*(f"{segment}={found[v]}" for v in order[:VALUES]), f"other {segment}"]))
    return _check(log, name, "segment", causes)


def session(log: DiagnosedLog, of_users: Check) -> Check:
    """Check that the other rows of a session do not predict the actions of a row: a session has no mood of its own.

    Args:
        log: The log.
        of_users: The check of user activity. Where it finds some, what all other rows of the user say goes first.
    """
    name = "session"
    if not log.repeated(log.sessions) or log.sessions is None:
        return Check(name, NOT_TESTABLE, "needs sessions of several rows", about="scale")
    beside = _known_causes(log)
    value = _others(log, log.sessions, beside)
    if of_users.p_value is not None and of_users.p_value < LEVEL:
        beside = (*beside, _quantiles(_others(log, log.users, beside)))
    return _check(log, name, "session", [_activity(value, "the session's other rows have", beside)])


def user(log: DiagnosedLog) -> Check:
    """Check that a user's other rows do not predict the actions of a row: some users act more than others.

    The predictor is log((A + 1) / (E + 1)), with A the actions of the user's other rows and E the expected ones: of
    other sessions, where most rows have such, so that the mood of a session does not pass for activity.
    """
    name = "user activity"
    if not log.repeated(log.users):
        return Check(name, NOT_TESTABLE, "needs user ids, and users with several rows", about="scale")
    beside = _known_causes(log)
    value = _others(log, log.users, beside)
    if log.sessions is not None:
        elsewhere = _others(log, log.users, beside, apart=log.sessions)
        value = elsewhere if np.isfinite(elsewhere).mean() > 0.5 else value
    return _check(log, name, "user", [_activity(value, "the user's other rows have", beside)])


def shows_nothing(check: Check) -> bool:
    """Return True for a check of this module that found no effect, rather than one that is modelled or small."""
    return check.result == PASSED and (check.p_value or 0.0) >= LEVEL


def quiet(checks: Sequence[Check]) -> bool:
    """Return True if users, sessions, places and times were all tested, and show nothing."""
    tested = [check for check in checks if check.name in ("user activity", "session", "place in session", "time")]
    return all(map(shows_nothing, tested))


def place_in_session(log: DiagnosedLog) -> np.ndarray:
    """Return the place of each row in its session, from 1: by time where all times are known, else by row."""
    assert log.sessions is not None
    count = len(log.sessions)
    known = log.times is not None and bool(np.isfinite(log.times).all())
    order = np.lexsort((np.arange(count), log.times if known else np.zeros(count), log.sessions))  # type: ignore[arg-type]
    starts = np.flatnonzero(np.diff(log.sessions[order], prepend=-1))
    number = np.empty(count, int)
    number[order] = np.arange(count) - np.repeat(starts, np.diff(starts, append=count)) + 1
    return number


def _places(first: int, last: int | None) -> str:
    return f"place {first}" if first == last else f"places {first} to {last}" if last else f"place {first} and later"


def _time_bins(log: DiagnosedLog) -> np.ndarray:
    return _quantiles(log.times if log.times is not None else np.full(len(log.feedback), np.nan))


def _known_causes(log: DiagnosedLog) -> tuple[np.ndarray, ...]:
    """Return the bins of time and place, as far as they are known."""
    found = [_time_bins(log)] if log.times is not None else []
    return (*found, _quantiles(place_in_session(log))) if log.repeated(log.sessions) else tuple(found)


def _quantiles(values: np.ndarray, count: int = BINS) -> np.ndarray:
    """Return the quantile bin of each value, from 0, and -1 where it is not finite; equal values share a bin."""
    known = np.isfinite(values)
    bins = np.full(len(values), -1)
    if known.any():
        edges = np.unique(np.quantile(values[known], np.arange(1, count) / count))
        bins[known] = np.unique(np.searchsorted(edges, values[known], side="left"), return_inverse=True)[1]
    return bins


def _activity(value: np.ndarray, whose: str, beside: tuple[np.ndarray, ...]) -> Cause:
    bins = _quantiles(value, 5)
    names = ["fewest actions", *(f"more actions ({b + 1} of 5)" for b in range(1, max(1, bins.max()))), "most actions"]
    return Cause(bins, [f"where {whose} {name}" for name in names], value, beside)


def _others(
    log: DiagnosedLog, groups: np.ndarray, beside: Sequence[np.ndarray], apart: np.ndarray | None = None
) -> np.ndarray:
    """Return log((A + 1) / (E + 1)) of the other rows of each row's group, of shape (N,); NaN where there are none.

    Args:
        log: The log.
        groups: Integers of shape (N,).
        beside: Bins of causes for whose mean effect E accounts.
        apart: Integers of shape (N,), groups within the groups: rows of the same one do not count either.
    """
    rates = log.expected()
    recorded = (log.feedback >= 0) & np.isfinite(rates)
    acted = np.where(recorded, log.feedback, 0).sum(axis=1).astype(float)
    expected = np.where(recorded, rates, 0.0).sum(axis=1)
    for bins in beside:
        ratio = np.bincount(bins + 1, acted) / np.maximum(np.bincount(bins + 1, expected), 1e-9)
        expected = expected * ratio[bins + 1]
    within = np.arange(len(acted)) if apart is None else apart
    own, index = (np.unique(numbers, return_inverse=True)[1] for numbers in (within, groups))
    rows = recorded.any(axis=1).astype(float)
    actions, mean, count = (
        np.bincount(index, values)[index] - np.bincount(own, values)[own] for values in (acted, expected, rows)
    )
    return np.where(count > 0, np.log((actions + 1) / (np.maximum(mean, 0) + 1)), np.nan)


def _indicators(bins: np.ndarray) -> np.ndarray:
    """Return a column of 0 and 1 for each bin but the first; -1 is one."""
    index = np.unique(bins, return_inverse=True)[1]
    return np.eye(int(index.max()) + 1)[index][:, 1:]


class _Effect(NamedTuple):
    """The effect of a cause on one signal: p-value, relative variance, labels and numbers of the bins."""

    p_value: float
    size: float
    signal: str
    bins: list[dict[str, Any]]


def _check(log: DiagnosedLog, name: str, context: str, causes: Sequence[Cause]) -> Check:
    """Test the causes for all signals, and say how far apart the worst one drives a signal's rates."""
    found = [
        effect for cause in causes for k in range(len(log.names)) if (effect := _effect(log, k, cause)) is not None
    ]
    if not found:
        why = f"fewer than {PROVEN_ROWS} rows of a signal, of enough users, are proven by another signal or a label"
        return Check(name, TOO_FEW, why, about="scale")
    apart = [effect for effect in found if effect.size > SLACK] or found
    worst = min(apart, key=lambda effect: effect.p_value)
    p_value = min(1.0, worst.p_value * len(found))
    low, high = (pick(worst.bins, key=_relative) for pick in (min, max))
    said = (
        f"{worst.signal} acts in {high['observed']:.0%} of the proven rows {_where(high)}, in {low['observed']:.0%} of "
        f"those {_where(low)}"
    )
    details = tuple({"signal": effect.signal, **entry} for effect in found for entry in effect.bins)
    if p_value >= LEVEL or worst.size <= SLACK:
        return Check(name, PASSED, said, worst.size, p_value, about="scale", details=details)
    if context in log.context:
        return Check(name, PASSED, f"modelled: {said}", worst.size, p_value, about="scale", details=details)
    if log.rates is None:
        said += "; without predictions, responses that differ would do the same"
    return Check(name, FAILED, said, worst.size, p_value, about="scale", details=details)


def _relative(entry: dict[str, Any]) -> float:
    return float(entry["observed"] / max(entry["expected"], 1e-9))


def _where(entry: dict[str, Any]) -> str:
    label = str(entry["where"])
    return label if label.startswith("where") else f"of {label}"


def _effect(log: DiagnosedLog, k: int, cause: Cause) -> _Effect | None:
    """Test whether a cause predicts the actions of signal k on its proven rows; None if there are too few."""
    rows = proven(log, k) & (cause.bins >= 0)
    if log.rates is not None:
        rows &= np.isfinite(log.rates[:, k])
    part = log.subset(rows)
    acted, bins = part.feedback[:, k], cause.bins[rows]
    silent = len(acted) - acted.sum()
    if len(acted) < PROVEN_ROWS or min(acted.sum(), silent) < ENOUGH or not np.ptp(bins):
        return None

    # The rates without the cause
    features = [_indicators(other[rows]) for other in cause.beside]
    start = np.full(len(acted), acted.mean())
    if part.own is not None and part.propensity is not None:
        features.append(logit(np.column_stack([part.own[:, :1], part.propensity])))
        start = part.propensity[:, k]
    columns = np.column_stack([np.empty((len(acted), 0)), *features])
    rate = refit(acted, start, columns)

    # The score of the cause, by user
    tested = _indicators(bins) if cause.value is None else cause.value[rows, None]
    p_value = _score_test(acted - rate, rate, refit_columns(columns), tested, part.clusters())
    if p_value is None:
        return None
    size, numbers = _size(acted, rate, bins, part.clusters())
    return _Effect(p_value, size, log.names[k], [{"where": cause.labels[b], **entry} for b, entry in numbers])


def _score_test(
    errors: np.ndarray,
    rate: np.ndarray,
    nuisance: np.ndarray,
    tested: np.ndarray,
    clusters: np.ndarray,
) -> float | None:
    """Return the p-value of the score of tested columns, robust to dependence within clusters.

    The scores of the clusters are summed: with T columns and G clusters of normal sums, s' (sum s_g s_g')^-1 s / G
    follows a beta distribution with parameters T/2 and (G - T)/2 (Hotelling 1931, mean zero known).

    Args:
        errors: Actions less their rates, of shape (N,).
        rate: The rates, of shape (N,).
        nuisance: Columns along which the rates were fitted, of shape (N, F).
        tested: Columns of shape (N, T).
        clusters: Integers of shape (N,).

    Returns:
        The p-value, or None if there are too few clusters.
    """
    root = np.sqrt(rate * (1 - rate))[:, None]
    tested = tested - nuisance @ np.linalg.lstsq(root * nuisance, root * tested, rcond=None)[0]
    index = np.unique(clusters, return_inverse=True)[1]
    sums = np.stack([np.bincount(index, errors * column) for column in tested.T], axis=1)
    size, count = sums.shape
    count = int(np.linalg.matrix_rank(sums))
    if size < CLUSTERS + count or not count:
        return None
    total = sums.sum(axis=0)
    share = float(total @ np.linalg.pinv(sums.T @ sums) @ total / size)
    return float(beta.sf(min(share, 1.0), count / 2, (size - count) / 2))


def _size(
    acted: np.ndarray, rate: np.ndarray, bins: np.ndarray, clusters: np.ndarray
) -> tuple[float, list[tuple[int, dict[str, Any]]]]:
    """Return the variance between bins of observed over expected actions, less that of chance, and both by bin."""
    index = np.unique(clusters, return_inverse=True)[1]
    total, size, numbers = rate.sum(), 0.0, []
    for b in np.unique(bins):
        rows = bins == b
        seen, expected = float(acted[rows].sum()), float(rate[rows].sum())
        chance = float((np.bincount(index[rows], acted[rows] - rate[rows]) ** 2).sum())
        size += expected / total * ((seen / expected - 1) ** 2 - chance / expected**2)
        count = int(rows.sum())
        numbers.append((int(b), {"observed": seen / count, "expected": expected / count, "rows": count}))
    return size, numbers
