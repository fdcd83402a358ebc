"""Reading and checking logs of implicit feedback.

A log is JSONL or Parquet, one row an impression:
`{"id", "prompt", "completion", "feedback": {"copy": 1, "share": 0, "click": null}, "propensity"?,
"preference"?, "weight"?, "user_id"?, "session_id"?, "timestamp"?, "features"?}`.
In the feedback 1 is acted, 0 is silent (could have acted and did not), null is missing: it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irm_fast.data.files import DataError, Problems, closest, read_rows, shown
from irm_fast.data.log import Log
from irm_fast.data.rated import Rated, read_rated
from irm_fast.data.rows import LogRow, check_ids, log_row
from irm_fast.data.signals import Absent, contradictions, signal_notes
from irm_fast.losses.checks import MAX_SIGNALS

__all__ = ["DataError", "Log", "Rated", "read_log", "read_rated", "signal_notes"]

NEGATIVE_SIGNALS = {"thumbs_down", "regenerate", "dislike", "downvote", "report"}


def read_log(
    path: Path | str,
    *,
    absent: Absent = "error",
    polarity: Mapping[str, int] | None = None,
    misclick: bool = False,
) -> Log:
    """Reads a log from a .jsonl, .jsonl.gz or .parquet file.

    absent: what a key that some rows lack means: "silent" (nothing happened), "missing" (not known), "error".
    polarity: +1 or -1 by signal. Where not given, thumbs_down, regenerate, dislike, downvote and report are
    -1 and all others +1.
    misclick: allow rows whose evidence contradicts itself; a misclick rate above 0 can explain them.
    Raises DataError with all that is wrong, by file, line and field.
    """
    scan = _scan(path, absent, _checked(polarity), misclick)
    scan.problems.raise_if_any()
    return scan.log


@dataclass(frozen=True)
class _Scan:
    """What one pass over a log found: the rows that can be used, and the problems of all."""

    log: Log
    problems: Problems
    rows: int
    absent: dict[str, int]
    contradictions: int
    duplicate_ids: int


def _scan(path: Path | str, absent: Absent, polarity: Mapping[str, int], misclick: bool) -> _Scan:
    if absent not in ("error", "silent", "missing"):
        raise ValueError(f"absent: got {absent!r}; expected 'error', 'silent' or 'missing'")
    problems = Problems(path)
    rows, seen = [], 0
    for line, raw in read_rows(path, problems):
        seen += 1
        if row := log_row(line, raw, problems):
            rows.append(row)
    names = tuple(dict.fromkeys(name for row in rows for name in row.feedback or ()))
    log = _assemble(rows, names[:MAX_SIGNALS], absent, polarity)
    given = [row for row in rows if row.feedback is not None]
    lacking = {name: [r.line for r in given if name not in (r.feedback or ())] for name in log.signals}
    start = len(problems.kept)
    if len(names) > MAX_SIGNALS:
        problems.add(None, "feedback", f"got {len(names)} signals; expected at most {MAX_SIGNALS}")
    elif rows or not problems.total:
        _check_log(log, lacking if absent == "error" else {}, polarity, problems)
    problems.put_first(start)
    duplicate_ids = check_ids(((row.line, row.id) for row in rows), problems)
    _check_rows(log, rows, problems)
    contradictory = contradictions(log)
    for i in [] if misclick else contradictory:
        acted = [name for k, name in enumerate(log.signals) if log.feedback[i, k] == 1]
        stated = [f"preference {log.preference[i]}"] if log.preference[i] >= 0 else []
        text = f"{', '.join(acted + stated)} contradict each other; expected one side, or a misclick rate"
        problems.add(rows[i].line, "feedback", text)
    absences = {name: len(lines) for name, lines in lacking.items()}
    return _Scan(log, problems, seen, absences, len(contradictory), duplicate_ids)


def _checked(polarity: Mapping[str, int] | None) -> Mapping[str, int]:
    for name, sign in (polarity or {}).items():
        if isinstance(sign, bool) or sign not in (1, -1):
            raise ValueError(f"polarity: got {shown(sign)} for {name!r}; expected 1 or -1")
    return polarity or {}


def _assemble(rows: list[LogRow], signals: tuple[str, ...], absent: Absent, polarity: Mapping[str, int]) -> Log:
    by_name = {name: -1 if name.lower().replace("-", "_") in NEGATIVE_SIGNALS else 1 for name in signals}
    feature_names = tuple(next((row.features for row in rows if row.features), ()))

    # A row without a feedback object (an expert's label, say) records nothing, whatever an absent key means.
    fill = 0 if absent == "silent" else -1
    feedback = [[-1 if r.feedback is None else r.feedback.get(name, fill) for name in signals] for r in rows]
    users = [row.user_id for row in rows]
    return Log(
        ids=[row.id for row in rows],
        messages=[row.messages for row in rows],
        signals=signals,
        polarity=tuple(int(polarity.get(name, by_name[name])) for name in signals),
        feedback=np.array(feedback, np.int8).reshape(len(rows), len(signals)),
        preference=np.array([row.preference for row in rows], np.int8),
        weight=_weights([row.weight for row in rows]),
        propensity=_matrix([row.propensity for row in rows], signals),
        features=_matrix([row.features for row in rows], feature_names),
        feature_names=feature_names,
        user_ids=users if any(user is not None for user in users) else None,
    )


def _weights(values: list[float | None]) -> np.ndarray | None:
    if all(value is None for value in values):
        return None
    return np.array([1 if value is None else value for value in values], np.float32)


def _matrix(values: list[dict[str, float] | None], names: tuple[str, ...]) -> np.ndarray | None:
    """(N, names) float32, NaN where not given; None when no row has any."""
    if not any(values):
        return None
    return np.array([[(row or {}).get(name, math.nan) for name in names] for row in values], np.float32)


def _check_log(log: Log, lacking: Mapping[str, list[int]], polarity: Iterable[str], problems: Problems) -> None:
    """Reports what is wrong with the log as a whole."""
    if not len(log):
        problems.add(None, "file", "empty; expected at least one row")
        return
    for name in sorted(set(polarity) - set(log.signals)):
        text = f"the log has no signal {name!r}{closest(name, log.signals)}; expected {_listed(log.signals)}"
        problems.add(None, "polarity", text)
    for name, lines in lacking.items():
        if lines:
            text = (
                f"absent in {len(lines)} rows, first here; expected 1, 0 or null in every row. "
                "If absence means that nothing happened, say absent='silent' (--absent silent); "
                "if it means not known, absent='missing' (--absent missing)"
            )
            problems.add(lines[0], f"feedback.{name}", text)
    for k, name in enumerate(log.signals):
        if not (log.feedback[:, k] == 0).any():
            text = (
                f"not a single 0 in {len(log)} readable rows; expected some. Many logs hold only the actions "
                "that happened: add the impressions without (--absent silent reads absent keys as 0)"
            )
            problems.add(None, f"feedback.{name}", text)
    if not (log.feedback == 1).any() and not (log.preference >= 0).any():
        text = f"no action (1) and no preference in {len(log)} readable rows; expected some of either"
        problems.add(None, "feedback", text)
    if log.weight is not None and not log.weight.any():
        problems.add(None, "weight", "0 in every row; expected some above 0")


def _check_rows(log: Log, rows: list[LogRow], problems: Problems) -> None:
    """Reports rows that do not fit the rest of the log."""
    nothing = (log.feedback < 0).all(axis=1) & (log.preference < 0)
    for i, row in enumerate(rows):
        if nothing[i]:
            text = "nothing recorded and no preference; expected 1 or 0 for some signal, or a preference"
            problems.add(row.line, "feedback", text)
        for name in row.propensity or ():
            if name not in log.signals:
                text = f"no such signal{closest(name, log.signals)}; expected {_listed(log.signals)}"
                problems.add(row.line, f"propensity.{name}", text)
        if log.feature_names and set(row.features or ()) != set(log.feature_names):
            text = f"got {_listed(row.features or ())}; expected {_listed(log.feature_names)} in every row"
            problems.add(row.line, "features", text)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _sign_of_a_log(path: str | Path) -> str | None:
    """What shows that a file is a log, or None: the first field that rated responses and pairs do not have."""
    from irm_fast.data.files import Problems, read_rows
    from irm_fast.data.rated import PAIR_FIELDS, RATED_FIELDS
    from irm_fast.data.rows import LOG_FIELDS

    only_logs = LOG_FIELDS.keys() - RATED_FIELDS.keys() - PAIR_FIELDS.keys()
    only_rated = {key for key, name in {**RATED_FIELDS, **PAIR_FIELDS}.items() if name not in LOG_FIELDS.values()}
    sign = None
    for line, row in read_rows(path, Problems(path)):
        given = {key for key, value in row.items() if value is not None}
        if "feedback" in given:
            return f"row {line} has 'feedback'"
        if sign is None and given & only_logs and not given & only_rated:
            sign = f"row {line} has {min(given & only_logs)!r} and no rating"
    return sign
