"""Setting signals to null where their silence is none: what the check "broken button" of a diagnosis advises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from irm_fast.data.declarations import Declarations
from irm_fast.data.log import Log
from irm_fast.data.problems import Problems
from irm_fast.data.read import read_declared
from irm_fast.data.writing.rewriting import rewritten
from irm_fast.diagnostics.arguments import session_numbers, texts, user_numbers
from irm_fast.diagnostics.segments import part_named
from irm_fast.diagnostics.subject import DiagnosedLog

FIELDS = ("feedback", "acted_at")
WHERE = (
    "where platform=android, on 2025-04-23, from 7:00 to 8:00 UTC, in the last row of a session, "
    "before the last row of a session, before 2025-04-23 10:00:00 UTC, or after it"
)


class Masked(NamedTuple):
    """What became of a log.

    Attributes:
        rows: The number of its rows.
        silent: By phrase, the number of entries that were 0 and are null.
        acted: By phrase, the number of entries that were 1 and are null.
        left_out: The number of rows that were left out, as nothing is recorded of them any more.
    """

    rows: int
    silent: Mapping[str, int]
    acted: Mapping[str, int]
    left_out: int


def mask_log(data: Path, out: Path, phrases: Sequence[str], *, declared: Declarations | None = None) -> Masked:
    """Write a log with null for signals in parts of it, whether they acted there or not. All else stays as it is.

    A row that records nothing any more and has no preference is left out.

    Args:
        data: The log: a .jsonl, .jsonl.gz or .parquet file.
        out: The file to write, of the same kind. One of this name is replaced.
        phrases: Signals and a part of the log, as a diagnosis has them: "share where platform=android".
        declared: How the log is to be read.

    Raises:
        DataError: The log cannot be read. Nothing is written.
        ValueError: A phrase names no signal or no part of this log, or null is declared to be silence.

    Examples:
        >>> mask_log(Path("log.jsonl"), Path("masked.jsonl"), ["share where platform=android"])  # doctest: +SKIP
    """
    declared = replace(declared or Declarations(), misclick=True)
    log = read_declared(data, declared)
    silent_nulls = [name for name in log.signals if declared.fill(name) == "silent" or declared.null_is_silent(name)]
    if silent_nulls and (data.suffix == ".parquet" or declared.null_is_silent(silent_nulls[0])):
        raise ValueError(
            f"mask: null of {silent_nulls[0]} is silence here (in Parquet an absent key is null, too), and would mask "
            "nothing; expected absent and null to be missing, or a log of JSON Lines in which silence is 0"
        )
    nulls = np.zeros(log.feedback.shape, bool)
    silent, acted = dict[str, int](), dict[str, int]()
    for phrase in phrases:
        entries = _entries(log, phrase)
        silent[phrase], acted[phrase] = (int((log.feedback[entries] == value).sum()) for value in (0, 1))
        nulls |= entries
    recorded = ((log.feedback >= 0) & ~nulls).any(axis=1) | (log.preference >= 0)
    rows = iter(zip(nulls, recorded.tolist(), strict=True))

    def change(line: int, raw: Mapping[str, object]) -> dict[str, object] | None:
        mask, kept = next(rows)
        lost = {name: None for name, null in zip(log.signals, mask.tolist(), strict=True) if null}
        return _without(raw, lost) if kept else None

    with rewritten(data, out, change, {(name,): None for name in FIELDS}, FIELDS, Problems(data)):
        return Masked(len(log), silent, acted, int((~recorded).sum()))


def _without(raw: Mapping[str, object], lost: Mapping[str, None]) -> dict[str, object]:
    """Return the fields of a row that change where these signals become null."""
    found: dict[str, object] = {}
    for name in FIELDS if lost else ():
        value = raw.get(name)
        if isinstance(value, Mapping):
            found[name] = {**value, **(lost if name == "feedback" else {k: None for k in lost if k in value})}
    return found


def _entries(log: Log, phrase: str) -> np.ndarray:
    """Return a mask (N, K) of the entries of the feedback that a phrase names, or raise ValueError."""
    found = part_named(_diagnosed(log), phrase)
    if found is None:
        raise ValueError(
            f"mask: got {phrase!r}; expected signals and a part of this log, as irm-fast diagnose has them: 'share "
            f"{WHERE}'"
        )
    names = found[0].split(", ")
    unknown = [name for name in names if name not in log.signals]
    if unknown:
        raise ValueError(f"mask: the log has no signal {unknown[0]!r}; expected {', '.join(log.signals)}")
    entries: np.ndarray = found[1][:, None] & np.isin(log.signals, names)
    return entries


def _diagnosed(log: Log) -> DiagnosedLog:
    """Return a log as diagnoses have it, without what belongs to a model."""
    return DiagnosedLog(
        names=log.signals,
        designs=(),
        feedback=log.feedback,
        polarity=np.array(log.polarity, int),
        misclick=np.zeros(len(log.signals)),
        preference=log.preference,
        users=user_numbers(log.user_ids, len(log))[0],
        known=np.full(log.feedback.shape, np.nan),
        sessions=session_numbers(log.session_ids, log.user_ids, len(log)),
        times=log.times,
        segments=texts(log.segments),
    )
