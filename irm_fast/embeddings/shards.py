"""Embeddings that need not fit into memory: rows of several arrays or files, read a few at a time.

Files are memory-mapped: what was read of them can leave the memory whenever it is needed for something else.
"""

from __future__ import annotations

import bisect
import re
import warnings
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings import given
from irm_fast.models.tensor_files import opened

SUFFIXES = (".safetensors", ".npy")
TENSOR = "embeddings"  # of a safetensors file
_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)")  # the stem of a file of several


class Shards:
    """Rows of embeddings in several pieces, one after the other, or some of these rows in another order.

    Args:
        pieces: The pieces, each of numbers of shape (n, D).
        names: What to call each piece in errors.
        index: The numbers (int64) of the rows, counted through all pieces, of shape (N,). None means all of them, in
            their order.

    Raises:
        ValueError: There is no piece, one has another shape or width, or no numbers.
    """

    def __init__(self, pieces: Sequence[Tensor], names: Sequence[str], index: np.ndarray | None = None) -> None:
        if not pieces:
            raise ValueError("X: got no embeddings; expected at least one array or file")
        for piece, name in zip(pieces, names, strict=True):
            if piece.dim() != 2 or piece.shape[1] != pieces[0].shape[1] or not piece.shape[1]:
                raise ValueError(
                    f"X: {name} has shape {tuple(piece.shape)}; expected (n, D), D at least 1 and the same "
                    f"for all; {names[0]} has {tuple(pieces[0].shape)}"
                )
            if piece.dtype == torch.bool or piece.is_complex():
                raise ValueError(f"X: {name} holds {piece.dtype}; expected real numbers")
        self.pieces, self.names, self.index = list(pieces), list(names), index
        self._ends = np.cumsum([len(piece) for piece in pieces]).tolist()
        if not len(self):
            raise ValueError("X: got 0 rows; expected at least 1")

    @classmethod
    def of_array(cls, array: np.ndarray) -> Shards:
        """Return the rows of an array of numbers of shape (N, D), which is not copied where torch can share it."""
        return cls([_tensor(array)], ["the array"])

    def __len__(self) -> int:
        return self._ends[-1] if self.index is None else len(self.index)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers N of rows and D of columns."""
        return len(self), self.pieces[0].shape[1]

    def __getitem__(self, rows: slice | np.ndarray) -> Shards:
        """Return the rows that a slice, a mask (N,) or row numbers (n,) select, without reading them."""
        index = np.arange(len(self), dtype=np.int64) if self.index is None else self.index
        return Shards(self.pieces, self.names, index[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows as one array, for who needs them in memory."""
        return self.read(0, len(self)).numpy().astype(dtype or np.float32)

    def read(self, start: int, stop: int) -> Tensor:
        """Return the rows from `start` up to `stop` (float32, on the CPU) of shape (n, D), a view where it can be one.

        Args:
            start: The number of the first row.
            stop: The number after that of the last row.
        """
        if self.index is not None:
            return self._at(self.index[start:stop])
        found = []
        for number in range(bisect.bisect_right(self._ends, start), len(self.pieces)):
            before = self._ends[number - 1] if number else 0
            if before >= stop:
                break
            found.append(self.pieces[number][max(start - before, 0) : stop - before].float())
        return found[0] if len(found) == 1 else torch.cat(found)

    def at(self, rows: np.ndarray) -> Tensor:
        """Return some rows (float32, on the CPU) of shape (n, D).

        Args:
            rows: Row numbers of shape (n,).
        """
        return self._at(rows if self.index is None else self.index[rows])

    def _at(self, rows: np.ndarray) -> Tensor:
        """Return rows by their numbers through all pieces."""
        if len(self.pieces) == 1:
            return self.pieces[0].index_select(0, torch.from_numpy(rows)).float()  # faster than indexing
        found = torch.empty(len(rows), self.shape[1])
        owner = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            before = self._ends[number - 1] if number else 0
            some = self.pieces[number].index_select(0, torch.from_numpy(rows[mine] - before)).float()
            if len(mine) == len(rows):
                return some
            found.index_copy_(0, torch.from_numpy(mine), some)
        return found

    def where(self, row: int) -> str:
        """Return the name of the piece that holds a row, and its number there."""
        row = row if self.index is None else int(self.index[row])
        number = bisect.bisect_right(self._ends, row)
        return f"{self.names[number]}, row {row - (self._ends[number - 1] if number else 0)}"


def shards_of(value: Any) -> Shards | None:
    """Return embeddings that are given in pieces or files, or None for an array in memory.

    Args:
        value: A path of a file or folder, or a pattern of paths; a list of these or of arrays of shape (n, D); a
            memory-mapped array; `Shards`; or anything else.

    Raises:
        ValueError: A file is missing or damaged, a folder or pattern has none, some of the files of a numbered set are
            missing, or the pieces do not go together.
    """
    if isinstance(value, Shards):
        return value
    if isinstance(value, (str, Path)):
        return open_files(files_of(value))
    if isinstance(value, np.memmap) and value.ndim == 2:
        return Shards.of_array(value)
    if not isinstance(value, (list, tuple)) or not value:
        return None
    pieces, names = list[Tensor](), list[str]()
    for number, part in enumerate(value):
        if isinstance(part, (str, Path)):
            files = files_of(part)
            pieces += [_mapped(path) for path in files]
            names += map(str, files)
        elif getattr(part, "ndim", 0) == 2:
            pieces.append(_tensor(given.plain(part)))
            names.append(f"array {number}")
        else:
            return None
    return Shards(pieces, names)


def open_files(paths: Sequence[Path]) -> Shards:
    """Return the rows of files, one file after the other, memory-mapped.

    Args:
        paths: The files.

    Raises:
        ValueError: A file is missing or damaged, or the files do not go together.
    """
    return Shards([_mapped(path) for path in paths], [str(path) for path in paths])


def files_of(path: str | Path) -> list[Path]:
    """Return the files of embeddings that a path means, in the order of the numbers in their names.

    Args:
        path: A file, a folder of files, or a pattern such as "embeddings/*.safetensors".

    Raises:
        ValueError: There are none, or only some of a set whose names say how many they are, as NAME-00000-of-00004.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = [entry for entry in folder.iterdir() if entry.suffix in SUFFIXES and not entry.name.startswith(".")]
    elif has_magic(str(folder)) and not folder.exists():
        found = [Path(entry) for entry in glob(str(folder), recursive=True)]
    else:
        return [folder]
    if not found:
        raise ValueError(f"{path}: no embeddings; expected files that end in {' or '.join(SUFFIXES)}")
    found.sort(key=lambda entry: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(entry))])
    _check_complete(path, found)
    return found


def _check_complete(path: str | Path, files: Sequence[Path]) -> None:
    """Raise ValueError unless the files that are numbered as parts of one set are all of this set and alone."""
    sets: dict[tuple[str, int], set[int]] = {}
    for match in (_NUMBERED.fullmatch(file.stem) for file in files):
        if match:
            sets.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (name, count), numbers in sets.items():
        lacking = sorted(set(range(count)) - numbers)
        if lacking:
            raise ValueError(
                f"{path}: {len(lacking)} of the {count} files of {name!r} are missing, the first of them number "
                f"{lacking[0]}; expected all of them: look whether the run that writes them has ended"
            )
    if len(sets) > 1 or (sets and sum(map(len, sets.values())) < len(files)):
        names = ", ".join(file.name for file in files[:3])
        raise ValueError(f"{path}: files of several sets ({names}, ...); expected those of one, or a list of paths")


def _mapped(path: Path) -> Tensor:
    """Return the embeddings of a file, memory-mapped."""
    if path.suffix == ".npy":
        try:
            return _tensor(np.load(path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}; expected an array that numpy.save wrote") from error
    with opened(path) as file:
        names = list(file.keys())
        if TENSOR not in names:
            raise ValueError(f"{path}: holds {', '.join(names) or 'nothing'}; expected a tensor named {TENSOR!r}")
        mapped: Tensor = file.get_tensor(TENSOR)
        return mapped


def _tensor(array: Any) -> Tensor:
    """Return an array of numbers as a tensor that shares its memory where it can. Nobody writes to it."""
    array = np.asarray(array)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"X: got {array.dtype}; expected real numbers")
    if not array.dtype.isnative or min(array.strides, default=0) < 0:  # which torch does not know
        array = array.astype(array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that must not be written to
        return torch.from_numpy(array)
