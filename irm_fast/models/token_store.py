"""The token ids of many rows in one array: in memory, and beyond a limit in a file without a name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np

from irm_fast.data.writing.whole import disk_errors

IN_MEMORY = 2**26  # bytes of token ids; more of them are in a temporary file
_WRITTEN_AT_ONCE = 2**24  # bytes


class Tokens:
    """The token ids of N rows, which lie one after the other in an array. Parts of the rows share it.

    A slice, row numbers or a mask of shape (N,) give a part; a number gives the token ids of a row.

    Args:
        flat: The token ids, (T,) int32.
        starts: Where each row begins, (N,) int64.
        lengths: The number of tokens of each row, (N,) int64.
        file: The file that the array is mapped from, if there is one.

    Examples:
        >>> tokens = Tokens.of([np.array([5, 6]), np.array([7])])
        >>> tokens[0].tolist(), tokens[[1, 0]].gathered().tolist()
        ([5, 6], [7, 5, 6])
    """

    def __init__(
        self, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, file: IO[bytes] | None = None
    ) -> None:
        self.flat, self.starts, self.lengths, self.file = flat, starts, lengths, file

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> Tokens:
        """The token ids of rows, each an array."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        flat = np.concatenate([np.empty(0, np.int32), *rows], dtype=np.int32)
        return cls(flat, lengths.cumsum() - lengths, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (int, np.integer)):
            start = self.starts[index]
            return self.flat[start : start + self.lengths[index]]
        return Tokens(self.flat, self.starts[index], self.lengths[index], self.file)

    def gathered(self) -> np.ndarray:
        """The token ids of all rows, one row after the other, copied out of the array."""
        ends = self.starts + self.lengths
        rows = [self.flat[start:end] for start, end in zip(self.starts.tolist(), ends.tolist(), strict=True)]
        return np.concatenate([self.flat[:0], *rows])

    def followed_by(self, others: Tokens) -> Tokens:
        """These rows and then others; where both are parts of one array, nothing is copied."""
        lengths = np.append(self.lengths, others.lengths)
        if self.flat is not others.flat:
            flat = np.concatenate([self.gathered(), others.gathered()])
            return Tokens(flat, lengths.cumsum() - lengths, lengths)
        return Tokens(self.flat, np.append(self.starts, others.starts), lengths, self.file)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is not None and get_spawning_popen() is not None and hasattr(reduction, "DupFd"):
            handle = reduction.DupFd(self.file.fileno())  # a worker maps the same file, and is sent no tokens
            return _mapped_by_worker, (handle, self.starts, self.lengths)
        return Tokens, (np.array(self.flat), self.starts, self.lengths)


class TokenStore:
    """Token ids on their way to `Tokens`, some rows at a time."""

    def __init__(self) -> None:
        self._held: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        """Add the token ids of rows."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        self._lengths.append(lengths)
        self._held.append(np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())))
        self._bytes += self._held[-1].nbytes
        if self._bytes > (IN_MEMORY if self._file is None else _WRITTEN_AT_ONCE):
            self._write()

    def _write(self) -> None:
        with disk_errors(Path(gettempdir())):
            if self._file is None:
                self._file = TemporaryFile(prefix="irm-fast-")  # noqa: SIM115  # open as long as the tokens
            for tokens in self._held:
                tokens.tofile(self._file)
            self._file.flush()
        self._held, self._bytes = [], 0

    def close(self) -> Tokens:
        """The token ids of all rows that were added."""
        lengths = np.concatenate([np.empty(0, np.int64), *self._lengths])
        if self._file is not None:
            self._write()
            return _mapped(self._file, lengths.cumsum() - lengths, lengths)
        flat = np.concatenate([np.empty(0, np.int32), *self._held])
        return Tokens(flat, lengths.cumsum() - lengths, lengths)


def _mapped(file: IO[bytes], starts: np.ndarray, lengths: np.ndarray) -> Tokens:
    return Tokens(np.memmap(file, np.int32, "r").view(np.ndarray), starts, lengths, file)


def _mapped_by_worker(handle: Any, starts: np.ndarray, lengths: np.ndarray) -> Tokens:
    return _mapped(open(handle.detach(), "rb"), starts, lengths)
