"""Reading and checking logs of implicit feedback.

A log is JSONL or Parquet, one row an impression:
`{"id", "prompt", "completion", "feedback": {"copy": 1, "share": 0, "click": null}, "propensity"?,
"preference"?, "weight"?, "user_id"?, "session_id"?, "timestamp"?, "features"?}`.
In the feedback, 1 means that the user acted, 0 that the user could have acted and did not, and null that it is missing,
which says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from irm_fast.data.files import DataError, Problems, RawRow, closest, read_file, rows_of, shown
from irm_fast.data.log import Log
from irm_fast.data.rated import Rated, parse_rated, read_rated, warn_of_left_out
from irm_fast.data.ratings import PAIR_FIELDS, RATED_FIELDS
from irm_fast.data.rows import LOG_FIELDS, LogRow, check_ids, log_row
from irm_fast.data.signals import Absent, contradictions, signal_notes
from irm_fast.losses import MAX_SIGNALS

__all__ = ["DataError", "Log", "Rated", "read_log", "read_log_or_rated", "read_rated", "signal_notes"]

NEGATIVE_SIGNALS = {"thumbs_down", "regenerate", "dislike", "downvote", "report"}
# Names of fields that tell a log from rated responses and pairs, or these from a log; "feedback" alone is proof enough.
_ONLY_LOGS = LOG_FIELDS.keys() - RATED_FIELDS.keys() - PAIR_FIELDS.keys()
_OF_BOTH = {*LOG_FIELDS.values(), "model"}  # products note the model in their logs, too
_ONLY_RATED = {key for key, name in {**RATED_FIELDS, **PAIR_FIELDS}.items() if name not in _OF_BOTH}


def read_log(
    path: Path | str,
    *,
    absent: Absent = "error",
    polarity: Mapping[str, int] | None = None,
    misclick: bool = False,
) -> Log:
    """Read a log from a .jsonl, .jsonl.gz or .parquet file.

    Args:
        path: The path of the file.
        absent: The meaning of a feedback key that some rows lack: "silent" (nothing happened), "missing" (it is not
            known whether something happened), or "error" (there should be no such row).
        polarity: +1 or -1 by the name of a signal: +1 if users give it when a response pleases them, -1 when it
            displeases them. Where not given, thumbs_down, regenerate, dislike, downvote and report are -1 and all
            others +1.
        misclick: Allow rows that contradict themselves, such as a copy and a thumbs-down of one response; a model with
            a misclick rate above 0 can explain them.

    Returns:
        The log, its rows in the order of the file.

    Raises:
        DataError: All that is wrong with the file, by line and field.
        ValueError: An argument is unknown.

    Examples:
        >>> import irm_fast
        >>> log = irm_fast.read_log("log.jsonl", absent="silent")  # doctest: +SKIP
        >>> len(log), log.signals, log.polarity  # doctest: +SKIP
        (20000, ('copy', 'thumbs_down'), (1, -1))
    """
    scan = scan_log(path, read_file(path), absent=absent, polarity=polarity, misclick=misclick)
    scan.problems.raise_if_any()
    return scan.log


def read_log_or_rated(path: Path | str, *, absent: Absent = "error") -> Log | Rated:
    """Read a file that holds a log, or rated responses or pairs: whichever its fields are those of.

    A log is a file in which any row has feedback, or a field that only logs have and none that only rated responses
    have. Rows that contradict themselves are allowed, as in `read_log` with `misclick=True`.

    Args:
        path: The path of the file, which is read once.
        absent: As of `read_log`.

    Raises:
        DataError: All that is wrong with the file, by line and field; first, what it was read as.
    """
    raw = list(read_file(path))
    sign = _sign_of_a_log(raw)
    try:
        if sign is not None:
            scan = scan_log(path, raw, absent=absent, misclick=True)
            scan.problems.raise_if_any()
            return scan.log
        rated, problems = parse_rated(path, raw)
    except DataError as error:
        how = "rated responses, as no row has feedback" if sign is None else f"a log, as {sign}"
        raise DataError([f"{path}: read as {how}", *error.problems], error.total + 1) from error
    warn_of_left_out(problems)
    return rated


def _sign_of_a_log(raw: Iterable[RawRow]) -> str | None:
    """Say what shows that these are the rows of a log: the first field that rated responses and pairs do not have."""
    sign = None
    for line, content in raw:
        if not isinstance(content, dict):
            continue
        given = {key for key, value in content.items() if value is not None}
        if "feedback" in given:
            return f"row {line} has 'feedback'"
        if sign is None and given & _ONLY_LOGS and not given & _ONLY_RATED:
            sign = f"row {line} has {min(given & _ONLY_LOGS)!r} and no rating"
    return sign


@dataclass(frozen=True)
class Scan:
    """The findings of one pass over the rows of a log.

    Attributes:
        log: The rows that can be used.
        problems: The problems of all rows.
        rows: The number of all rows.
        absent: For each signal the number of rows with feedback that lack its key.
        contradictions: The number of rows that contradict themselves.
        duplicate_ids: The number of rows whose id an earlier row has.
    """

    log: Log
    problems: Problems
    rows: int
    absent: dict[str, int]
    contradictions: int
    duplicate_ids: int


def scan_log(
    path: Path | str,
    raw: Iterable[RawRow],
    *,
    absent: Absent = "error",
    polarity: Mapping[str, int] | None = None,
    misclick: bool = False,
) -> Scan:
    """Check the objects that lines of a log hold; problems are collected, not raised. Arguments as of `read_log`."""
    _check_arguments(absent, polarity or {})
    problems = Problems(path)
    rows, seen = [], 0
    for line, content in rows_of(raw, problems):
        seen += 1
        if row := log_row(line, content, problems):
            rows.append(row)
    names = tuple(dict.fromkeys(name for row in rows for name in row.feedback or ()))
    log = _assemble(rows, names[:MAX_SIGNALS], absent, polarity or {})
    given = [row for row in rows if row.feedback is not None]
    lacking = {name: [r.line for r in given if name not in (r.feedback or ())] for name in log.signals}

    # The whole log
    start = len(problems.kept)
    if len(names) > MAX_SIGNALS:
        problems.add(None, "feedback", f"got {len(names)} signals; expected at most {MAX_SIGNALS}")
    elif rows or not problems.total:
        _check_log(log, lacking if absent == "error" else {}, polarity or {}, problems)
    problems.put_first(start)

    # Row by row
    duplicate_ids = check_ids(((row.line, row.id) for row in rows), problems)
    _check_rows(log, rows, problems)
    contradictory = contradictions(log)
    for i in [] if misclick else contradictory:
        acted = [name for k, name in enumerate(log.signals) if log.feedback[i, k] == 1]
        stated = [f"preference {log.preference[i]}"] if log.preference[i] >= 0 else []
        text = f"{', '.join(acted + stated)} contradict each other; expected one side, or a misclick rate"
        problems.add(rows[i].line, "feedback", text)
    absences = {name: len(lines) for name, lines in lacking.items()}
    return Scan(log, problems, seen, absences, len(contradictory), duplicate_ids)


def _check_arguments(absent: Absent, polarity: Mapping[str, int]) -> None:
    if absent not in get_args(Absent):
        raise ValueError(f"absent: got {absent!r}; expected 'error', 'silent' or 'missing'")
    for name, sign in polarity.items():
        if isinstance(sign, bool) or sign not in (1, -1):
            raise ValueError(f"polarity: got {shown(sign)} for {name!r}; expected 1 or -1")


def _assemble(rows: list[LogRow], signals: tuple[str, ...], absent: Absent, polarity: Mapping[str, int]) -> Log:
    """Put the rows together as the arrays of a log."""
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
    """Return weights (float32) of shape (N,), 1 where not given; None if no row has one."""
    if all(value is None for value in values):
        return None
    return np.array([1 if value is None else value for value in values], np.float32)


def _matrix(values: list[dict[str, float] | None], names: tuple[str, ...]) -> np.ndarray | None:
    """Return numbers (float32) of shape (N, names), NaN where not given; None if no row has any."""
    if not any(values):
        return None
    return np.array([[(row or {}).get(name, math.nan) for name in names] for row in values], np.float32)


def _check_log(log: Log, lacking: Mapping[str, list[int]], polarity: Iterable[str], problems: Problems) -> None:
    """Report what is wrong with the log as a whole."""
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
    """Report rows that do not fit the rest of the log."""
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
