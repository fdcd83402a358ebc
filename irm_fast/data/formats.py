"""The rows of one file: JSON Lines, a JSON array, CSV or Parquet, told by what the file holds and not by its name.

A file may be packed (gzip, zstd, bzip2, xz). Texts are of UTF-8, or of UTF-16 or UTF-32 with a byte order mark. What
cannot be read is a problem of its line; a file of another kind altogether is one problem.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from irm_fast.data.columns import parquet_rows
from irm_fast.data.problems import FieldError, shown

KINDS = "JSON Lines, a JSON array of objects, CSV with a header, or Parquet"
MAX_LINE = 2**24  # bytes of a row
MAX_DEPTH = 64  # of lists and objects within each other
MAX_GROWTH, ALWAYS_ALLOWED = 200, 2**30  # times the bytes of a packed file, and bytes, that it may unpack to
ALL_WRONG = 20  # lines without one that is JSON, from which a file is of another kind
TEXTS = re.compile(  # columns of CSV that stay as they are written
    r"(row|impression|user|session|response|message|request|trace)?_?(id|uuid)|prompt|messages|question|instruction|input|context|"
    r"completion|response|answer|output|generation|chosen|rejected|user|session|platform|version|model(_name)?",
    re.IGNORECASE,
)
_PACKED: dict[bytes, str] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
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


class _Refused(Exception):
    """Why a file cannot be read on."""


def read_stream(file: IO[bytes], size: int | None = None) -> Iterator[RawRow]:
    """Read the rows of an open file.

    Args:
        file: The file, open in binary mode, at its beginning.
        size: Its size in bytes, which bounds what a packed file may unpack to. None: not known.
    """
    try:
        yield from _rows_of(io.BufferedReader(cast(io.RawIOBase, file)) if not hasattr(file, "peek") else file, size)
    except _Refused as refused:
        yield RawRow(None, FieldError("file", str(refused)))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        yield RawRow(None, FieldError("file", f"cannot be read: {error}; expected a whole file that may be read"))


def _rows_of(file: Any, size: int | None) -> Iterator[RawRow]:
    kind = packing(file.peek(8)[:8])
    if kind:
        file = io.BufferedReader(cast(io.RawIOBase, _Bounded(unpacked(file, kind), size)))
    head = file.peek(2**16)[: 2**16]
    if head.startswith(b"PAR1"):
        if kind:
            raise _Refused(f"Parquet within {kind}; expected Parquet as it is, which is packed in itself")
        yield from (RawRow(line, content) for line, content in parquet_rows(file))
        return
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise _Refused(f"got {what.format(kinds=KINDS)}")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\x00" in head:
        raise _Refused(f"got bytes that are no text; expected {KINDS}, in UTF-8, or UTF-16 with a byte order mark")
    start = head.decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n")
    if start.startswith("["):
        yield from _of_array(file, encoding)
    elif not start or start.startswith("{"):
        yield from _of_lines(file, encoding)
    elif dialect := _dialect(start):
        yield from _of_csv(file, encoding, dialect)
    else:
        raise _Refused(f"got text that begins {shown(start[:40])}; expected {KINDS}")


def packing(head: bytes) -> str | None:
    """Return how a file is packed, by its first bytes: "gzip", "zstd", "bzip2", "xz", or None."""
    return next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)


def unpacked(file: IO[bytes], kind: str) -> Any:
    """Open a packed file."""
    if kind == "zstd":
        try:
            import pyarrow
        except ImportError:
            raise _Refused(
                "zstd is unpacked by pyarrow, which is not installed; pip install pyarrow, or unpack the file"
            ) from None
        return pyarrow.CompressedInputStream(file, "zstd")
    opened: Callable[[Any], Any] = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}[kind]
    return opened(file) if kind != "gzip" else gzip.GzipFile(fileobj=file)


class _Bounded(io.RawIOBase):
    """What a packed file unpacks to, up to a limit."""

    def __init__(self, file: Any, size: int | None) -> None:
        self.file, self.left = file, ALWAYS_ALLOWED + MAX_GROWTH * (size or 0)
        self.limit = self.left if size is not None else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        self.left -= len(data)
        if self.limit is not None and self.left < 0:
            raise _Refused(f"unpacks to more than {self.limit:,} bytes, {MAX_GROWTH} times its size; unpack it first")
        buffer[: len(data)] = data
        return len(data)


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
    wrong: list[RawRow] = []
    for number, raw in _lines(file, encoding):
        if isinstance(raw, FieldError):
            row = RawRow(number, raw)
        elif not raw.strip():
            continue
        else:
            row = RawRow(number, object_of(raw))
        if wrong is not None and isinstance(row.content, FieldError) and row.content.field in ("json", "text", "row"):
            wrong.append(row)
            if len(wrong) == ALL_WRONG:
                first = cast(FieldError, wrong[0].content)
                raise _Refused(
                    f"none of its first {ALL_WRONG} lines is an object of JSON (line {wrong[0].line}: "
                    f"{first.text.split('; expected')[0]}); expected {KINDS}"
                )
            continue
        yield from wrong or ()
        wrong = None  # type: ignore[assignment]
        yield row
    yield from wrong or ()


def json_lines(path: Path) -> Iterator[tuple[bytes, RawRow | None]]:
    """Read JSON Lines of UTF-8, packed by gzip or not: yield each line with the row it holds, or None if it is blank.

    Args:
        path: The path of the file, which exists. Where it cannot be read on, the last row says why.
    """
    number = 0
    try:
        with open_bytes(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                held = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                yield raw, RawRow(number, object_of(held)) if raw.strip() else None
    except (OSError, EOFError, zlib.error) as error:
        text = f"cannot be read: {error}; expected a whole file that may be read"
        yield b"", RawRow(number + 1, FieldError("file", text))


def open_bytes(path: Path, mode: Literal["rb", "wb"], name: Path | None = None) -> IO[bytes]:
    """Open a file in binary mode, through gzip if its name (or the one that it is to have) ends in .gz."""
    return cast(IO[bytes], gzip.open(path, mode) if (name or path).suffix == ".gz" else open(path, mode))


def object_of(raw: bytes) -> dict[str, Any] | FieldError:
    """Parse one line of JSON."""
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and (depth := _depth(raw)) > MAX_DEPTH:
        return FieldError("json", f"{depth} lists and objects within each other; expected at most {MAX_DEPTH}")
    try:
        content = parse_json(raw.decode())
    except FieldError as error:
        return error.with_traceback(None)  # which would keep the line in memory
    except UnicodeDecodeError as error:
        return FieldError("text", f"byte {error.start + 1} is not UTF-8; expected UTF-8")
    return (
        content
        if isinstance(content, dict)
        else FieldError("row", f"got {shown(content)}; expected an object, {{...}}")
    )


def _depth(raw: bytes) -> int:
    """Return how deep lists and objects lie within each other in JSON."""
    depth = deepest = 0
    for bracket in re.sub(rb'"(?:[^"\\]|\\.)*"|[^][{}]', b"", raw):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    """Make an object of its pairs, and refuse a key that occurs twice."""
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise FieldError(twice, "the key occurs twice in one object; expected it once")
    return parsed


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise FieldError("json", f"got {constant}; expected a finite number, or null for a missing value")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        FieldError: It is none, a key occurs twice in an object, or a number is not finite.
    """
    try:
        return _DECODER.decode(text)
    except FieldError:
        raise
    except json.JSONDecodeError as error:
        raise FieldError("json", f"{error.msg}, column {error.colno}; expected one object a line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, objects thousands deep
        raise FieldError("json", f"{error}; expected one plain object a line") from None


def _of_array(file: IO[bytes], encoding: str) -> Iterator[RawRow]:
    """Read a JSON array of objects, or of lists of them, whole."""
    text = file.read().decode(encoding)
    if _depth(text.encode()) > MAX_DEPTH + 1:
        raise _Refused(f"lists and objects within each other, deeper than {MAX_DEPTH}; expected {KINDS}")
    try:
        entries = parse_json(text.strip().removeprefix("\ufeff"))
    except FieldError as error:
        if "\n" in text.strip() and error.text.startswith("Extra data"):
            raise _Refused(f"begins with a JSON array and goes on after it; expected {KINDS}") from None
        raise _Refused(f"is no whole JSON array: {error.text.split('; expected')[0]}; expected {KINDS}") from None
    for number, entry in enumerate(entries, 1):
        wrong = FieldError("row", f"got {shown(entry)}; expected an object, {{...}}")
        yield RawRow(number, entry if isinstance(entry, dict) else wrong)


def _dialect(start: str) -> str | None:
    """Return the separator of CSV, or None if a text does not begin with a header."""
    header = start.splitlines()[0] if start else ""
    for separator in (",", "\t", ";", "|"):
        names = next(csv.reader([header], delimiter=separator), [])
        if (
            len(names) > 1
            and len(set(names)) == len(names)
            and all(re.fullmatch(r"[\w .$/-]+", name) for name in names)
        ):
            return separator
    return None


def _of_csv(file: IO[bytes], encoding: str, separator: str) -> Iterator[RawRow]:
    """Read CSV: an empty cell is an absent field; cells of columns that hold no texts are read as JSON is."""
    csv.field_size_limit(MAX_LINE)
    text = io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="")
    reader = csv.reader(text, delimiter=separator, strict=True)
    names, first = [name.strip() for name in next(reader)], 2
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _Refused(
                f"line {first}: {error}; expected CSV with quotes around cells that hold {separator!r} or new lines"
            ) from None
        if cells is None:
            return
        if len(cells) != len(names):
            if cells:
                yield RawRow(
                    first, FieldError("row", f"got {len(cells)} cells; expected {len(names)}, as the header has")
                )
            continue
        content = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell != ""}
        yield RawRow(first, content)


_CONSTANTS = {"true": True, "false": False, "null": None, "none": None, "nan": None, "na": None}


def _cell(name: str, cell: str) -> object:
    """Return what a cell of CSV holds: a number, a constant, or a text."""
    if TEXTS.fullmatch(name):
        return cell
    if cell.strip().lower() in _CONSTANTS:
        return _CONSTANTS[cell.strip().lower()]
    try:
        return json.loads(cell) if re.fullmatch(r"\s*-?\d+(\.\d+)?([eE][-+]?\d+)?\s*", cell) else cell
    except ValueError:
        return cell
