"""Reading and checking logs of implicit feedback.

A log is JSONL or Parquet, one row an impression:
`{"id", "prompt", "completion", "feedback": {"copy": 1, "share": 0, "click": null}, "propensity"?,
"preference"?, "label_probability"?, "weight"?, "user_id"?, "session_id"?, "timestamp"?, "position"?,
"acted_at": {"copy": time}?, "platform"?, "version"?, "model"?, "arm"?, "features"?}`.
In the feedback, 1 means that the user acted, 0 that the user could have acted and did not, and null that it is missing,
which says nothing. The fields are those of `Log`; `docs/how/log.md` describes them for who writes a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from irm_fast.common.extras import need
from irm_fast.data.declarations import Declarations, Null, OnError
from irm_fast.data.gathering import Gathered, Gathering, Keep
from irm_fast.data.importing.layouts import LAYOUTS, layout_of
from irm_fast.data.log import Log
from irm_fast.data.log_checks import (
    check_features,
    check_feedback,
    check_log,
    check_recorded,
    check_unique,
    lacking_keys,
)
from irm_fast.data.log_reader import LogReader
from irm_fast.data.log_rows import action_columns
from irm_fast.data.problems import DataError, Problems
from irm_fast.data.rated import Rated, parse_rated, read_rated, warn_of_left_out
from irm_fast.data.ratings import PAIR_FIELDS, RATED_FIELDS
from irm_fast.data.reading.blocks import Block, RawRow
from irm_fast.data.reading.sources import Given, Source
from irm_fast.data.row_stream import source_of, warn_of_skipped
from irm_fast.data.rows import LOG_FIELDS
from irm_fast.data.signals import Absent, contradictions, signal_notes, without_contradictions
from irm_fast.losses import MAX_SIGNALS

need("pyarrow", "irm_fast.data.read")  # functions of the reader import it, when there is something to read

__all__ = ["DataError", "Log", "Rated", "read_log", "read_log_or_rated", "read_rated", "signal_notes"]

# Names of fields that tell a log from rated responses and pairs, or these from a log; "feedback" alone is proof enough.
# What both may hold is no sign of either: ratings may name the user, the time, and the model that wrote the answer.
_ONLY_LOGS = {"propensity", "weight", "sample_weight", "acted_at", "features", "label_probability", "position"}
_OF_BOTH = {*LOG_FIELDS.values(), "model"}  # products note the model in their logs, too
_ONLY_RATED = {key for key, name in {**RATED_FIELDS, **PAIR_FIELDS}.items() if name not in _OF_BOTH}


def read_log(
    source: Given,
    *,
    absent: Absent | Mapping[str, Absent] = "error",
    null: Null | Mapping[str, Null] = "missing",
    polarity: Mapping[str, int] | None = None,
    signals: Iterable[str] | None = None,
    counts: Iterable[str] = (),
    map: Mapping[str, str] | None = None,
    misclick: bool = False,
    drop_contradictions: bool = False,
    on_error: OnError = "fail",
    max_errors: float = 0.05,
    quarantine: Path | str | None = None,
    fold_system: bool = False,
    join_turns: bool = False,
) -> Log:
    """Read a log, of files or of memory.

    Args:
        source: What `Source` takes: the path of a file (JSON Lines, a JSON array, CSV or Parquet, packed or not), of a
            folder of such, a pattern, a list of these, "-" for standard input; or rows in memory: mappings, a
            `datasets.Dataset`, a data frame of pandas or polars.
        absent: The meaning of a feedback key that some rows lack: "silent" (nothing happened), "missing" (it is not
            known whether something happened), or "error" (there should be no such row); for all signals, or by name.
            In tables, such as Parquet, absent and null look alike: both are absent.
        null: The meaning of null, likewise: "missing" or "silent".
        polarity: +1 or -1 by the name of a signal: +1 if users give it when a response pleases them, -1 when it
            displeases them. Where not given, thumbs_down and regenerate are -1, and others +1, but that other names
            that speak of displeasure have to be declared.
        signals: The signals to read, in this order; None: all of the feedback. Those that no row has under `feedback`
            are columns of their own.
        counts: Signals whose values are numbers of actions; ["all"]: all.
        map: Where fields stand that have other names: {"prompt": "input.messages", "feedback.copy": "n_copies>0"}.
        misclick: Allow rows that contradict themselves, such as a copy and a thumbs-down of one response; a model with
            a misclick rate above 0 can explain them.
        drop_contradictions: Leave out rows that contradict themselves, with a warning that says how many there are, and
            the misclick rates that they imply where labels contradict actions.
        on_error: What becomes of rows that are wrong: "fail" refuses the log, "skip" leaves them out with a warning,
            "quarantine" writes them to a file too, each with its reason.
        max_errors: The number of wrong rows, or below 1 their share, beyond which the log is refused all the same.
        quarantine: The file of "quarantine"; by default LOG.quarantine.jsonl, beside the log.
        fold_system: Put a system turn at the beginning of the first user turn, for templates that know no system.
        join_turns: Make one turn of neighbouring turns of one speaker, for templates that want speakers to alternate.

    Returns:
        The log, its rows in the order of the source.

    Raises:
        DataError: All that is wrong with the source, by file, line and field.
        ValueError: An argument is unknown, or all rows contradict themselves and are to be left out.

    Examples:
        >>> import irm_fast
        >>> log = irm_fast.read_log("log.jsonl", absent="silent")  # doctest: +SKIP
        >>> len(log), log.signals, log.polarity  # doctest: +SKIP
        (20000, ('copy', 'thumbs_down'), (1, -1))
    """
    declared = Declarations.of(
        absent=absent,
        null=null,
        polarity=polarity,
        signals=signals,
        counts=counts,
        map=map,
        misclick=misclick or drop_contradictions,
        on_error=on_error,
        max_errors=max_errors,
        quarantine=None if quarantine is None else Path(quarantine),
        fold_system=fold_system,
        join_turns=join_turns,
    )
    log = read_declared(source, declared)
    return without_contradictions(log) if drop_contradictions else log


def read_declared(source: Given, declared: Declarations) -> Log:
    """Read a log as it is declared; `read_log` says how, and what is raised."""
    source = source_of(source, declared)
    scan = scan_log(source, source.blocks(), declared)
    return scan.accepted(declared)


def read_answers(source: Given, declared: Declarations) -> Log:
    """Read a log for its answers: their texts, users, weights and segments. It need not record any feedback.

    What it records is read all the same, and a value that is none is refused.

    Args:
        source: As of `read_log`.
        declared: How the log is to be read.

    Raises:
        DataError: All that is wrong with its rows, by file, line and field.
    """
    source = source_of(source, declared)
    return scan_log(source, source.blocks(), declared, answers_alone=True).accepted(declared)


def read_log_or_rated(source: Given, declared: Declarations | None = None) -> Log | Rated:
    """Read what holds a log, or rated responses or pairs: whichever its fields are those of.

    A log is what has feedback in any row, or a field that only logs have and none that only rated responses have. Rows
    that contradict themselves are allowed, as in `read_log` with `misclick=True`.

    Args:
        source: As of `read_log`; it is read once.
        declared: How a log is to be read.

    Raises:
        DataError: All that is wrong with it, by file, line and field; first, what it was read as.
    """
    declared = replace(declared or Declarations(), misclick=True)
    source = source_of(source, declared)
    blocks, read = source.blocks(), list[Block]()

    def rows() -> Iterator[RawRow]:
        for block in blocks:
            read.append(block)
            yield from block.rows()

    sign = "the signals are declared" if declared.signals or declared.map else _sign_of_a_log(rows())
    try:
        if sign is not None:
            scan = scan_log(source, chain(read, blocks), declared)
            return scan.accepted(declared)
        rated, problems = parse_rated(source, (row for block in read for row in block.rows()))
    except DataError as error:
        how = "rated responses, as no row has feedback" if sign is None else f"a log, as {sign}"
        raise DataError([f"{source}: read as {how}", *error.problems], error.total + 1) from error
    problems.warn_of_notes()
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
        layout = layout_of(content)
        if layout not in (None, "kto") and not LAYOUTS[layout].labels:  # KTO's are rated responses as they are
            return f"row {line} is a record of {LAYOUTS[layout].title}"
        if actions := action_columns(content):
            return f"row {line} has the column {next(iter(actions))!r}"
        if sign is None and given & _ONLY_LOGS and not given & _ONLY_RATED:
            sign = f"row {line} has {min(given & _ONLY_LOGS)!r} and no rating"
    return sign


@dataclass(frozen=True)
class Scan:
    """The findings of one pass over the rows of a log.

    Attributes:
        found: The rows that can be used.
        problems: The problems of all rows, or, where wrong rows are left out, of the others.
        rows: The number of all rows.
        absent: For each signal the number of rows with feedback that lack its key.
        contradictions: The number of rows that contradict themselves.
        duplicate_ids: The number of rows whose id an earlier row has.
        skipped: Why each row was left out that was, by its number.
    """

    found: Gathered
    problems: Problems
    rows: int
    absent: dict[str, int]
    contradictions: int
    duplicate_ids: int
    skipped: dict[int, str]

    def accepted(self, declared: Declarations) -> Log:
        """Return the log, and warn of what should be known.

        Raises:
            DataError: There are problems.
        """
        self.problems.raise_if_any()
        self.problems.warn_of_notes()
        warn_of_skipped(self.skipped, self.rows, self.problems, declared)
        return self.found.log


def scan_log(
    source: Source,
    blocks: Iterable[Block],
    declared: Declarations,
    keep: Keep = "texts",
    *,
    answers_alone: bool = False,
) -> Scan:
    """Check the rows of a log; problems are collected, not raised.

    Args:
        source: What the rows were read from.
        blocks: The rows.
        declared: How the log is to be read.
        keep: As of `Gathering`.
        answers_alone: Whether the feedback is of no interest: it may be absent, silent, or of other signals.
    """
    problems = Problems(source)
    gathering = Gathering(keep)
    reader = LogReader(declared, problems, gathering.seen)
    for part in reader.parts(blocks):
        if len(part):
            gathering.add(part)
    names = declared.signals or tuple(gathering.seen.signals)
    gathered = gathering.gathered(names[:MAX_SIGNALS], declared)

    # Row by row
    lines = gathered.part.lines
    duplicate_ids = check_unique(gathered, problems)
    if not answers_alone:
        check_recorded(gathered, problems)
    check_features(gathered.part, gathered.seen, problems)
    contradictory = contradictions(gathered.log)
    for i in [] if declared.misclick else contradictory:
        problems.add(int(lines[i]), "feedback", _contradiction(gathered.log, i))

    # Rows that are wrong, if there are few
    kept = None
    if skipped := reader.stream.leave_out():
        kept = ~np.isin(lines, list(skipped))
        gathered = gathered.subset(kept)

    # The whole log
    lacking = dict(lacking_keys(gathered, kept))
    if len(gathered.log) or not problems.total:
        check_log(gathered.log, problems)
    if len(names) > MAX_SIGNALS and not answers_alone:
        text = f"got {len(names)} signals; expected at most {MAX_SIGNALS}: --signals A,B,... chooses some"
        problems.add(None, "feedback", text)
    elif len(gathered.log) and not answers_alone:
        check_feedback(gathered.log, lacking, declared, problems)
    absences = {name: len(rows) for name, rows in lacking.items()}
    return Scan(gathered, problems, reader.stream.seen, absences, len(contradictory), duplicate_ids, skipped)


def _contradiction(log: Log, i: int) -> str:
    """Say how a row contradicts itself."""
    acted = [name for k, name in enumerate(log.signals) if log.feedback[i, k] == 1]
    stated = [f"preference {log.preference[i]}"] if log.preference[i] >= 0 else []
    return (
        f"{', '.join(acted + stated)} contradict each other; expected one side, or a misclick rate; "
        "train --contradictions drop, in Python read_log(..., drop_contradictions=True), leaves such rows out"
    )
