"""The rows of one file: JSON Lines, a JSON array, CSV or Parquet, told by what the file holds and not by its name.

A file may be packed (gzip, zstd, bzip2, xz). Texts are of UTF-8, or of UTF-16 or UTF-32 with a byte order mark. What
cannot be read is a problem of its line; a file of another kind altogether is one problem.
"""

from __future__ import annotations

import codecs
import io
import lzma
import zlib
from collections.abc import Iterator
from itertools import starmap
from typing import IO, Any, NamedTuple, cast

from irm_fast.data.columns import parquet_rows
from irm_fast.data.compression import packing, unpacked
from irm_fast.data.csv_rows import rows_of_csv, separator_of
from irm_fast.data.json_rows import entries_of, object_of
from irm_fast.data.limits import MAX_LINE
from irm_fast.data.problems import FieldError, shown

KINDS = "JSON Lines, a JSON array of objects, CSV with a header, or Parquet"
ALL_WRONG = 20  # lines without one that is JSON, from which a file is of another kind
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; expected {kinds}: unpack it, or save the sheet as CSV",
    b"%PDF": "a PDF; expected {kinds}",
    b"SQLite format 3": "an SQLite database; expected {kinds}: export the table as CSV",
    b"ORC": "an ORC file; expected {kinds}: write it as Parquet",
    b"Obj\x01": "an Avro file; expected {kinds}: write it as Parquet",
    b"ARROW1": "an Arrow IPC (Feather) file; expected {kinds}: write it as Parquet",
    b"<": "XML or HTML; expected {kinds}",
}
_MARKS = {  # the longer ones first: that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class RawRow(NamedTuple):
    """A row as it was read.

    Attributes:
        line: Its number from 1: of the line of a text at which it begins; of the row in Parquet, a JSON array and in
            memory. None stands for the whole file.
        content: The object of the row, or why there is none.
    """

    line: int | None
    content: dict[str, Any] | FieldError


def _refused(why: str) -> FieldError:
    """Return the error of a file that cannot be read on."""
    return FieldError("file", why)


def read_stream(file: IO[bytes]) -> Iterator[RawRow]:
    """Read the rows of an open file.

    Args:
        file: The file, open in binary mode, at its beginning.
    """
    try:
        yield from _rows_of(io.BufferedReader(cast(io.RawIOBase, file)) if not hasattr(file, "peek") else file)
    except FieldError as refused:
        yield RawRow(None, refused.with_traceback(None))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        yield RawRow(None, FieldError("file", f"cannot be read: {error}; expected a whole file that may be read"))


def _rows_of(file: Any) -> Iterator[RawRow]:
    kind = packing(file.peek(8)[:8])
    if kind:
        file = unpacked(file, kind)
    head = file.peek(2**16)[: 2**16]
    if head.startswith(b"PAR1"):
        if kind:
            raise _refused(f"Parquet within {kind}; expected Parquet as it is, which is packed in itself")
        yield from starmap(RawRow, parquet_rows(file))
        return
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise _refused(f"got {what.format(kinds=KINDS)}")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\x00" in head:
        raise _refused(f"got bytes that are no text; expected {KINDS}, in UTF-8, or UTF-16 with a byte order mark")
    start = head.decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n")
    if start.startswith("["):
        yield from _of_array(file, encoding)
    elif not start or start.startswith("{"):
        yield from _of_lines(file, encoding)
    elif separator := separator_of(start):
        yield from starmap(RawRow, rows_of_csv(file, encoding, separator))
    else:
        raise _refused(f"got text that begins {shown(start[:40])}; expected {KINDS}")


def _lines(file: IO[bytes], encoding: str) -> Iterator[tuple[int, bytes | FieldError]]:
    """Yield each line with its number, in UTF-8."""
    if encoding.startswith(("utf-16", "utf-32")):
        file = io.BufferedReader(_Transcoded(file, encoding))
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) <= MAX_LINE:
            yield number, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(MAX_LINE)
        yield (
            number,
            FieldError("row", f"longer than {MAX_LINE:,} bytes; expected shorter rows, or another end of lines"),
        )


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


def _of_lines(file: IO[bytes], encoding: str) -> Iterator[RawRow]:
    """Read JSON Lines."""
    wrong, are_rows = list[RawRow](), False
    for number, raw in _lines(file, encoding):
        if isinstance(raw, bytes) and not raw.strip():
            continue
        content = object_of(raw) if isinstance(raw, bytes) else raw
        if are_rows:
            yield RawRow(number, content)
        elif isinstance(content, FieldError) and content.field in ("json", "text", "row"):
            wrong.append(RawRow(number, content))
            if len(wrong) == ALL_WRONG:
                line, first = wrong[0]
                why = cast(FieldError, first).text.split("; expected")[0]
                raise _refused(
                    f"none of its first {ALL_WRONG} lines is an object of JSON (line {line}: {why}); expected {KINDS}"
                )
        else:
            are_rows = True
            yield from (*wrong, RawRow(number, content))
    if not are_rows:
        yield from wrong


def _of_array(file: IO[bytes], encoding: str) -> Iterator[RawRow]:
    """Read a JSON array of objects."""
    number = 0
    try:
        for number, entry in enumerate(entries_of(file, encoding), 1):
            wrong = FieldError("row", f"got {shown(entry)}; expected an object, {{...}}")
            yield RawRow(number, entry if isinstance(entry, dict) else wrong)
    except FieldError as error:
        if error.text == "Extra data":
            raise _refused(f"begins with a JSON array and goes on after it; expected {KINDS}") from None
        why = error.text.split("; expected")[0]
        raise _refused(f"is no whole JSON array: {why}, in entry {number + 1}; expected {KINDS}") from None
