"""Blocks of rows as they come out of a file: lines of JSON, a part of a table, or rows that are read already.

A block is read by its columns where these are plain (`column_reader`), and else row by row, by `rows`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from irm_fast.data.problems import FieldError
from irm_fast.data.reading.columns import arrow_rows
from irm_fast.data.reading.json_rows import object_of

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 1000  # that are objects of Python at a time


class RawRow(NamedTuple):
    """A row as it was read.

    Attributes:
        line: Its number from 1: of the line of a text at which it begins; of the row in Parquet, a JSON array and in
            memory. None stands for the whole file.
        content: The object of the row, or why there is none.
    """

    line: int | None
    content: dict[str, Any] | FieldError


@dataclass(frozen=True)
class RowBlock:
    """Rows that are read one by one."""

    raw: Sequence[RawRow]

    @property
    def last(self) -> int:
        """The largest number of a row, 0 without rows."""
        return max((row.line for row in self.raw if row.line is not None), default=0)

    def rows(self, index: np.ndarray | None = None) -> Iterator[RawRow]:
        """Yield the rows, or those at the places of an index."""
        return iter(self.raw if index is None else [self.raw[i] for i in index.tolist()])

    def after(self, start: int, *, parted: bool) -> RowBlock:
        """Return the block with the numbers that its rows have after `start` others.

        Args:
            start: The number of rows before the file.
            parted: Whether the file is one of several: what is of the whole file stands at its first row then.
        """
        if not start and not parted:
            return self
        whole = start + 1 if parted else None
        return RowBlock([RawRow(whole if row.line is None else start + row.line, row.content) for row in self.raw])


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of JSON, perhaps with empty ones among them.

    Attributes:
        first: The number of the first line.
        raw: Their bytes.
        lines: The number of ends of lines.
    """

    first: int
    raw: bytes
    lines: int

    @property
    def last(self) -> int:
        """The number of the last line that is not empty."""
        end = len(self.raw)
        while end and self.raw[end - 1] in b" \t\r\n\v\f":
            end -= 1
        return self.first + self.lines - self.raw.count(b"\n", end)

    def rows(self, index: np.ndarray | None = None) -> Iterator[RawRow]:
        """Yield the rows, or, where no line is empty, those at the places of an index."""
        lines: Iterable[tuple[int, bytes]] = enumerate(io.BytesIO(self.raw), self.first)
        if index is not None:
            held = list(lines)
            lines = [held[i] for i in index.tolist()]
        for number, line in lines:
            if line.strip():
                yield RawRow(number, object_of(line))

    def halves(self) -> list[LineBlock]:
        """Return the block in two, or as it is if it is one line."""
        middle = self.raw.find(b"\n", len(self.raw) // 2) + 1
        if middle in (0, len(self.raw)):
            return [self]
        lines = self.raw.count(b"\n", 0, middle)
        first = LineBlock(self.first, self.raw[:middle], lines)
        return [first, LineBlock(self.first + lines, self.raw[middle:], self.lines - lines)]

    def after(self, start: int, *, parted: bool) -> LineBlock:
        """Return the block with the numbers that its rows have after `start` others."""
        return replace(self, first=self.first + start)


@dataclass(frozen=True)
class TableBlock:
    """Rows of a table.

    Attributes:
        first: The number of the first row.
        batch: The rows.
        whole: The row that stands for the whole file, where it is one of several.
    """

    first: int
    batch: pyarrow.RecordBatch
    whole: int | None = None

    @property
    def last(self) -> int:
        """The number of the last row."""
        return self.first + len(self.batch) - 1

    def rows(self, index: np.ndarray | None = None) -> Iterator[RawRow]:
        """Yield the rows, or those at the places of an index."""
        import pyarrow

        for start in range(0, len(self.batch) if index is None else len(index), ROWS_AT_ONCE):
            places = (np.arange(len(self.batch)) if index is None else index)[start : start + ROWS_AT_ONCE]
            batch = self.batch.slice(start, ROWS_AT_ONCE) if index is None else self.batch.take(pyarrow.array(places))
            try:
                for place, row in zip(places.tolist(), arrow_rows(batch), strict=True):
                    yield RawRow(self.first + place, row)
            except FieldError as error:
                yield RawRow(self.whole, error.with_traceback(None))
            except (pyarrow.ArrowException, ValueError) as error:  # a value that Python does not have
                yield RawRow(self.whole, FieldError("file", f"cannot be read: {error}; expected a Parquet file"))

    def after(self, start: int, *, parted: bool) -> TableBlock:
        """Return the block with the numbers that its rows have after `start` others."""
        return replace(self, first=self.first + start, whole=start + 1 if parted else None)


Block = RowBlock | LineBlock | TableBlock


def row_blocks(rows: Iterable[RawRow]) -> Iterator[RowBlock]:
    """Yield rows in blocks; an error on the way comes after those before it."""
    rows = iter(rows)
    while True:
        held: list[RawRow] = []
        try:
            held.extend(islice(rows, ROWS_AT_ONCE))
        except BaseException:
            if held:
                yield RowBlock(held)
            raise
        if not held:
            return
        yield RowBlock(held)
