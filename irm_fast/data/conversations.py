"""The conversations of any data, read from their source whenever they are asked for, and never all in memory."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar, overload

import numpy as np

from irm_fast.data.declarations import Declarations
from irm_fast.data.joined import ListLike
from irm_fast.data.messages import Messages
from irm_fast.data.problems import DataError, Problems
from irm_fast.data.rated import warn_of_left_out
from irm_fast.data.ratings import is_pair, rated_rows
from irm_fast.data.reading.sources import Given, Source
from irm_fast.data.row_stream import RowStream, warn_of_skipped
from irm_fast.data.rows import TEXT_FIELDS, FieldNames, Fields, check_ids, name_of, plain_name

T = TypeVar("T")
_TEXTS = FieldNames(TEXT_FIELDS)
_CONVERSATIONS = FieldNames({**TEXT_FIELDS, "chosen": ("chosen",), "rejected": ("rejected",)})


def read_conversations(source: Given, declared: Declarations | None = None) -> tuple[Sequence[str], Sequence[Messages]]:
    """Read the conversations of any data that holds them: of a log, of rated responses, of pairs, or of nothing else.

    Fields other than id, prompt, completion, chosen and rejected are ignored. All rows are checked, and none is kept:
    what is returned reads the source again, a slice at a time, best from the first rows to the last.

    Args:
        source: A file, several, or rows in memory, as of `read_log`. Standard input and pipes are kept in a temporary
            file.
        declared: How the rows are to be read.

    Returns:
        The ids, and the conversations, the last turn of each the assistant's.

    Raises:
        DataError: All that is wrong with the file, by line and field.
    """
    source, declared = Source.of(source).repeatable(), declared or Declarations()
    problems = Problems(source)
    stream = RowStream(declared, problems)
    marks, lines = array("q"), array("q")  # of the rows: hashes of their ids, which are smaller than these
    for line, raw in stream.rows(source):
        for name, _ in _conversations(line, raw, declared, problems):
            marks.append(hash(name))
            lines.append(line)
    if not marks and not problems.total:
        problems.add(None, "file", "empty; expected at least one row")
    if repeated := _repeated(marks):
        names = ((line, name) for line, name, _ in _rows_of(source, declared) if hash(name) in repeated)
        check_ids(names, problems)
    skipped = stream.leave_out()
    problems.raise_if_any()
    warn_of_skipped(skipped, stream.seen, problems, declared)
    warn_of_left_out(problems)
    count = len(lines) - int(np.isin(np.asarray(lines, np.int64), list(skipped)).sum())
    reader = _Reader(source, declared, skipped, count)
    return _Column(reader, 0), _Column(reader, 1)


def _conversations(
    line: int, raw: Mapping[str, object], declared: Declarations, problems: Problems
) -> list[tuple[str, Messages]]:
    """Return the conversations of a row, each with its id: one, or the two of a pair."""
    raw = {key: value for key, value in raw.items() if plain_name(key) in _CONVERSATIONS.plain}
    if is_pair(raw):
        return [(row.id, row.messages) for row in rated_rows(line, raw, problems)]
    raw = {key: value for key, value in raw.items() if key not in ("chosen", "rejected")}
    row = Fields(line, raw, _TEXTS, problems)
    return [(row.get("id", name_of, f"row-{line}"), declared.formed(row.conversation()))]


def _rows_of(source: Source, declared: Declarations) -> Iterator[tuple[int, str, Messages]]:
    """Read a source again, whose problems are known: the line, the id and the conversation of each row."""
    problems = Problems(source)
    for line, raw in RowStream(replace(declared, on_error="fail"), problems).rows(source):
        for name, messages in _conversations(line, raw, declared, problems):
            yield line, name, messages


def _repeated(marks: Sequence[int]) -> set[int]:
    """Return the numbers that occur more than once."""
    order = np.sort(np.asarray(marks, np.int64))
    return set(order[1:][order[1:] == order[:-1]].tolist())


class _Reader:
    """Reads slices of rows: on from where it stopped, or from the beginning where earlier rows are asked for.

    Args:
        source: What they are read from.
        declared: How they are to be read.
        skipped: The lines that are left out.
        count: The number of rows.
    """

    def __init__(self, source: Source, declared: Declarations, skipped: Container[int], count: int) -> None:
        self.source, self.declared, self.skipped, self.count = source, declared, skipped, count
        self._rest: Iterator[tuple[Any, ...]] = iter(())
        self._held: list[tuple[Any, ...]] = []
        self._start, self._end = count, count  # of the rows that are held

    def read(self, start: int, stop: int) -> list[tuple[Any, ...]]:
        """Return rows, each its id and its conversation; those of the latest call are held."""
        if not self._start <= start <= stop <= self._end:
            if start < self._end:
                self._rest, self._end = self._from_the_beginning(), 0
            self._held = list(islice(self._rest, start - self._end, stop - self._end))
            self._start, self._end = start, start + len(self._held)
            if self._end != stop:
                text = f"changed since it was checked: {self._end} rows, of {self.count} then; expected it to stay"
                raise DataError([f"{self.source}: file: {text}"])
        return self._held[start - self._start : stop - self._start]

    def _from_the_beginning(self) -> Iterator[tuple[Any, ...]]:
        rows = _rows_of(self.source, self.declared)
        return ((name, messages) for line, name, messages in rows if line not in self.skipped)


class _Column(ListLike[T]):
    """The ids or the conversations of a reader."""

    def __init__(self, reader: _Reader, field: int) -> None:
        self._reader, self._field = reader, field

    def __len__(self) -> int:
        return self._reader.count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        if isinstance(places, int):
            [row] = self._reader.read(places, places + 1)
            return row[self._field]  # type: ignore[no-any-return]
        if not places:
            return []
        first, last = min(places), max(places)
        rows = self._reader.read(first, last + 1)
        return [rows[place - first][self._field] for place in places]
