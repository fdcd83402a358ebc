"""What rows are read from: a file, several, a folder of parts, a pattern, standard input, or rows in memory."""

from __future__ import annotations

import bisect
import glob
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any, Union

from irm_fast.data.problems import DataError, FieldError, Problems, shown
from irm_fast.data.reading.blocks import Block, RawRow, RowBlock, row_blocks
from irm_fast.data.reading.columns import frame_rows, plain
from irm_fast.data.reading.formats import KINDS, read_stream
from irm_fast.data.writing.whole import disk_errors

Given = Union[str, Path, "Source", Iterable[Any]]  # what a source can be made of; see `Source`
NO_ROWS = ("_", ".")  # beginnings of names in a folder that hold no rows, such as _SUCCESS
QUARANTINE = ".quarantine.jsonl"  # the end of the name of a file of rows that are wrong, which is no part of a log


class Source:
    """Rows of one or several files, numbered through, or of memory; iterating reads them.

    Args:
        given: The path of a file, of a folder (all files in it, in the order of their names), or a pattern such as
            "log/*.parquet"; "-" for standard input; a list of such; or rows in memory: an iterable of mappings, such as
            a list or a `datasets.Dataset`, or a data frame of pandas or polars.

    Attributes:
        parts: The files, or the one kind of memory, by name.

    Raises:
        DataError: There is no such file, or nothing of which rows can be read.
    """

    def __init__(self, given: Given) -> None:
        self.rows: Iterable[Any] | None = None
        if isinstance(given, (str, Path)):
            self.name, self.parts = str(given), _files(given)
        elif hasattr(given, "columns") and (hasattr(given, "iter_rows") or hasattr(given, "iloc")):
            self.name, self.parts, self.rows = "data frame", ["data frame"], frame_rows(given)
        else:
            entries: Any = given if hasattr(given, "__len__") else list(given)  # type: ignore[arg-type]
            if len(entries) and all(isinstance(entry, (str, Path)) for entry in entries):
                self.parts = [part for entry in entries for part in _files(entry)]
                self.name = ", ".join(map(str, entries))
            else:
                self.name, self.parts, self.rows = "rows", ["rows"], entries
        self._starts: list[int] = []
        self._kept: dict[str, IO[bytes]] = {}  # of parts that can be read once

    @classmethod
    def of(cls, given: Given) -> Source:
        """Return a source of what is given, which may be one."""
        return given if isinstance(given, Source) else cls(given)

    def __str__(self) -> str:
        return self.name

    def repeatable(self) -> Source:
        """Return this source, which can be read as often as is wanted from now on.

        What standard input and pipes give is kept in temporary files, which have no name and end with the source.
        """
        if isinstance(self.rows, Iterator):
            self.rows = list(self.rows)
        for part in self.parts if self.rows is None else ():
            if part not in self._kept and not (part != "-" and Path(part).is_file()):
                stream = nullcontext(sys.stdin.buffer) if part == "-" else open(part, "rb")  # noqa: SIM115  # closed below
                with stream as file, disk_errors(Path(gettempdir())):
                    self._kept[part] = TemporaryFile()  # noqa: SIM115  # open as long as the source
                    shutil.copyfileobj(file, self._kept[part])
        return self

    def __iter__(self) -> Iterator[RawRow]:
        for block in self.blocks():
            yield from block.rows()

    def blocks(self) -> Iterator[Block]:
        """Read the rows in blocks, numbered through."""
        self._starts, last = [], 0
        for part in self.parts:
            start = last
            self._starts.append(start)
            for read in self._blocks(part):
                block = read.after(start, parted=len(self.parts) > 1)
                last = max(last, block.last)
                yield block

    def _blocks(self, part: str) -> Iterator[Block]:
        if self.rows is not None:
            yield from row_blocks(RawRow(number, _in_memory(row)) for number, row in enumerate(self.rows, 1))
        elif part in self._kept:
            self._kept[part].seek(0)
            yield from read_stream(self._kept[part])
        elif part == "-":
            yield from read_stream(sys.stdin.buffer)
        else:
            try:
                with open(part, "rb") as file:
                    yield from read_stream(file)
            except OSError as error:
                wrong = FieldError("file", f"cannot be read: {error}; expected a file that may be read")
                yield RowBlock([RawRow(None, wrong)])

    def place(self, line: int) -> str:
        """Return where a row stands, by its number: as FILE:LINE."""
        part = bisect.bisect_left(self._starts, line) - 1 if self._starts else 0
        start = self._starts[part] if self._starts else 0
        return f"{self.parts[part]}:{line - start}"


def _files(given: str | Path) -> list[str]:
    """Return the paths that a path, a folder or a pattern stands for."""
    path = Path(given).expanduser()
    if str(given) == "-":
        return ["-"]
    if path.is_dir():
        within = (part for part in path.rglob("*") if part.is_file() and not part.name.endswith(QUARANTINE))
        found = sorted(str(p) for p in within if not any(n.startswith(NO_ROWS) for n in p.relative_to(path).parts))
        if not found:
            raise DataError([f"{given}: file: got a folder without files; expected parts of a log: {KINDS}"])
        return found
    if path.exists():
        return [str(path)]
    found = sorted(match for match in glob.glob(str(path), recursive=True) if not match.endswith(QUARANTINE))
    if not found:
        raise DataError([f"{given}: file: not found; expected a file, a folder or a pattern: {KINDS}"])
    return [part for match in found for part in _files(match)]


def _in_memory(row: object) -> dict[str, Any] | FieldError:
    if not isinstance(row, Mapping):
        return FieldError("row", f"got {shown(row)}; expected a mapping of fields, or a path")
    return {str(name): plain(value) for name, value in row.items()}


def read_rows(given: Given, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a source: yield each row with its number, and add what cannot be read to the problems.

    Raises:
        DataError: As `Source`.
    """
    return rows_of(Source.of(given), problems)


def rows_of(raw: Iterable[RawRow], problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row with its number, and add those without an object to the problems."""
    for line, content in raw:
        if isinstance(content, FieldError):
            problems.add(line, content.field, content.text)
        elif line is not None:
            yield line, content


def check_not_input(out: Path, source: Given) -> None:
    """Raise ValueError if writing `out` would replace a file that is read, by whatever name."""
    for part in Source.of(source).parts:
        if out.exists() and Path(part).exists() and out.samefile(part):
            raise ValueError(f"out: {out} is the input; expected another name")
