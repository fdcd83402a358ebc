"""Checks that silence is a silence: that no button is broken or absent in a part of the log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import poisson

from irm_fast.diagnostics.context import place_in_session
from irm_fast.diagnostics.subject import (
    ENOUGH,
    FAILED,
    LEVEL,
    NOT_TESTABLE,
    PASSED,
    TOO_FEW,
    Check,
    DiagnosedLog,
)

HARDLY = 0.1  # of the expected actions: what a broken button still records
SECONDS = 86_400
SHOWN = 3  # cells in the text; the details have all


class _Cell(NamedTuple):
    """Actions of some signals in a part of the log: tail probability, observed, expected, rows."""

    tail: float
    signals: tuple[str, ...]
    where: str
    acted: int
    expected: float
    rows: int


def broken_buttons(log: DiagnosedLog) -> Check:
    """Check that no signal, and no polarity, hardly ever acts in a segment, a day or an hour where it does elsewhere.

    What is expected comes from the rate elsewhere, times the predicted rates where there are any. A cell fails with
    less than a tenth of it, if that is significantly less than half of it, each user counted for one expected action at
    most: users differ in activity, and one who never acts breaks no button.
    """
    name = "broken button"
    parts = list(_parts(log))
    if not parts:
        return Check(name, NOT_TESTABLE, "needs segments (such as platform, version, model), times or sessions")
    groups: list[tuple[int, ...]] = [(k,) for k in range(len(log.names))]
    sides = [tuple(np.flatnonzero(log.polarity == sign).tolist()) for sign in (1, -1)]
    groups += [side for side in sides if len(side) > 1]
    cells = [cell for group in groups for cell in _cells(log, group, parts)]
    if not cells:
        return Check(name, TOO_FEW, f"no segment in which {ENOUGH} actions of a signal are expected")
    broken = [cell for cell in cells if cell.acted < HARDLY * cell.expected and cell.tail * len(cells) < LEVEL]
    worst = min(cells, key=lambda cell: cell.tail)
    p_value = min(1.0, worst.tail * len(cells))
    share = worst.acted / worst.expected
    if not broken:
        said = f"{_names(worst)} {_acts(worst)} {worst.where}, the fewest of {len(cells)} parts of the log"
        return Check(name, PASSED, said, share, p_value)
    broken.sort(key=lambda cell: -cell.expected)
    said = "; ".join(f"{_names(cell)} {_acts(cell)} {cell.where}" for cell in broken[:SHOWN])
    more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    details = tuple(
        {
            "signals": list(cell.signals),
            "where": cell.where,
            "acted": cell.acted,
            "expected": cell.expected,
            "rows": cell.rows,
        }
        for cell in broken
    )
    return Check(name, FAILED, said + more, share, p_value, details=details)


def _names(cell: _Cell) -> str:
    return ", ".join(cell.signals)


def _acts(cell: _Cell) -> str:
    verb = "acts" if len(cell.signals) == 1 else "act"
    return f"{verb} {cell.acted} times ({cell.expected:.0f} expected in {cell.rows} rows)"


def _parts(log: DiagnosedLog) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield for each way to divide the log the part of each row, -1 where unknown, and the names of the parts."""
    for segment, values in log.segments.items():
        found, index = np.unique(values, return_inverse=True)
        yield np.where(values == "", -1, index), [f"where {segment}={value}" for value in found]
    if log.times is not None and np.isfinite(log.times).any():
        known = np.isfinite(log.times)
        day, index = np.unique(np.floor(np.where(known, log.times, 0) / SECONDS), return_inverse=True)
        yield np.where(known, index, -1), [f"on {date(d)}" for d in day]
        hour = np.floor(np.where(known, log.times, 0) % SECONDS / 3600).astype(int)
        yield np.where(known, hour, -1), [f"from {h}:00 to {h + 1}:00 UTC" for h in range(24)]
    if log.sessions is not None and log.repeated(log.sessions):
        number = place_in_session(log)
        index, size = np.unique(log.sessions, return_inverse=True, return_counts=True)[1:]
        last = np.where(size[index] > 1, (number < size[index]).astype(int), -1)
        yield last, ["in the last row of a session", "before the last row of a session"]


def part_named(log: DiagnosedLog, phrase: str) -> tuple[str, np.ndarray] | None:
    """Find the part of the log that a phrase of the check "broken button" ends with.

    Args:
        log: The log.
        phrase: Such as "share where platform=android" or "copy, share before 2025-04-23 10:00:00 UTC".

    Returns:
        What stands before it, "share", and a mask (N,) of its rows; or None if the phrase names no part of this log.
    """
    for index, names in _parts(log):
        for number, where in enumerate(names):
            if phrase.endswith(f" {where}"):
                return phrase[: -len(where) - 1], index == number
    found = re.fullmatch(r"(.+) (before|after) (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", phrase)
    if found is None or log.times is None:
        return None
    moment = float(np.datetime64(found[3], "s").astype(np.int64))
    whole = np.floor(log.times)  # the phrase has no fractions of a second
    return found[1], whole < moment if found[2] == "before" else whole > moment


def date(day: float) -> str:
    """Return a number of days since 1970 as a date such as 2025-04-23."""
    return str(np.datetime64(int(day), "D"))


def _cells(log: DiagnosedLog, group: tuple[int, ...], parts: list[tuple[np.ndarray, list[str]]]) -> Iterator[_Cell]:
    """Yield the parts in which enough actions of a group of signals are expected."""
    names = tuple(log.names[k] for k in group)
    acted, rate, rows = log.actions(list(group))
    for index, where in parts:
        number, weight = index + 1, rows.astype(float)
        seen, base, count = (np.bincount(number, value, len(where) + 1) for value in (acted, rate, weight))
        elsewhere = np.divide(seen.sum() - seen, base.sum() - base, out=np.zeros_like(seen), where=base < base.sum())
        capped = _by_users(log.users, number, rate * elsewhere[number], len(where) + 1)
        for b in range(1, len(where) + 1):
            expected = float(base[b] * elsewhere[b])
            if capped[b] >= ENOUGH and seen.sum() - seen[b] >= ENOUGH:
                tail = float(poisson.cdf(seen[b], capped[b] / 2))
                yield _Cell(tail, names, where[b - 1], int(seen[b]), expected, int(count[b]))
    if log.times is not None:
        yield from _ends(log, names, acted, rate * rows)


def _by_users(users: np.ndarray, number: np.ndarray, expected: np.ndarray, size: int) -> np.ndarray:
    """Return the expected actions of each part, of shape (size,), each user of it counted for one at most."""
    low, count = (int(users.min()), int(np.ptp(users)) + 1) if len(users) else (0, 1)
    pair, index = np.unique(number * count + users - low, return_inverse=True)
    return np.bincount(pair // count, np.minimum(np.bincount(index, expected), 1.0), size)


def _ends(log: DiagnosedLog, names: tuple[str, ...], acted: np.ndarray, rate: np.ndarray) -> Iterator[_Cell]:
    """Yield the time before the first action and the time after the last: a button that came late, or went."""
    assert log.times is not None
    when = log.times[(acted > 0) & np.isfinite(log.times)]
    if len(when) < ENOUGH:
        return
    ends = [(log.times < when.min(), "before", when.min()), (log.times > when.max(), "after", when.max())]
    for rows, word, moment in ends:
        if not rows.any():
            continue
        level = acted[~rows].sum() / max(float(rate[~rows].sum()), 1e-9)
        expected = rate[rows] * level
        capped = float(_by_users(log.users[rows], np.zeros(rows.sum(), int), expected, 1)[0])
        if capped >= ENOUGH:
            stamp = str(np.datetime64(int(moment), "s")).replace("T", " ")
            yield _Cell(
                float(np.exp(-capped / 2)), names, f"{word} {stamp} UTC", 0, float(expected.sum()), int(rows.sum())
            )
