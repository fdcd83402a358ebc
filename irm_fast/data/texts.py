"""Texts of many rows, kept in Arrow and made into objects of Python when they are asked for.

`Names` and `Conversations` are sequences like lists of the same values, and equal to such lists. They take little more
memory than the bytes of the texts, and beyond `IN_MEMORY` these lie in a file without a name.
"""

from __future__ import annotations

import bisect
import json
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from irm_fast.data.joined import ListLike

if TYPE_CHECKING:
    import pyarrow

    from irm_fast.data.messages import Messages

T = TypeVar("T")
IN_MEMORY = 2**28  # bytes of texts; more of them are in a temporary file
_WRITTEN_AT_ONCE = 2**25  # bytes
_MADE_AT_ONCE = 1024  # rows, while one iterates


class Lazy(ListLike[T]):
    """N values that are made of Arrow data when they are asked for. A part of them shares the data.

    An index gives a value, and a slice a list; row numbers or a mask of shape (N,) give a sequence of the same kind.
    Row numbers are not copied: parts of the columns of a log share them.

    Args:
        batches: The data, in their order.
        rows: The numbers of the rows in `batches` that are taken, int64; None: all of them.
    """

    def __init__(self, batches: Sequence[pyarrow.RecordBatch], rows: np.ndarray | None = None) -> None:
        self.batches, self.rows = list(batches), rows
        self._starts = np.concatenate([[0], np.cumsum([len(batch) for batch in self.batches], dtype=np.int64)])

    def _made(self, batch: pyarrow.RecordBatch) -> list[T]:
        """Return the values of a batch."""
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self._starts[-1]) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    @overload
    def __getitem__(self, index: np.ndarray) -> Lazy[T]: ...

    def __getitem__(self, index: int | slice | np.ndarray) -> T | list[T] | Lazy[T]:
        if isinstance(index, slice):
            return list(self[np.arange(*index.indices(len(self)))])
        if isinstance(index, (np.ndarray, list)):
            index = np.asarray(index) if len(index) else np.empty(0, np.int64)
            if index.dtype == bool and len(index) != len(self):
                raise IndexError(f"got a mask of {len(index)} rows; expected one of {len(self)}")
            if index.dtype != bool and not np.issubdtype(index.dtype, np.integer):
                raise IndexError(f"got an index of {index.dtype}; expected whole numbers, or a mask")
            index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64, copy=False)
            if len(index) and index.min() < 0:
                index = np.where(index < 0, index + len(self), index)
            if len(index) and not 0 <= index.min() <= index.max() < len(self):
                raise IndexError(f"got rows up to {index.max()} of {len(self)}")
            return type(self)(self.batches, index if self.rows is None else self.rows[index])
        number = range(len(self))[index]
        row = number if self.rows is None else int(self.rows[number])
        place = bisect.bisect_right(self._starts, row) - 1
        return self._made(self.batches[place].slice(row - int(self._starts[place]), 1))[0]

    def __iter__(self) -> Iterator[T]:
        if self.rows is None:
            for batch in self.batches:
                for start in range(0, len(batch), _MADE_AT_ONCE):
                    yield from self._made(batch.slice(start, _MADE_AT_ONCE))
            return
        for start in range(0, len(self.rows), _MADE_AT_ONCE):
            yield from self._taken(self.rows[start : start + _MADE_AT_ONCE])

    def _taken(self, rows: np.ndarray) -> list[T]:
        """Return the values of rows, by their numbers in the batches."""
        found: list[Any] = [None] * len(rows)
        for group, number, places in self._by_batch(rows):
            taken = self.batches[number].take(places)
            for where, value in zip(group.tolist(), self._made(taken), strict=True):
                found[where] = value
        return found

    def __add__(self, other: Iterable[T]) -> list[T]:
        return [*self, *other]

    def __radd__(self, other: Iterable[T]) -> list[T]:
        return [*other, *self]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", ..." if len(self) > 3 else "")
        return f"<{type(self).__name__} of {len(self)} rows: [{shown}]>"

    def column(self, name: int | str = 0) -> pyarrow.ChunkedArray:
        """Return a column of the data as it is, of these rows in their order."""
        import pyarrow

        if self.rows is None:
            schema = self.batches[0].schema if self.batches else None
            return pyarrow.Table.from_batches(self.batches, schema).column(name)
        starts = range(0, len(self.rows), 2**16)
        parts = [self._column_of(self.rows[start : start + 2**16], name) for start in starts]
        return pyarrow.chunked_array(parts, None if parts else self.batches[0].column(name).type)

    def _column_of(self, rows: np.ndarray, name: int | str) -> pyarrow.Array:
        """Return a column of rows, by their numbers in the batches."""
        import pyarrow

        groups = list(self._by_batch(rows))
        parts = [self.batches[number].column(name).take(places) for _, number, places in groups]
        if len(parts) == 1:
            return parts[0]
        order = np.concatenate([group for group, _, _ in groups])
        return pyarrow.concat_arrays(parts).take(pyarrow.array(np.argsort(order)))

    def _by_batch(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int, pyarrow.Array]]:
        """Yield for each batch that rows lie in: their places among the rows, its number, and their places in it."""
        import pyarrow

        batch = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(batch, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(batch[order])) + 1):
            number = int(batch[group[0]])
            yield group, number, pyarrow.array(rows[group] - self._starts[number])

    def __reduce__(self) -> tuple[Any, ...]:
        import pyarrow

        if self.rows is None or not len(self):
            return type(self), (self.batches if len(self) else [batch.slice(0, 0) for batch in self.batches[:1]],)
        columns = [self.column(name) for name in self.batches[0].schema.names]
        table = pyarrow.Table.from_arrays(columns, schema=self.batches[0].schema)
        return type(self), (table.to_batches(),)


class Names(Lazy[Any]):
    """N names, such as those of rows or users, None where unknown."""

    def _made(self, batch: pyarrow.RecordBatch) -> list[Any]:
        values: list[Any] = batch.column(0).to_pylist()
        return values

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Names:
        """Return names that are given as objects of Python."""
        import pyarrow

        return cls([pyarrow.record_batch([pyarrow.array(values, pyarrow.string())], ["name"])])


class Conversations(Lazy["Messages"]):
    """N conversations. Those of one text of the user and one of the assistant are such, others are JSON."""

    def _made(self, batch: pyarrow.RecordBatch) -> list[Messages]:
        prompts, completions = (column.to_pylist() for column in batch.columns)
        return [
            json.loads(completion)
            if prompt is None
            else [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    @classmethod
    def of(cls, values: Sequence[Messages]) -> Conversations:
        """Return conversations that are given as objects of Python."""
        return cls([batch_of(values)])


def batch_of(conversations: Sequence[Messages]) -> pyarrow.RecordBatch:
    """Return the data of `Conversations`: the columns `prompt` and `completion`, or null and JSON of all turns."""
    import pyarrow

    pairs = [_texts_of(messages) for messages in conversations]
    columns = [pyarrow.array([pair[side] for pair in pairs], pyarrow.string()) for side in (0, 1)]
    return pyarrow.record_batch(columns, ["prompt", "completion"])


def _texts_of(messages: Messages) -> tuple[str | None, str]:
    """Return prompt and completion of a conversation of two plain turns, else None and JSON."""
    if len(messages) == 2 and _is_plain(messages[0], "user") and _is_plain(messages[1], "assistant"):
        return messages[0]["content"], messages[1]["content"]
    return None, json.dumps(messages, default=str)


def _is_plain(turn: Mapping[str, Any], role: str) -> bool:
    return len(turn) == 2 and turn.get("role") == role and isinstance(turn.get("content"), str)


class Store:
    """Texts on their way to a `Lazy`: in memory, and beyond a number of bytes in a file without a name.

    Args:
        limit: The number of bytes; None: `IN_MEMORY`.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = IN_MEMORY if limit is None else limit
        self._held: list[pyarrow.RecordBatch] = []
        self._bytes = 0
        self._file: Any = None
        self._writer: Any = None

    def add(self, batch: pyarrow.RecordBatch) -> None:
        """Add rows."""
        self._held.append(batch)
        self._bytes += batch.nbytes
        if self._bytes > (self._limit if self._writer is None else _WRITTEN_AT_ONCE):
            self._write()

    def _write(self) -> None:
        import pyarrow

        try:
            if self._writer is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # mapped for as long as the texts are used
                self._writer = pyarrow.ipc.new_file(self._file, self._held[0].schema)
            for batch in _joined(self._held, _WRITTEN_AT_ONCE):
                self._writer.write_batch(batch)
        except OSError as error:
            text = (
                f"texts of more than {self._limit:,} bytes are kept in {tempfile.gettempdir()}, which failed: {error}"
            )
            raise OSError(f"{text}; expected room there, or in another folder that TMPDIR names") from error
        self._held, self._bytes = [], 0

    def close(self) -> list[pyarrow.RecordBatch]:
        """Return all rows that were added, in few batches; the file, if there is one, goes with the last of them."""
        import pyarrow

        if self._writer is None:
            return _joined(self._held, IN_MEMORY)
        self._write()
        self._writer.close()
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file.close()
        reader = pyarrow.ipc.open_file(pyarrow.BufferReader(pyarrow.py_buffer(mapped)))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def _joined(batches: Sequence[pyarrow.RecordBatch], size: int) -> list[pyarrow.RecordBatch]:
    """Return the same rows in batches of about so many bytes."""
    import pyarrow

    groups: list[list[pyarrow.RecordBatch]] = []
    filled = size
    for batch in batches:
        if filled >= size:
            groups.append([])
            filled = 0
        groups[-1].append(batch)
        filled += batch.nbytes
    return [joined for group in groups for joined in pyarrow.Table.from_batches(group).combine_chunks().to_batches()]
