"""Reading JSONL and Parquet files, and collecting what is wrong with them by file, line and field.

`read_file` reads a file once, line by line; `rows_of` parts what it found into rows and problems.
"""

from __future__ import annotations

import difflib
import functools
import gzip
import json
import reprlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

LINES = (".jsonl", ".jsonl.gz")  # ends of names of JSON Lines


class DataError(ValueError):
    """Input data that cannot be used. The text shows the first 20 problems and the number of the rest.

    Attributes:
        problems: At most the first 1000 problems, each "FILE:LINE: field: what was got; expected ...".
        total: The number of all problems.
    """

    def __init__(self, problems: Sequence[str], total: int | None = None) -> None:
        super().__init__(problems, total)
        self.problems = list(problems)
        self.total = len(self.problems) if total is None else total

    def __str__(self) -> str:
        shown = self.problems[:20]
        rest = self.total - len(shown)
        return "\n".join([*shown, f"... and {rest} more problems"] if rest else shown)


class FieldError(ValueError):
    """A problem with one field, raised by the parser of the field, which knows neither file nor line.

    Attributes:
        field: The name of the field, such as `feedback.copy`.
        text: What was got, and what was expected.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(field, text)
        self.field, self.text = field, text


class Problems:
    """The problems of one file: collected while it is read, raised together at the end.

    Attributes:
        file: The path of the file.
        kept: The text of the first 1000 problems; the others are counted only, so that memory stays small.
        total: The number of all problems.
        left_out: The lines that a reader leaves out with a warning.
    """

    LIMIT = 1000

    def __init__(self, path: Path | str) -> None:
        self.file = str(path)
        self.kept: list[str] = []
        self.total = 0
        self.left_out: list[int] = []

    def add(self, line: int | None, field: str, text: str) -> None:
        """Add a problem with a field of a line, or, if `line` is None, of the whole file."""
        self.total += 1
        if len(self.kept) < self.LIMIT:
            where = self.file if line is None else f"{self.file}:{line}"
            name = field if field.isprintable() and len(field) <= 80 else shown(field)
            self.kept.append(f"{where}: {name}: {text}")

    def put_first(self, start: int) -> None:
        """Move the problems kept since number `start` to the front: those of the whole file explain the others."""
        self.kept = self.kept[start:] + self.kept[:start]

    def raise_if_any(self) -> None:
        """Raise DataError if there are problems."""
        if self.total:
            raise DataError(self.kept, self.total)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def shown(value: object) -> str:
    """Return a value as a message shows it: in the words of JSON for constants, at most 60 characters long."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@functools.lru_cache
def closest(name: str, names: tuple[str, ...]) -> str:
    """Return a suggestion to append to a message: the name that is most alike, or an empty text if none is.

    Examples:
        >>> closest("clik", ("click", "copy"))
        "; did you mean 'click'?"
    """
    match = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_not_input(out: Path, source: Path) -> None:
    """Raise ValueError if writing `out` would replace the file that is read, by whatever name."""
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"out: {out} is the input; expected another name")


class RawRow(NamedTuple):
    """A line of a file as it was read.

    Attributes:
        line: The number of the line, from 1; in Parquet, of the row. None stands for the whole file.
        content: The object of the line, or why there is none.
    """

    line: int | None
    content: dict[str, object] | FieldError


def read_rows(path: Path | str, problems: Problems) -> Iterator[tuple[int, dict[str, object]]]:
    """Read a file: yield each line number with its object, and add what cannot be read to the problems.

    Raises:
        DataError: The file does not exist, or is no .jsonl, .jsonl.gz or .parquet file.
    """
    return rows_of(read_file(path), problems)


def rows_of(raw: Iterable[RawRow], problems: Problems) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield each line number with its object, and add the lines without an object to the problems."""
    for line, content in raw:
        if isinstance(content, FieldError):
            problems.add(line, content.field, content.text)
        elif line is not None:
            yield line, content


def read_file(path: Path | str) -> Iterator[RawRow]:
    """Read the lines of a .jsonl, .jsonl.gz or .parquet file, one after the other.

    Raises:
        DataError: The file does not exist, or is of another kind.
    """
    path = Path(path)
    yield from _parquet_rows(path) if is_parquet(path) else _json_rows(path)


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet, not JSON Lines.

    Raises:
        DataError: The file does not exist, or is of another kind.
    """
    if not path.exists():
        raise DataError([f"{path}: file: not found; expected a .jsonl, .jsonl.gz or .parquet file"])
    if not path.is_file():
        raise DataError([f"{path}: file: got a folder; expected a .jsonl, .jsonl.gz or .parquet file"])
    if path.suffix != ".parquet" and not path.name.endswith(LINES):
        raise DataError([f"{path}: file: got the name {path.name!r}; expected .jsonl, .jsonl.gz or .parquet"])
    return path.suffix == ".parquet"


def _json_rows(path: Path) -> Iterator[RawRow]:
    return (row for _, row in json_lines(path) if row is not None)


def json_lines(path: Path) -> Iterator[tuple[bytes, RawRow | None]]:
    """Read a .jsonl or .jsonl.gz file line by line: yield each line with the row it holds, or None if it is blank.

    Args:
        path: The path of the file, which exists. Where it cannot be read on, the last row says why.
    """
    line = 0
    try:
        with open_bytes(path, "rb") as handle:
            for line, raw in enumerate(handle, 1):
                encoding = "utf-8-sig" if line == 1 else "utf-8"
                yield raw, RawRow(line, _object_of(raw, encoding)) if raw.strip() else None
    except (OSError, EOFError, zlib.error) as error:
        text = f"cannot be read: {error}; expected a whole file that may be read"
        yield b"", RawRow(line + 1, FieldError("file", text))


def open_bytes(path: Path, mode: Literal["rb", "wb"], name: Path | None = None) -> IO[bytes]:
    """Open a file in binary mode, through gzip if its name (or the one that it is to have) ends in .gz."""
    return cast(IO[bytes], gzip.open(path, mode) if (name or path).suffix == ".gz" else open(path, mode))


def _object_of(raw: bytes, encoding: str) -> dict[str, object] | FieldError:
    """Parse one line of JSON."""
    try:
        content = _parse_json(raw.decode(encoding))
    except FieldError as error:
        return error.with_traceback(None)  # which would keep the line in memory
    except UnicodeDecodeError as error:
        return FieldError("text", f"byte {error.start + 1} is not UTF-8; expected UTF-8")
    return (
        content
        if isinstance(content, dict)
        else FieldError("row", f"got {shown(content)}; expected an object, {{...}}")
    )


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


def _parse_json(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except FieldError:
        raise
    except json.JSONDecodeError as error:
        raise FieldError("json", f"{error.msg}, column {error.colno}; expected one object a line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, objects thousands deep
        raise FieldError("json", f"{error}; expected one plain object a line") from None


def parquet_library(path: Path) -> Any:
    """Return the module `pyarrow.parquet`.

    Args:
        path: The file to read with it, for the message.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        text = "a Parquet file is read by pyarrow, which is not installed; pip install pyarrow, or give a .jsonl file"
        raise DataError([f"{path}: file: {text}"]) from None
    return parquet


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    parquet = parquet_library(path)
    import pyarrow

    try:
        table = parquet.read_table(path, memory_map=True)  # mapped, not copied
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield RawRow(None, FieldError("file", f"cannot be read: {error}; expected a Parquet file"))
        return
    schema = pyarrow.schema([column.with_type(_in_microseconds(column.type)) for column in table.schema])
    if schema != table.schema:
        table = table.cast(schema, safe=False)
    rows = (row for batch in table.to_batches(max_chunksize=1000) for row in batch.to_pylist())
    yield from (RawRow(line, row) for line, row in enumerate(rows, 1))


def _in_microseconds(kind: Any) -> Any:
    """Return an Arrow type with microseconds in the place of nanoseconds, which datetimes of Python do not hold."""
    import pyarrow

    if pyarrow.types.is_timestamp(kind) and kind.unit == "ns":
        return pyarrow.timestamp("us", kind.tz)
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([entry.with_type(_in_microseconds(entry.type)) for entry in kind])
    return kind
