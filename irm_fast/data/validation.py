"""The report on a log that `irm-fast validate` prints: what it holds, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from irm_fast.data.declarations import NEGATIVE_SIGNALS, Declarations
from irm_fast.data.groups import numbered
from irm_fast.data.problems import one_line
from irm_fast.data.read import scan_log
from irm_fast.data.reading.sources import Given
from irm_fast.data.row_stream import counted, source_of
from irm_fast.data.signals import Absent, signal_notes
from irm_fast.data.times import shown_time


def validate(
    source: Given,
    *,
    absent: Absent = "error",
    polarity: Mapping[str, int] | None = None,
    misclick: bool = False,
    declared: Declarations | None = None,
) -> dict[str, Any]:
    """Report what a log holds and what is wrong with it.

    Args:
        source: As of `read_log`.
        absent: The meaning of a feedback key that some rows lack, as of `read_log`.
        polarity: +1 or -1 by the name of a signal, as of `read_log`.
        misclick: Allow rows that contradict themselves, as of `read_log`.
        declared: All that can be declared, instead of these three.

    Returns:
        A mapping of plain JSON values. Its counts are over the "valid_rows", those of all "rows" that can be read;
        "declared" is how it was read; "problems" holds at most the first 1000 of "problem_count"; "notes" are those of
        `signal_notes` and what else should be known; "skipped" has the rows that were left out, by reason.

    Raises:
        DataError: The file does not exist.
    """
    declared = declared or Declarations.of(absent=absent, polarity=polarity, misclick=misclick)
    source = source_of(source, declared)
    scan = scan_log(source, source.blocks(), declared, keep="hashes")
    log, found = scan.found.log, scan.found
    users, sessions = (_counts(found.hashes.get(name)) for name in ("user_id", "session_id"))
    segments = {name: _counts(numbered(values) + 1) for name, values in log.segments.items()}
    times = np.array([]) if log.times is None else log.times[~np.isnan(log.times)]
    signals = {}
    for k, name in enumerate(log.signals):
        acted, silent, missing = (int((log.feedback[:, k] == value).sum()) for value in (1, 0, -1))
        signals[name] = {
            "polarity": log.polarity[k],
            "declared": name in declared.polarity,
            "acted": acted,
            "silent": silent,
            "missing": missing,
            "absent": scan.absent[name],
            "rate": acted / (acted + silent) if acted + silent else None,
        }
    return {
        "file": str(source),
        "rows": scan.rows,
        "valid_rows": len(log),
        "signals": signals,
        "rows_with_preference": int((log.preference >= 0).sum()),
        "preferred": int((log.preference == 1).sum()),
        "contradictions": scan.contradictions,
        "duplicate_ids": scan.duplicate_ids,
        "duplicate_texts": _repeats(found.hashes["text"]),
        "users": len(users),
        "rows_per_user": _spread(users),
        "sessions": len(sessions),
        "rows_per_session": _spread(sessions),
        "times": {"rows": len(times), "first": float(times.min()), "last": float(times.max())} if len(times) else None,
        "segments": {name: {"values": len(c), "rows_per_value": _spread(c)} for name, c in segments.items()},
        "declared": declared.told(),
        "notes": [*_polarity_notes(log.signals, declared), *signal_notes(log), *scan.problems.notes()],
        "skipped": counted(scan.skipped),
        "problem_count": scan.problems.total,
        "problems": scan.problems.kept,
    }


def _polarity_notes(signals: Sequence[str], declared: Declarations) -> list[str]:
    """Say which signals are taken as signs of displeasure by their names alone."""
    return [
        f"{name}: given when a response displeases (-1), by its name; --polarity {name}=1 says otherwise"
        for name in signals
        if name in NEGATIVE_SIGNALS and name not in declared.polarity
    ]


def _counts(names: np.ndarray | None) -> np.ndarray:
    """Count the rows of each name, of which 0 is none."""
    if names is None:
        return np.array([])
    names = np.sort(names[names != 0])
    return np.diff(np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1], [True]]))) if len(names) else names


def _repeats(values: np.ndarray) -> int:
    """Count the values that are equal to an earlier one."""
    values = np.sort(values)
    return int((values[1:] == values[:-1]).sum())


def _spread(counts: np.ndarray) -> dict[str, float] | None:
    """Return the smallest, the median and the largest count, or None if there is none."""
    if not len(counts):
        return None
    return {"min": int(counts.min()), "median": float(np.median(counts)), "max": int(counts.max())}


def _named(what: str, number: int, spread: Mapping[str, float] | None) -> list[str]:
    """Return the line on names and how many rows each has, if there are any."""
    if spread is None:
        return []
    return [f"{what}: {number:,} ({spread['min']:,} to {spread['max']:,} rows each, median {spread['median']:g})"]


def format_validation(report: Mapping[str, Any]) -> str:
    """Format the report of `validate` as text: a table of the signals, then counts, notes and problems."""
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report["declared"].items())
    counted = f"{report['file']}: {report['rows']:,} rows, {report['valid_rows']:,} of them readable"
    lines = [f"read with: {told}", counted, ""]
    width = max([len("signal"), *map(len, report["signals"])])
    lines.append(f"{'signal':<{width}}  polarity      acted     silent    missing     rate")
    for name, counts in report["signals"].items():
        rate = "-" if counts["rate"] is None else f"{counts['rate']:.2%}"
        lines.append(
            f"{name:<{width}}  {counts['polarity']:>+8d} {counts['acted']:>10,} {counts['silent']:>10,}"
            f" {counts['missing']:>10,} {rate:>8}"
        )
    lines += [
        "",
        f"with a preference: {report['rows_with_preference']:,} rows ({report['preferred']:,} preferred)",
        f"contradictions: {report['contradictions']:,} rows",
        f"duplicates: {report['duplicate_ids']:,} ids, {report['duplicate_texts']:,} texts",
    ]
    lines += _named("users", report["users"], report["rows_per_user"])
    lines += _named("sessions", report["sessions"], report["rows_per_session"])
    if times := report["times"]:
        span = f"{shown_time(times['first'])} to {shown_time(times['last'])} UTC"
        lines.append(f"times: {span} ({times['rows']:,} rows)")
    for name, counts in report["segments"].items():
        lines += _named(name, counts["values"], counts["rows_per_value"])
    lines += [f"left out: {count:,} rows: {reason}" for reason, count in report["skipped"].items()]
    lines += [f"note: {note}" for note in report["notes"]]
    problems = report["problems"][:20]
    lines += ["", f"problems: {report['problem_count']:,}" if problems else "no problems found"]
    lines += [f"  {problem}" for problem in problems]
    if report["problem_count"] > len(problems):
        lines.append(f"  ... and {report['problem_count'] - len(problems):,} more")
    return "\n".join(map(one_line, lines))
