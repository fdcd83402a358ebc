"""Reading JSONL and Parquet files, and collecting what is wrong with them by file, line and field."""

from __future__ import annotations

import difflib
import functools
import gzip
import json
import reprlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Input data that cannot be used.

    `problems` holds at most the first 1000, each "FILE:LINE: field: what was got; expected ...";
    `total` counts them all. `str()` shows the first 20 and the number of the rest.
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
    """What is wrong with one field; becomes a problem with the row's file and line."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(field, text)
        self.field, self.text = field, text


class Problems:
    """Collects the problems of one file; keeps the text of the first 1000, so that memory stays small."""

    LIMIT = 1000

    def __init__(self, path: Path | str) -> None:
        self.file = str(path)
        self.kept: list[str] = []
        self.total = 0
        self.left_out: list[int] = []  # lines that a reader skips with a warning

    def add(self, line: int | None, field: str, text: str) -> None:
        self.total += 1
        if len(self.kept) < self.LIMIT:
            where = self.file if line is None else f"{self.file}:{line}"
            name = field if field.isprintable() and len(field) <= 80 else shown(field)
            self.kept.append(f"{where}: {name}: {text}")

    def put_first(self, start: int) -> None:
        """Moves the problems kept since `start` to the front: those of the whole file explain the others."""
        self.kept = self.kept[start:] + self.kept[:start]

    def raise_if_any(self) -> None:
        if self.total:
            raise DataError(self.kept, self.total)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def shown(value: object) -> str:
    """A value as a message shows it: JSON's words for the constants, cut to about 60 characters."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@functools.lru_cache
def closest(name: str, names: tuple[str, ...]) -> str:
    """A suggestion to append to a message, or nothing."""
    match = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_not_input(out: Path, source: Path) -> None:
    """Raises ValueError if writing `out` would replace the file that is read, by whatever name."""
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"out: {out} is the input; expected another name")


def read_rows(path: Path | str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, object) of a .jsonl, .jsonl.gz or .parquet file; in Parquet the row number is the line.

    What cannot be read goes to `problems`. Raises DataError for a file that is absent or of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise DataError([f"{path}: file: not found; expected a .jsonl, .jsonl.gz or .parquet file"])
    if not path.is_file():
        raise DataError([f"{path}: file: got a folder; expected a .jsonl, .jsonl.gz or .parquet file"])
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_rows(path, problems)
    elif path.suffix == ".parquet":
        yield from _parquet_rows(path, problems)
    else:
        raise DataError([f"{path}: file: got the name {path.name!r}; expected .jsonl, .jsonl.gz or .parquet"])


def _json_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as handle:
            for line, raw in enumerate(handle, 1):
                if not raw.strip():
                    continue
                try:
                    row = _parse_json(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
                except FieldError as error:
                    problems.add(line, error.field, error.text)
                except UnicodeDecodeError as error:
                    problems.add(line, "text", f"byte {error.start + 1} is not UTF-8; expected UTF-8")
                else:
                    if isinstance(row, dict):
                        yield line, row
                    else:
                        problems.add(line, "row", f"got {shown(row)}; expected an object, {{...}}")
    except (OSError, EOFError, zlib.error) as error:
        problems.add(line + 1, "file", f"cannot be read: {error}; expected a whole file that may be read")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise FieldError(twice, "the key occurs twice in one object; expected it once")
    return parsed


def _refuse(constant: str) -> None:
    raise FieldError("json", f"got {constant}; expected a finite number, or null for a missing value")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def _parse_json(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except FieldError:
        raise
    except json.JSONDecodeError as error:
        text = f"{error.msg}, column {error.colno}; expected one object a line"
        raise FieldError("json", text) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, objects thousands deep
        raise FieldError("json", f"{error}; expected one plain object a line") from None


def _parquet_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, memory_map=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        problems.add(None, "file", f"cannot be read: {error}; expected a Parquet file")
        return
    rows = (row for batch in table.to_batches(max_chunksize=1024) for row in batch.to_pylist())
    yield from enumerate(rows, 1)
