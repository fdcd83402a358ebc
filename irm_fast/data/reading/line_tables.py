"""Lines of JSON as tables of Arrow: their schema, as it is learnt from rows, and the parsing of a block.

Arrow is as strict as our own parser where a schema is given: fields that it does not have, keys that occur twice,
numbers for texts and the like are errors, after which the block is read row by row. What Arrow takes and our parser
does not is looked for here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from irm_fast.data.reading.blocks import LineBlock

MOST_FIELDS = 300  # of a schema; beyond, keys are data


class NoTableError(ValueError):
    """Rows that are no table of the kinds that are read by columns."""


@dataclass
class Kind:
    """What the values of a field are.

    Attributes:
        name: "null", "bool", "int", "float", "text", "object" or "list".
        fields: The fields of an object.
        entry: The entries of a list.
    """

    name: str = "null"
    fields: dict[str, Kind] = field(default_factory=dict)
    entry: Kind | None = None

    def take(self, value: object) -> None:
        """Extend the kind, so that it has a value too.

        Raises:
            NoTableError: Its values are of two kinds.
        """
        if value is None:
            return
        name = _NAMES.get(type(value), "")
        if name == "int" and not -(2**63) <= value < 2**63:  # type: ignore[operator]
            name = "float"
        if self.name in ("null", name):
            self.name = name
        elif {self.name, name} == {"int", "float"}:
            self.name = "float"
        else:
            raise NoTableError(f"{self.name} and {name}")
        if isinstance(value, dict):
            for key, held in value.items():
                self.fields.setdefault(key, Kind()).take(held)
        elif isinstance(value, list):
            self.entry = self.entry or Kind()
            for held in value:
                self.entry.take(held)

    def arrow(self) -> Any:
        """Return the type of Arrow."""
        import pyarrow as pa

        if self.name == "object":
            return pa.struct([(name, kind.arrow()) for name, kind in self.fields.items()])
        if self.name == "list":
            return pa.list_(pa.null() if self.entry is None else self.entry.arrow())
        return {
            "null": pa.null(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string(),
        }[self.name]  # fmt: skip

    def names(self) -> Iterator[str]:
        """Yield the names of all fields, each as often as it has a place."""
        for name, kind in self.fields.items():
            yield name
            yield from kind.names()
        if self.entry is not None:
            yield from self.entry.names()


_NAMES = {bool: "bool", int: "int", float: "float", str: "text", dict: "object", list: "list"}


class LineTable(NamedTuple):
    """Lines of JSON as a table.

    Attributes:
        raw: The lines.
        ends: Where each of them ends, int64 of shape (n,).
        batch: Their objects.
    """

    raw: bytes
    ends: np.ndarray
    batch: Any


class LineTables:
    """Parses blocks of lines as tables.

    Attributes:
        kind: What the rows are, as far as it was learnt.
    """

    def __init__(self) -> None:
        self.kind: Kind | None = Kind("object")
        self._schema: Any = None

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Extend the schema, so that it has these rows too."""
        if self.kind is None:
            return
        import pyarrow

        try:
            for row in rows:
                self.kind.take(row)
            if sum(1 for _ in self.kind.names()) > MOST_FIELDS:
                raise NoTableError("too many fields")
            self._schema = pyarrow.schema(list(self.kind.arrow()))
        except ValueError:  # also of names that are not Unicode
            self.kind = self._schema = None

    def table_of(self, block: LineBlock) -> LineTable | None:
        """Return the table of a block, a row a line, or None where it may be none."""
        schema = self._schema
        if schema is None or not len(schema) or not _is_text(block.raw):
            return None
        ends = _ends_of_objects(block.raw)
        if ends is None:
            return None
        import pyarrow
        from pyarrow import json

        try:
            table = json.read_json(
                pyarrow.BufferReader(block.raw),
                read_options=json.ReadOptions(use_threads=False, block_size=len(block.raw) + 1024),
                parse_options=json.ParseOptions(
                    explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="error"
                ),
            )
        except (pyarrow.ArrowException, ValueError):
            return None
        [batch] = table.combine_chunks().to_batches()
        fine = len(batch) == len(ends) and all(_is_finite(column) for column in batch.columns)
        return LineTable(block.raw, ends, batch) if fine else None


def _is_text(raw: bytes) -> bool:
    """Return whether bytes are UTF-8, which Arrow does not ask."""
    if raw.isascii():
        return True
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _ends_of_objects(raw: bytes) -> np.ndarray | None:
    """Return where each line ends if each begins with { and ends with }, else None.

    No value of JSON goes on with { after a }: so none is spread over such lines, and if there are as many objects as
    lines, each line is one.
    """
    data = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(data == 10)
    if not raw.endswith(b"\n"):
        ends = np.append(ends, len(data))
    before = data[ends - 1]
    carriage = before == 13
    if carriage.any():
        before = np.where(carriage, data[ends - 2], before)
    begins = data[np.append(0, ends[:-1] + 1)]
    return ends if ends[0] > 1 and (begins == ord("{")).all() and (before == ord("}")).all() else None


def _is_finite(column: Any) -> bool:
    """Return whether no number is NaN, infinite or -0, within objects and lists too."""
    import pyarrow.compute as pc
    import pyarrow.types as t

    if t.is_struct(column.type):
        return all(_is_finite(entry) for entry in column.flatten())
    if t.is_list(column.type):
        return _is_finite(column.flatten())
    if not t.is_floating(column.type):
        return True
    values = column.to_numpy(zero_copy_only=False) if not column.null_count else pc.drop_null(column).to_numpy()
    return bool(np.isfinite(values).all() and not ((values == 0) & np.signbit(values)).any())
