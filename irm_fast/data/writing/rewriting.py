"""Writing a log anew, row by row: some fields of some rows are changed, and all else stays as it is."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast

from irm_fast.data.importing.layouts import LAYOUTS, layout_of
from irm_fast.data.problems import DataError, FieldError, Problems
from irm_fast.data.reading.blocks import RawRow
from irm_fast.data.reading.json_rows import object_of
from irm_fast.data.reading.sources import rows_of
from irm_fast.data.writing.whole import whole_path

Fields = Mapping[str, object]
Kinds = Mapping[tuple[str, ...], str | None]
Change = Callable[[int, Fields], Fields | None]
LINES = (".jsonl", ".jsonl.gz")  # ends of names of JSON Lines
ROWS = 65_536  # of a Parquet file in memory at a time


@contextmanager
def rewritten(
    data: Path, out: Path, change: Change, kinds: Kinds, read: Collection[str], problems: Problems
) -> Iterator[None]:
    """Write a log with changes, reading it in passing. Lines of JSON that do not change keep their bytes.

    The file takes its name at the end of the `with` block; after an error within it nothing is left of it.

    Args:
        data: The log: a .jsonl, .jsonl.gz or .parquet file.
        out: The file to write, of the same kind. One of this name is replaced.
        change: Returns, for the number of a line and the fields of its row, the fields that change, or None to leave
            the row out. It is called once for each row, in order.
        kinds: The fields that may change, each by all its spellings, with the type of the column that a Parquet file
            gets if it has none of these, such as "int8"; None to add none.
        read: The fields that `change` reads; of a Parquet file it is given these alone.
        problems: Gets the problems of the log, to which `change` may add.

    Raises:
        DataError: There are problems. Nothing is written.
        ValueError: The name of the file to write is of another kind than the log.
    """
    parquet = is_parquet(data)
    if not out.name.endswith(".parquet" if parquet else LINES):
        expected = ".parquet" if parquet else " or ".join(LINES)
        raise ValueError(f"out: got {out.name!r}; expected a name that ends in {expected}, as that of the log")
    with whole_path(out) as unfinished:
        if parquet:
            _write_parquet(data, unfinished, change, kinds, read)
        else:
            _write_json(data, unfinished, out, change, problems)
        problems.raise_if_any()
        yield


def spelled(names: Collection[str], group: Sequence[str]) -> str:
    """Return which of the spellings of a field is among the names, or else the first."""
    return next((name for name in group if name in names), group[0])


def _write_json(data: Path, unfinished: Path, out: Path, change: Change, problems: Problems) -> None:
    with _open_bytes(unfinished, "wb", out) as file:
        for raw, row in _json_lines(data):
            for line, content in rows_of([] if row is None else [row], problems):
                if name := layout_of(content):
                    text = (
                        f"is one of {LAYOUTS[name].title}; expected one of a log, which irm-fast import {name} writes"
                    )
                    problems.add(line, "row", text)
                    continue
                new = change(line, content)
                if new is None:
                    raw = b""
                elif new:
                    # Half a surrogate pair, which UTF-8 cannot hold, may stand in the line as an escape
                    text = json.dumps({**content, **new}, ensure_ascii=b"\\u" in raw)
                    raw = f"{text}\n".encode()
            file.write(raw)


def _write_parquet(data: Path, unfinished: Path, change: Change, kinds: Kinds, read: Collection[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    try:
        source = parquet.ParquetFile(data, memory_map=True)
        named = {spelled(source.schema_arrow.names, group): kind for group, kind in kinds.items()}
        schema, first = _with_columns(source.schema_arrow, named), 1
        with parquet.ParquetWriter(unfinished, schema) as writer:
            for batch in source.iter_batches(ROWS):
                names = [name for name in batch.schema.names if name in read]
                rows = batch.select(names).to_pylist() if names else [{}] * len(batch)
                changes = [change(line, row) for line, row in enumerate(rows, first)]
                writer.write_batch(_changed(batch, schema, named, changes))
                first += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError([f"{data}: file: cannot be rewritten: {error}; expected a Parquet file"]) from None


def _with_columns(schema: Any, kinds: Mapping[str, str | None]) -> Any:
    """Return an Arrow schema with columns of these types, where it has none of the name, or one of nulls alone."""
    import pyarrow

    for name, kind in kinds.items():
        place = schema.get_field_index(name)
        if kind is not None and place < 0:
            schema = schema.append(pyarrow.field(name, pyarrow.type_for_alias(kind)))
        elif kind is not None and pyarrow.types.is_null(schema.field(place).type):
            schema = schema.set(place, pyarrow.field(name, pyarrow.type_for_alias(kind)))
    return schema


def _changed(batch: Any, schema: Any, kinds: Mapping[str, str | None], changes: list[Fields | None]) -> Any:
    """Return a record batch with the columns of the schema, changed, without the rows that are left out."""
    import pyarrow
    from pyarrow import compute

    columns = []
    for field in schema:
        held = batch.column(field.name) if field.name in batch.schema.names else pyarrow.nulls(len(batch), field.type)
        if field.name in kinds:
            values = [(change or {}).get(field.name) for change in changes]
            new = pyarrow.array(values, kinds[field.name] or field.type).cast(field.type)
            held = compute.if_else(new.is_valid(), new, held.cast(field.type))
        columns.append(held)
    kept = pyarrow.array([change is not None for change in changes])
    return pyarrow.record_batch(columns, schema=schema).filter(kept)


def is_parquet(path: Path) -> bool:
    """Return whether a file that is to be rewritten is Parquet, not JSON Lines.

    Raises:
        DataError: The file does not exist, or is of another kind.
    """
    expected = "expected a .jsonl, .jsonl.gz or .parquet file"
    if not path.exists():
        raise DataError([f"{path}: file: not found; {expected}"])
    if not path.is_file():
        raise DataError([f"{path}: file: got a folder; {expected}"])
    if path.suffix != ".parquet" and not path.name.endswith(LINES):
        raise DataError([f"{path}: file: got the name {path.name!r}; {expected}, which can be written anew row by row"])
    return path.suffix == ".parquet"


def _json_lines(path: Path) -> Iterator[tuple[bytes, RawRow | None]]:
    """Read JSON Lines of UTF-8, packed by gzip or not: yield each line with the row it holds, or None if it is blank.

    Args:
        path: The path of the file, which exists. Where it cannot be read on, the last row says why.
    """
    number = 0
    try:
        with _open_bytes(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                held = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                yield raw, RawRow(number, object_of(held)) if raw.strip() else None
    except (OSError, EOFError, zlib.error) as error:
        text = f"cannot be read: {error}; expected a whole file that may be read"
        yield b"", RawRow(number + 1, FieldError("file", text))


def _open_bytes(path: Path, mode: Literal["rb", "wb"], name: Path | None = None) -> IO[bytes]:
    """Open a file in binary mode, through gzip if its name (or the one that it is to have) ends in .gz."""
    return cast(IO[bytes], gzip.open(path, mode) if (name or path).suffix == ".gz" else open(path, mode))
