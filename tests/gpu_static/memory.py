"""Memory of the emulated device: checks bounds and alignment of every access, and counts sectors."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SECTOR = 32  # bytes: the unit in which L2 and DRAM are read and written
Array = np.ndarray[Any, Any]


class MemoryFault(AssertionError):
    """An access out of bounds or misaligned."""


@dataclass
class Traffic:
    """Requests of warps: their number, the sectors they touch, and as many as would do for their bytes."""

    requests: int = 0
    sectors: int = 0
    ideal: int = 0
    widths: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # bytes of a lane: requests

    def add(self, addresses: Array, active: Array, n_bytes: int) -> None:
        """Count the requests of all warps of a block."""
        lines = np.where(active, addresses // SECTOR, -1).reshape(-1, 32)
        lines = np.sort(lines, axis=1)
        new = np.diff(lines, axis=1, prepend=-1) != 0
        lanes = active.reshape(-1, 32).sum(1)
        self.requests += int((lanes > 0).sum())
        self.sectors += int((new & (lines >= 0)).sum())
        self.ideal += int(-(-lanes * n_bytes // SECTOR).sum())
        self.widths[n_bytes] += int((lanes > 0).sum())


class Shared:
    """Shared memory of a block."""

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(size, np.uint8)

    def read(self, addresses: Array, n_bytes: int) -> Array:
        """The bytes at each address, (lanes, n_bytes)."""
        return self.bytes[self._places(addresses, n_bytes)]

    def write(self, addresses: Array, values: Array) -> None:
        self.bytes[self._places(addresses, values.shape[1])] = values

    def _places(self, addresses: Array, n_bytes: int) -> Array:
        check_alignment(addresses, n_bytes)
        if len(addresses) and not (addresses.min() >= 0 and addresses.max() + n_bytes <= self.bytes.size):
            raise MemoryFault(f"shared memory of {self.bytes.size} bytes is accessed at {addresses.max()}")
        return addresses[:, None] + np.arange(n_bytes)


class Global:
    """The memory of tensors of this process, at their true addresses. Nothing else can be reached."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        """Take the (first address, bytes) of every tensor."""
        merged: list[list[int]] = []
        for start, size in sorted(spans):
            if merged and start < merged[-1][1]:  # two views of the same memory
                merged[-1][1] = max(merged[-1][1], start + size)
            elif size:
                merged.append([start, start + size])
        self.starts, self.ends = (np.array([x[i] for x in merged], np.int64) for i in (0, 1))
        self.bytes = [np.frombuffer((ctypes.c_uint8 * (b - a)).from_address(a), np.uint8) for a, b in merged]
        self.traffic: dict[str, Traffic] = {"load": Traffic(), "store": Traffic()}

    def read(self, addresses: Array, n_bytes: int) -> Array:
        """The bytes at each address, (lanes, n_bytes)."""
        values = np.zeros((len(addresses), n_bytes), np.uint8)
        for buffer, lanes, places in self._places(addresses, n_bytes):
            values[lanes] = buffer[places]
        return values

    def write(self, addresses: Array, values: Array) -> None:
        for buffer, lanes, places in self._places(addresses, values.shape[1]):
            buffer[places] = values[lanes]

    def _places(self, addresses: Array, n_bytes: int) -> Iterable[tuple[Array, Array, Array]]:
        check_alignment(addresses, n_bytes)
        region = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = (region >= 0) & (addresses + n_bytes <= self.ends[region]) if len(self.starts) else addresses < 0
        if not inside.all():
            wrong = addresses[~inside][0]
            near = self.ends[region[~inside][0]] if len(self.starts) else 0
            raise MemoryFault(f"an access of {n_bytes} bytes at {wrong - near:+d} from the end of a tensor is outside")
        for i in np.unique(region):
            lanes = region == i
            yield self.bytes[i], lanes, (addresses[lanes] - self.starts[i])[:, None] + np.arange(n_bytes)


def check_alignment(addresses: Array, n_bytes: int) -> None:
    """Raise MemoryFault if an address is not a multiple of the bytes accessed there."""
    if (addresses % n_bytes).any():
        raise MemoryFault(f"an access of {n_bytes} bytes is not aligned to them")
