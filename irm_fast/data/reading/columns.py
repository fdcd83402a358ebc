"""Rows of tables of Arrow and of data frames. In both a field that a row lacks looks like one that is null."""

from __future__ import annotations

import base64
import datetime
import decimal
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from irm_fast.data.problems import FieldError


def arrow_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow record batch as objects of JSON, without what is null."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns.append((name, column_values(column), plain_of(column.type)))
        except (OverflowError, ValueError) as error:  # times beyond the years of Python, text that is not UTF-8
            raise FieldError(name, f"cannot be read: {error}; expected {column.type} within its bounds") from None
    for number in range(len(batch)):
        row = {}
        for name, values, plain in columns:
            value = values[number]
            if value is not None:
                row[name] = value if plain is None else plain(value)
        yield row


def column_values(column: Any) -> list[Any]:
    """Return an Arrow column as a list, its times in microseconds, which those of Python hold."""
    import pyarrow

    if isinstance(column.type, pyarrow.BaseExtensionType):
        column = column.storage
    kind = _in_microseconds(column.type)
    values: list[Any] = (column if kind == column.type else column.cast(kind, safe=False)).to_pylist()
    return values


def plain_of(kind: Any) -> Callable[[Any], Any] | None:
    """Return what makes a value of an Arrow type one of JSON, or None where it is one."""
    import pyarrow.types as t

    if t.is_string(kind) or t.is_large_string(kind) or t.is_boolean(kind) or t.is_integer(kind):
        return None
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        entry = plain_of(kind.value_type)
        return None if entry is None else lambda values: [None if v is None else entry(v) for v in values]
    if t.is_struct(kind):
        fields = {field.name: plain_of(field.type) for field in kind}

        def plain_struct(value: dict[str, Any]) -> dict[str, Any]:
            return {
                name: entry if fields[name] is None else fields[name](entry)  # type: ignore[misc]
                for name, entry in value.items()
                if entry is not None
            }

        return plain_struct
    if t.is_map(kind):
        entry_of = plain_of(kind.item_type) or (lambda value: value)
        return lambda pairs: {key: None if value is None else entry_of(value) for key, value in pairs}
    return plain


def plain(value: Any) -> Any:
    """Return a value of a table as one of JSON: what is missing as None, bytes as text, decimals as numbers."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, (str, bool, int, datetime.date)) or value is None:
        return None if type(value).__name__ == "NaTType" else value
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(value.tolist())
    return value


def frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data frame of pandas or polars as objects of JSON, without what is missing."""
    if hasattr(frame, "iter_rows"):
        rows: Iterator[Mapping[str, Any]] = frame.iter_rows(named=True)
    else:
        columns = {str(name): frame[name].tolist() for name in frame.columns}
        rows = (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    for row in rows:
        yield {name: value for name, cell in row.items() if (value := plain(cell)) is not None}


def _in_microseconds(kind: Any) -> Any:
    """Return an Arrow type with microseconds in the place of nanoseconds."""
    import pyarrow
    import pyarrow.types as t

    if t.is_timestamp(kind) and kind.unit == "ns":
        return pyarrow.timestamp("us", kind.tz)
    if t.is_struct(kind):
        return pyarrow.struct([entry.with_type(_in_microseconds(entry.type)) for entry in kind])
    if t.is_list(kind):
        return pyarrow.list_(_in_microseconds(kind.value_type))
    return kind
