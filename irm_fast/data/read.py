"""Reading and checking logs of implicit feedback.

A log is JSONL or Parquet, one row an impression:
`{"id", "prompt", "completion", "feedback": {"copy": 1, "share": 0, "click": null}, "propensity"?,
"preference"?, "label_probability"?, "weight"?, "user_id"?, "session_id"?, "timestamp"?, "position"?,
"acted_at": {"copy": time}?, "platform"?, "version"?, "model"?, "features"?}`.
In the feedback, 1 means that the user acted, 0 that the user could have acted and did not, and null that it is missing,
which says nothing. The fields are those of `Log`; `docs/log.md` describes them for who writes a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from irm_fast.data.files import DataError, Problems, RawRow, closest, read_file, rows_of, shown
from irm_fast.data.log import Log
from irm_fast.data.log_rows import LogRow, feature_kinds, log_of_rows, log_row
from irm_fast.data.rated import Rated, parse_rated, read_rated, warn_of_left_out
from irm_fast.data.ratings import PAIR_FIELDS, RATED_FIELDS
from irm_fast.data.rows import LOG_FIELDS, SEGMENTS, check_ids
from irm_fast.data.signals import Absent, contradictions, signal_notes, without_contradictions
from irm_fast.losses import MAX_SIGNALS

__all__ = ["DataError", "Log", "Rated", "read_log", "read_log_or_rated", "read_rated", "signal_notes"]

# Names of fields that tell a log from rated responses and pairs, or these from a log; "feedback" alone is proof enough.
# Segments are no sign of either: ratings of several models' answers may name the model.
_ONLY_LOGS = LOG_FIELDS.keys() - RATED_FIELDS.keys() - PAIR_FIELDS.keys() - set(SEGMENTS)
_OF_BOTH = {*LOG_FIELDS.values(), "model"}  # products note the model in their logs, too
_ONLY_RATED = {key for key, name in {**RATED_FIELDS, **PAIR_FIELDS}.items() if name not in _OF_BOTH}


def read_log(
    path: Path | str,
    *,
    absent: Absent = "error",
    polarity: Mapping[str, int] | None = None,
    misclick: bool = False,
    drop_contradictions: bool = False,
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
        drop_contradictions: Leave out rows that contradict themselves, with a warning that says how many there are, and
            the misclick rates that they imply where labels contradict actions.

    Returns:
        The log, its rows in the order of the file.

    Raises:
        DataError: All that is wrong with the file, by line and field.
        ValueError: An argument is unknown, or all rows contradict themselves and are to be left out.

    Examples:
        >>> import irm_fast
        >>> log = irm_fast.read_log("log.jsonl", absent="silent")  # doctest: +SKIP
        >>> len(log), log.signals, log.polarity  # doctest: +SKIP
        (20000, ('copy', 'thumbs_down'), (1, -1))
    """
    allowed = misclick or drop_contradictions
    scan = scan_log(path, read_file(path), absent=absent, polarity=polarity, misclick=allowed)
    scan.problems.raise_if_any()
    return without_contradictions(scan.log) if drop_contradictions else scan.log


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
    log = log_of_rows(rows, names[:MAX_SIGNALS], absent, polarity or {})
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
        text = (
            f"{', '.join(acted + stated)} contradict each other; expected one side, or a misclick rate; "
            "train --contradictions drop, in Python read_log(..., drop_contradictions=True), leaves such rows out"
        )
        problems.add(rows[i].line, "feedback", text)
    absences = {name: len(lines) for name, lines in lacking.items()}
    return Scan(log, problems, seen, absences, len(contradictory), duplicate_ids)


def _check_arguments(absent: Absent, polarity: Mapping[str, int]) -> None:
    if absent not in get_args(Absent):
        raise ValueError(f"absent: got {absent!r}; expected 'error', 'silent' or 'missing'")
    for name, sign in polarity.items():
        if isinstance(sign, bool) or sign not in (1, -1):
            raise ValueError(f"polarity: got {shown(sign)} for {name!r}; expected 1 or -1")


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
        for field, names in (("propensity", row.propensity or ()), ("acted_at", row.acted_at or ())):
            for name in names:
                if name not in log.signals:
                    text = f"no such signal{closest(name, log.signals)}; expected {_listed(log.signals)}"
                    problems.add(row.line, f"{field}.{name}", text)
                elif field == "acted_at" and log.feedback[i, log.signals.index(name)] != 1:
                    text = "got a time, but the signal did not act here; expected one only where its feedback is 1"
                    problems.add(row.line, f"{field}.{name}", text)
    _check_features(log, rows, problems)


def _check_features(log: Log, rows: list[LogRow], problems: Problems) -> None:
    """Report features that are numbers in one row and texts in another, and numbers that are not in every row."""
    kinds = feature_kinds(rows)
    for row in rows:
        features = row.features or {}
        numbers = [name for name in features if name not in kinds or kinds[name].type is float]
        for name, value in features.items():
            expected = "a finite number" if name in numbers else "text"
            if value is None and name in numbers:
                problems.add(row.line, f"features.{name}", f"got null; expected {expected}")
            elif value is not None and not isinstance(value, kinds[name].type):
                text = f"got {shown(value)}; expected {expected}, as in line {kinds[name].line}"
                problems.add(row.line, f"features.{name}", text)
        if log.feature_names and set(numbers) != set(log.feature_names):
            text = f"got {_listed(numbers)}; expected {_listed(log.feature_names)} in every row"
            problems.add(row.line, "features", text)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
