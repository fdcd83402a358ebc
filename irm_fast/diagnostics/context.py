"""Checks of who, when and where: does anything but the response predict actions on rows that are proven?

On a row where another signal, or a label, proves the side that a signal speaks for, the signal acts with its propensity
whatever the user's taste (taste moves the preference, which is settled there). So a cause that predicts actions on
proven rows moves propensities, and one that moves those of two signals alike makes preferred responses look rarer than
they are. One check a cause: its name is the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from irm_fast.diagnostics.proven import PROVEN_ROWS, Cause, effect_of
from irm_fast.diagnostics.subject import FAILED, LEVEL, NOT_TESTABLE, PASSED, TOO_FEW, Check, DiagnosedLog

SLACK = 0.02  # variance of a propensity relative to its square: moves the mean preference by as much at most
BINS = 10
VALUES = 20  # of a segment; rarer ones count as one


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
    """Return True if users, sessions, places, times and segments were all tested, and show nothing."""
    names = ("user activity", "session", "place in session", "time", "segments")
    tested = [check for check in checks if check.name in names]
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
    acted, expected, recorded = log.actions()
    for bins in beside:
        ratio = np.bincount(bins + 1, acted) / np.maximum(np.bincount(bins + 1, expected), 1e-9)
        expected = expected * ratio[bins + 1]
    within = np.arange(len(acted)) if apart is None else apart
    own, index = (np.unique(numbers, return_inverse=True)[1] for numbers in (within, groups))
    actions, mean, count = (
        np.bincount(index, values)[index] - np.bincount(own, values)[own]
        for values in (acted, expected, recorded.astype(float))
    )
    return np.where(count > 0, np.log((actions + 1) / (np.maximum(mean, 0) + 1)), np.nan)


def _check(log: DiagnosedLog, name: str, context: str, causes: Sequence[Cause]) -> Check:
    """Test the causes for all signals, and say how far apart the worst one drives a signal's rates."""
    effects = [effect_of(log, k, cause) for cause in causes for k in range(len(log.names))]
    found = [effect for effect in effects if effect is not None]
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
