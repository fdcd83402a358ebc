"""JSON Lines: the first lines one by one, which show that they are such, then blocks of whole lines."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import IO, Any, cast

import numpy as np

from irm_fast.data.problems import FieldError
from irm_fast.data.reading.blocks import Block, LineBlock, RawRow, RowBlock
from irm_fast.data.reading.json_rows import object_of
from irm_fast.data.reading.limits import MAX_LINE

ALL_WRONG = 20  # lines without one that is JSON, from which a file is of another kind
FIRST_LINES = 100  # which are read one by one, and show the fields
BLOCK = 2**20  # bytes of lines that are read at once
_PIECE = 2**18


def blocks_of_lines(file: IO[bytes], encoding: str, expected: str) -> Iterator[Block]:
    """Read JSON Lines.

    Args:
        file: The file, whose `read1` reads some bytes at least.
        encoding: Its encoding.
        expected: What files are expected, for the error.

    Raises:
        FieldError: None of the first lines is JSON.
    """
    if encoding.startswith(("utf-16", "utf-32")):
        file = io.BufferedReader(_Transcoded(file, encoding))
    raw, are_rows, number = list[RawRow](), False, 1
    while line := file.readline(MAX_LINE + 1):
        row = _row_of(number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, file)
        number += 1
        if row is None:
            continue
        raw.append(row)
        are_rows = are_rows or not _is_no_json(row.content)
        if not are_rows and len(raw) == ALL_WRONG:
            first = cast(FieldError, raw[0].content).text.split("; expected")[0]
            raise FieldError(
                "file",
                f"none of its first {ALL_WRONG} lines is an object of JSON (line {raw[0].line}: {first}); expected "
                f"{expected}",
            )
        if are_rows and len(raw) >= FIRST_LINES:
            break
    yield RowBlock(raw)
    if line:
        yield from _blocks(file, number)


def _is_no_json(content: object) -> bool:
    return isinstance(content, FieldError) and content.field in ("json", "text", "row")


def _row_of(number: int, line: bytes, file: Any) -> RawRow | None:
    """Return the row of a line, of which `MAX_LINE` + 1 bytes at most are read; None of an empty one."""
    if len(line) > MAX_LINE:
        return _too_long(number, line, file)
    return RawRow(number, object_of(line)) if line.strip() else None


def _too_long(number: int, line: bytes, file: Any) -> RawRow:
    """Return why a line is no row, and read on to its end."""
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE)
    text = f"longer than {MAX_LINE:,} bytes; expected shorter rows, or another end of lines"
    return RawRow(number, FieldError("row", text))


def _blocks(file: Any, number: int) -> Iterator[Block]:
    """Read on in blocks of whole lines.

    Args:
        file: The file, at the beginning of a line.
        number: The number of that line.
    """
    full = min(BLOCK, MAX_LINE)
    while True:
        pieces, size, failed = list[bytes](), 0, None
        try:
            while size < full and (piece := file.read1(min(_PIECE, full - size))):
                pieces.append(piece)
                size += len(piece)
        except Exception as error:  # of a damaged file; what was read before counts
            failed = error
        begun = _after_last_line(pieces)
        rest = file.readline(MAX_LINE + 1 - begun) if begun and failed is None else b""
        long = begun + len(rest) > MAX_LINE
        raw = b"".join(pieces)[: size - begun] if long or failed is not None else b"".join([*pieces, rest])
        pieces.clear()
        if raw:
            lines = int(np.count_nonzero(np.frombuffer(raw, np.uint8) == 10))
            yield LineBlock(number, raw, lines)
            number += lines
        del raw
        if failed is not None:
            raise failed
        if long:
            yield RowBlock([_too_long(number, rest, file)])
            number += 1
        if not size:
            return


def _after_last_line(pieces: list[bytes]) -> int:
    """Return the number of bytes behind the last end of a line."""
    count = 0
    for piece in reversed(pieces):
        end = piece.rfind(b"\n")
        if end >= 0:
            return count + len(piece) - end - 1
        count += len(piece)
    return count


class _Transcoded(io.RawIOBase):
    """A text of another encoding, in UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self.file, self.rest = file, b""
        self.decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            data = self.file.read(2**16)
            self.rest = self.decoder.decode(data, final=not data).encode()
            if not data:
                break
        part, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
