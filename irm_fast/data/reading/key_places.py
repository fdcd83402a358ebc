"""Which objects of JSON have a key: where it may be null Arrow cannot tell, but the bytes of the line can."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from irm_fast.data.reading.column_values import is_given
from irm_fast.data.reading.line_tables import LineTable

_ESCAPED = re.compile(rb'\\[^"\\][^"\\]*":')  # the end of a key that has an escape
_QUOTE, _BACKSLASH, _SPACE = b'"\\ '


class Place(NamedTuple):
    """A place of a key.

    Attributes:
        within: A mask of the rows that have the object.
        column: The values of the key.
    """

    within: np.ndarray
    column: Any


class KeyPlaces:
    """The keys of a block of lines.

    Within a text a quote is escaped, and no text is followed by a colon: `"copy":` is always a key.

    Args:
        table: The lines, an object each.
    """

    def __init__(self, table: LineTable) -> None:
        self.raw, self.ends, self.batch = table
        self._regular: bool | None = None
        self._places: dict[str, list[Place | None]] | None = None
        self._lines: Any = None

    def has_key(self, name: str, within: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return masks of the rows that have a key in an object of theirs, and of those of which that is not clear.

        Args:
            name: The key.
            within: A mask of the rows that have the object.
            given: A mask of the rows in which the key has a value other than null.
        """
        has, doubt = given.copy(), np.zeros(len(given), bool)
        rows = np.flatnonzero(within & ~given)
        if not len(rows):
            return has, doubt
        places = self._places_of(name)
        if places is None:
            doubt[rows] = True
            return has, doubt
        count = self._counts(name, rows)
        most = sum(place.within[rows].astype(np.int64) for place in places)
        least = sum((place.within & is_given(place.column))[rows].astype(np.int64) for place in places)
        has[rows] = count == most
        fewer = rows[count != most]
        if len(fewer):
            doubt[fewer] = (count != least)[count != most] if self._is_regular() else True
        return has, doubt

    def _places_of(self, name: str) -> list[Place] | None:
        """Return the places of a key, or None if there are others."""
        if self._places is None:
            self._places = {}
            everywhere = np.ones(len(self.batch), bool)
            for key, place in _objects_of(self.batch.schema.names, self.batch.columns, everywhere):
                self._places.setdefault(key, []).append(place)
        found = [place for place in self._places[name] if place is not None]
        return found if len(found) == len(self._places[name]) and not _is_odd(name) else None

    def _counts(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return how often a key stands in lines."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._lines is None:
            offsets = np.append(0, self.ends).astype(np.int32)
            self._lines = pa.Array.from_buffers(
                pa.binary(), len(self.batch), [None, pa.py_buffer(offsets), pa.py_buffer(self.raw)]
            )
        lines = self._lines.take(pa.array(rows))
        patterns = {b'"' + json.dumps(name, ensure_ascii=way)[1:-1].encode() + b'":' for way in (True, False)}
        counts: np.ndarray = sum(pc.count_substring(lines, pattern).to_numpy() for pattern in patterns)
        return counts

    def _is_regular(self) -> bool:
        """Return whether all keys are written as `json.dumps` does: without escapes, and a colon right behind each."""
        if self._regular is None:
            data = np.frombuffer(self.raw, np.uint8)
            spaced = (data[1:-1] == _QUOTE) & (data[2:] <= _SPACE) & (data[:-2] != _BACKSLASH)
            assert self._places is not None
            odd = any(_is_odd(name) or not name.isascii() for name in self._places)
            self._regular = not (odd or spaced.any() or _ESCAPED.search(self.raw))
        return self._regular


def _is_odd(name: str) -> bool:
    return '"' in name or "\\" in name


def _objects_of(names: list[str], columns: list[Any], within: np.ndarray) -> Iterator[tuple[str, Place | None]]:
    """Yield each key with its place, or None where a row has it any number of times."""
    import pyarrow.types as t

    for name, column in zip(names, columns, strict=True):
        yield name, Place(within, column)
        if t.is_struct(column.type):
            inner = [field.name for field in column.type]
            yield from _objects_of(inner, column.flatten(), is_given(column) & within)
        elif t.is_list(column.type):
            yield from ((key, None) for key in _keys_of(column.type))


def _keys_of(kind: Any) -> Iterator[str]:
    """Yield the names of all fields within a type."""
    import pyarrow.types as t

    for field in kind if t.is_struct(kind) else [kind.value_field] if t.is_list(kind) else []:
        if t.is_struct(kind):
            yield field.name
        yield from _keys_of(field.type)
