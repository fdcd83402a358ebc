"""Packed files: how they are packed, by their first bytes, and what they unpack to, up to a limit."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any, cast

from irm_fast.data.problems import FieldError

MAX_GROWTH, ALWAYS_ALLOWED = 200, 2**30  # times the bytes of a packed file, and bytes, that it may unpack to
_PACKED: dict[bytes, str] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_OPEN: dict[str, Callable[[Any], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}


def packing(head: bytes) -> str | None:
    """Return how a file is packed, by its first bytes: "gzip", "zstd", "bzip2", "xz", or None."""
    return next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)


def unpacked(file: IO[bytes], kind: str) -> Any:
    """Open a packed file."""
    if kind == "zstd":
        import pyarrow

        return pyarrow.CompressedInputStream(file, "zstd")
    return _OPEN[kind](file)


def bounded(file: Any, size: int | None) -> io.BufferedReader:
    """Return what a packed file unpacks to, up to a limit.

    Args:
        file: What `unpacked` returns.
        size: The size of the packed file in bytes, or None where it is not known.
    """
    return io.BufferedReader(cast(io.RawIOBase, _Bounded(file, size)))


class _Bounded(io.RawIOBase):
    """What a packed file unpacks to, up to a limit."""

    def __init__(self, file: Any, size: int | None) -> None:
        self.file, self.left = file, ALWAYS_ALLOWED + MAX_GROWTH * (size or 0)
        self.limit = self.left if size is not None else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        self.left -= len(data)
        if self.limit is not None and self.left < 0:
            text = f"unpacks to more than {self.limit:,} bytes, {MAX_GROWTH} times its size; unpack it first"
            raise FieldError("file", text)
        buffer[: len(data)] = data
        return len(data)
