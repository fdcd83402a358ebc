"""Which objects of JSON have a key: of a key with null Arrow cannot tell whether it is there, but the bytes can."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from irm_fast.data.column_values import is_given

_ESCAPED = re.compile(rb'\\[^"\\][^"\\]*":')  # the end of a key that has an escape
_COLON, _QUOTE, _BACKSLASH = b':"\\'


class KeyPlaces:
    """The keys of a block of lines.

    Within a text a quote is escaped, and no text is followed by a colon: `"copy":` is always a key.

    Args:
        raw: The lines, an object each.
        batch: What Arrow makes of them.
    """

    def __init__(self, raw: bytes, batch: Any) -> None:
        self.raw, self.batch = raw, batch
        self._regular: bool | None = None
        self._places: dict[str, list[tuple[int, int]]] | None = None

    def has_key(self, name: str, within: np.ndarray, given: np.ndarray) -> np.ndarray | None:
        """Return a mask of the rows that have a key in an object of theirs, or None where that is not clear.

        Args:
            name: The key.
            within: A mask of the rows that have the object.
            given: A mask of the rows in which the key has a value other than null.
        """
        if np.array_equal(within, given):
            return given
        if self._places is None:
            self._places = {}
            for key, most, least in _objects_of(self.batch.schema.names, self.batch.columns, len(self.batch)):
                self._places.setdefault(key, []).append((most, least))
        if '"' in name or "\\" in name:
            return None
        patterns = {b'"' + json.dumps(name, ensure_ascii=way)[1:-1].encode() + b'":' for way in (True, False)}
        count = sum(map(self.raw.count, patterns))
        places = self._places[name]
        if count == sum(most for most, _ in places):
            return within
        if not self._is_regular():
            return None
        if count == sum(least for _, least in places):
            return given
        return self._lines_with(patterns) if len(places) == 1 else None

    def _is_regular(self) -> bool:
        """Return whether all keys are written as `json.dumps` does: without escapes, and a colon right behind each."""
        if self._regular is None:
            data = np.frombuffer(self.raw, np.uint8)
            spaced = (data[1:-1] == _QUOTE) & (data[2:] <= 32) & (data[:-2] != _BACKSLASH)
            assert self._places is not None
            odd = any('"' in name or "\\" in name or not name.isascii() for name in self._places)
            self._regular = not (odd or spaced.any() or _ESCAPED.search(self.raw))
        return self._regular

    def _lines_with(self, patterns: set[bytes]) -> np.ndarray:
        """Return a mask of the lines that have one of the patterns."""
        ends = np.flatnonzero(np.frombuffer(self.raw, np.uint8) == 10)
        found = np.zeros(len(self.batch), bool)
        for pattern in patterns:
            starts = [match.start() for match in re.finditer(re.escape(pattern), self.raw)]
            found[np.searchsorted(ends, starts)] = True
        return found


def _objects_of(names: list[str], columns: list[Any], objects: int) -> Iterator[tuple[str, int, int]]:
    """Yield each place of a key, with the number of its objects and of those in which it is not null."""
    import pyarrow.types as t

    for name, column in zip(names, columns, strict=True):
        given = len(column) - column.null_count
        yield name, objects, given
        held = column
        while t.is_list(held.type):
            held = held.flatten()
        if t.is_struct(held.type):
            inner = [field.name for field in held.type]
            yield from _objects_of(inner, held.flatten(), int(is_given(held).sum()))
