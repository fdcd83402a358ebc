"""Files of tensors that irm-fast writes, in the safetensors format: opened, hashed, and compared with their hash."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor

ROW_HASH = "row_hash"  # the column of hashes of the rows
HASH = "blake2b"  # the metadata entry with a hash of all columns
_BLOCK = 2**22  # numbers that are in memory at a time, where a file is looked through


def damage_to(path: str | Path) -> str:
    """Say what is wrong with a part, or with a file that parts were put together to; "" if it is as written.

    Args:
        path: The file. One of an earlier version has no hash of what it holds: only its form is looked at.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with opened(path) as file:
            for name in in_order(file.keys()):
                column = file.get_slice(name)
                shape = column.get_shape()
                step = max(1, _BLOCK // max(1, math.prod(shape[1:])))
                for start in range(0, shape[0], step):
                    digest.update(memory_of(column[start : start + step]))
            written = (file.metadata() or {}).get(HASH)
    except (ValueError, RuntimeError, SafetensorError) as error:
        return str(error)
    return "" if written in (None, digest.hexdigest()) else "it holds other numbers than were written"


def in_order(names: Iterable[str]) -> list[str]:
    """The names of columns in the order in which they are hashed: that of the rows first."""
    return sorted(names, key=lambda name: (name != ROW_HASH, name))


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor."""
    import torch

    held: Any = tensor.contiguous().view(torch.uint8).numpy().ravel()
    return memoryview(held)


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file to read tensors from; raise ValueError if it is missing or damaged."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: not found; expected a file that irm-fast wrote")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or no safetensors file: {error}; expected one of irm-fast") from error
