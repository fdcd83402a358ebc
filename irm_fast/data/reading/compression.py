"""Packed files: how they are packed, by their first bytes, and what they unpack to, within limits."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any

from irm_fast.data.problems import FieldError
from irm_fast.data.reading.limits import ALWAYS_ALLOWED, MAX_DICTIONARY, MAX_GROWTH

_PACKED: dict[bytes, str] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_OPEN: dict[str, Callable[[Any], Any]] = {"gzip": gzip.open, "bzip2": bz2.open}


def packing(head: bytes) -> str | None:
    """Return how a file is packed, by its first bytes: "gzip", "zstd", "bzip2", "xz", or None."""
    return next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)


def unpacked(file: IO[bytes], kind: str) -> io.BufferedReader:
    """Open a packed file, whose reader refuses a file that grows beyond its limits.

    Args:
        file: The file, open in binary mode.
        kind: How it is packed, as of `packing`.
    """
    counted = _Counted(file)
    return io.BufferedReader(_Bounded(_unpacker(counted, kind), counted), 2**16)


def _unpacker(file: Any, kind: str) -> Any:
    """Return a file that reads what a packed file unpacks to."""
    if kind == "xz":
        return _Xz(file)
    if kind == "zstd":
        import pyarrow

        return pyarrow.CompressedInputStream(file, "zstd")
    return _OPEN[kind](file)


class _Counted(io.RawIOBase):
    """A file that counts the bytes that were read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.count = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        self.count += len(data)
        buffer[: len(data)] = data
        return len(data)


class _Bounded(io.RawIOBase):
    """What a packed file unpacks to, as long as it does not grow beyond what honest files do."""

    def __init__(self, file: Any, packed: _Counted) -> None:
        self.file, self.packed, self.count = file, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        self.count += len(data)
        limit = ALWAYS_ALLOWED + MAX_GROWTH * self.packed.count
        if self.count > limit:
            text = f"its first {self.packed.count:,} bytes unpack to more than {limit:,}, {MAX_GROWTH} times their size"
            raise FieldError("file", f"{text}; unpack it first")
        buffer[: len(data)] = data
        return len(data)


class _Xz(io.RawIOBase):
    """What a file of xz unpacks to: of one stream or several, in bounded memory."""

    def __init__(self, file: Any) -> None:
        self.file, self.packed = file, b""
        self.decompressor = lzma.LZMADecompressor(memlimit=MAX_DICTIONARY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.decompressor.eof:
                self.packed = (self.decompressor.unused_data or self.file.read(2**16)).lstrip(b"\0")
                if not self.packed:
                    return 0
                self.decompressor = lzma.LZMADecompressor(memlimit=MAX_DICTIONARY)
            elif self.decompressor.needs_input:
                self.packed = self.file.read(2**16)
                if not self.packed:
                    raise EOFError("it ends within a stream of xz")
            try:
                data = self.decompressor.decompress(self.packed, len(buffer))
            except lzma.LZMAError as error:
                if "emory" not in str(error):
                    raise
                text = f"takes more than {MAX_DICTIONARY:,} bytes of memory to unpack; unpack it first"
                raise FieldError("file", text) from None
            self.packed = b""
            if data:
                buffer[: len(data)] = data
                return len(data)
