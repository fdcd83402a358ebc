"""The rows of CSV: its separator, and what its cells hold."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any, cast

from irm_fast.data.problems import FieldError
from irm_fast.data.reading.limits import MAX_LINE

TEXTS = re.compile(  # columns of CSV that stay as they are written
    r"(row|impression|user|session|response|message|request|trace)?_?(id|uuid)|prompt|messages|question|instruction|input|context|"
    r"completion|response|answer|output|generation|chosen|rejected|user|session|platform|version|model(_name)?",
    re.IGNORECASE,
)


def separator_of(start: str) -> str | None:
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


def rows_of_csv(file: IO[bytes], encoding: str, separator: str) -> Iterator[tuple[int, dict[str, Any] | FieldError]]:
    """Read CSV: an empty cell is an absent field; cells of columns that hold no texts are read as JSON is."""
    csv.field_size_limit(MAX_LINE)
    text = io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="")
    reader = csv.reader(text, delimiter=separator, strict=True)
    names = [name.strip() for name in _cells(reader, separator) or []]
    while True:
        first = reader.line_num + 1
        cells = _cells(reader, separator)
        if cells is None:
            return
        if len(cells) != len(names):
            if cells:
                yield first, FieldError("row", f"got {len(cells)} cells; expected {len(names)}, as the header has")
            continue
        content = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell != ""}
        yield first, content


def _cells(reader: Any, separator: str) -> list[str] | None:
    """Return the cells of the next line, the header's too, or None at the end."""
    first = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        why = f"line {first}: {error}; expected CSV with quotes around cells that hold {separator!r} or new lines"
        raise FieldError("file", why) from None


_CONSTANTS = {"true": True, "false": False, "null": None, "none": None, "nan": None, "na": None}


def _cell(name: str, cell: str) -> object:
    """Return what a cell of CSV holds: a number, a constant, or a text."""
    if TEXTS.fullmatch(name):
        return cell
    if cell.strip().lower() in _CONSTANTS:
        return _CONSTANTS[cell.strip().lower()]
    try:
        return json.loads(cell) if re.fullmatch(r"\s*-?\d{1,300}(\.\d+)?([eE][-+]?\d+)?\s*", cell) else cell
    except ValueError:
        return cell
