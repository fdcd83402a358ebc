"""Importing records that need no other: each gives a row or several, which are written as a log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from irm_fast.data.importing.account import Account
from irm_fast.data.importing.layouts import LAYOUTS, layout_of, rows_of_record
from irm_fast.data.problems import DataError, FieldError
from irm_fast.data.reading.blocks import RawRow
from irm_fast.data.reading.sources import Given, Source, check_not_input
from irm_fast.data.times import time_of
from irm_fast.data.writing.outputs import check_file, check_folder_of
from irm_fast.data.writing.whole import whole_path

ENDS = (".jsonl", ".parquet")
BATCH = 10_000  # rows of a Parquet file that are in memory at a time


def import_records(name: str, given: Given, out: Path, *, overwrite: bool = False) -> Account:
    """Write a log of the records of one layout.

    Args:
        name: The name of the layout, of `LAYOUTS`.
        given: The export, as of `read_log`.
        out: The log to write, NAME.jsonl or NAME.parquet.
        overwrite: Replace the log if it exists.

    Returns:
        What was read, kept and left out.

    Raises:
        DataError: Nothing could be kept.
        ValueError: The log may not be written there.
    """
    source = Source.of(given)
    check_out(out, source, overwrite=overwrite)
    account = Account()
    with whole_path(out) as unfinished:
        write_rows(unfinished, _rows(name, source, account), parquet=out.suffix == ".parquet")
        if not account.kept:
            reasons = [f"{source}: {count:,} {reason}" for reason, count in account.dropped.most_common()]
            raise DataError([f"{source}: file: no row for a log of {LAYOUTS[name].title}", *reasons])
    if note := LAYOUTS[name].note.removeprefix("; "):
        account.notes.append(note)
    return account


def check_out(out: Path, source: Given, *, overwrite: bool) -> None:
    """Refuse a log that could not be written, before the work.

    Raises:
        ValueError: Its name, its folder, or what is there already forbid it.
    """
    if out.suffix not in ENDS:
        raise ValueError(f"out: got {out.name!r}; expected a name that ends in {' or '.join(ENDS)}")
    check_folder_of(out)
    check_file(out, overwrite=overwrite)
    check_not_input(out, source)


def _rows(name: str, source: Iterable[RawRow], account: Account) -> Iterator[dict[str, Any]]:
    for line, content in source:
        account.read["records"] += line is not None
        if isinstance(content, FieldError):
            account.dropped[f"records that cannot be read: {content.field}: {content.text}"] += 1
        elif line is not None and (found := layout_of(content)) != name:
            kind = f"of {LAYOUTS[found].title}: irm-fast import {found}" if found else f"not of {LAYOUTS[name].title}"
            account.dropped[f"records {kind}"] += 1
        elif line is not None:
            yield from _kept(name, line, content, account)


def _kept(name: str, line: int, content: Mapping[str, Any], account: Account) -> Iterator[dict[str, Any]]:
    """Yield the rows of a record, and count them."""
    rows = [row for _, row in rows_of_record(name, line, content)]
    for row in rows:
        if isinstance(row, FieldError):
            account.dropped[f"records: {row.field}: {row.text.partition('; ')[2] or row.text}"] += 1
        else:
            account.kept += 1
            yield row
    if not rows:
        account.dropped["records without an answer that is rated or could have been"] += 1


def write_rows(path: Path, rows: Iterable[dict[str, Any]], *, parquet: bool) -> None:
    """Write the rows of a log as JSON Lines or Parquet; there messages are text of JSON, and feedback is a map."""
    if not parquet:
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, default=str) + "\n")
        return
    import pyarrow as pa
    from pyarrow import parquet as library

    schema = pa.schema(
        [(name, pa.string()) for name in ("id", "prompt", "completion", "user_id", "session_id", "model")]
        + [("timestamp", pa.float64()), ("feedback", pa.map_(pa.string(), pa.int8()))]
        + [("preference", pa.int8()), ("rating", pa.float64())]
    )
    rows = iter(rows)
    with library.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            table = [_cells(row, schema) for row in batch]
            writer.write_table(pa.Table.from_pylist(table, schema))


def _cells(row: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """Return a row as a table holds it."""
    cells: dict[str, Any] = {}
    for field in schema:
        value = row.get(field.name)
        if value is None:
            cells[field.name] = None
        elif field.name == "timestamp":
            cells[field.name] = time_of(value, field.name)
        elif field.name == "feedback":
            cells[field.name] = list(value.items())
        elif isinstance(value, (list, dict)):
            cells[field.name] = json.dumps(value)
        else:
            text = field.name not in ("preference", "rating")
            cells[field.name] = str(value) if text else value
    return cells
