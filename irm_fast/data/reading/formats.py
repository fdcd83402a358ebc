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
from typing import IO, Any, cast

from irm_fast.data.problems import FieldError, shown
from irm_fast.data.reading.blocks import Block, RawRow, RowBlock, TableBlock, row_blocks
from irm_fast.data.reading.compression import packing, unpacked
from irm_fast.data.reading.csv_rows import rows_of_csv, separator_of
from irm_fast.data.reading.json_lines import blocks_of_lines
from irm_fast.data.reading.json_rows import entries_of
from irm_fast.data.reading.parquet_files import parquet_batches

KINDS = "JSON Lines, a JSON array of objects, CSV with a header, or Parquet"
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


def _refused(why: str) -> FieldError:
    """Return the error of a file that cannot be read on."""
    return FieldError("file", why)


def read_stream(file: IO[bytes]) -> Iterator[Block]:
    """Read the rows of an open file, in blocks.

    Args:
        file: The file, open in binary mode, at its beginning.
    """
    try:
        yield from _blocks_of(io.BufferedReader(cast(io.RawIOBase, file)) if not hasattr(file, "peek") else file)
    except FieldError as refused:
        yield RowBlock([RawRow(None, refused.with_traceback(None))])
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        wrong = FieldError("file", f"cannot be read: {error}; expected a whole file that may be read")
        yield RowBlock([RawRow(None, wrong)])


def _blocks_of(file: Any) -> Iterator[Block]:
    kind = packing(file.peek(8)[:8])
    if kind:
        file = unpacked(file, kind)
    head = file.peek(2**16)[: 2**16]
    if head.startswith(b"PAR1"):
        if kind:
            raise _refused(f"Parquet within {kind}; expected Parquet as it is, which is packed in itself")
        yield from _of_parquet(file)
        return
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise _refused(f"got {what.format(kinds=KINDS)}")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\x00" in head:
        raise _refused(f"got bytes that are no text; expected {KINDS}, in UTF-8, or UTF-16 with a byte order mark")
    start = head.decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n")
    if start.startswith("["):
        yield from row_blocks(_of_array(file, encoding))
    elif not start or start.startswith("{"):
        yield from blocks_of_lines(file, encoding, KINDS)
    elif separator := separator_of(start):
        yield from row_blocks(starmap(RawRow, rows_of_csv(file, encoding, separator)))
    else:
        raise _refused(f"got text that begins {shown(start[:40])}; expected {KINDS}")


def _of_parquet(file: IO[bytes]) -> Iterator[Block]:
    """Read a Parquet file."""
    first = 1
    for batch in parquet_batches(file):
        yield TableBlock(first, batch)
        first += len(batch)


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
