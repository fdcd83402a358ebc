"""Machine code of NVIDIA GPUs, counted: what one warp executes for one tile of rows.

A count follows the path of a full tile: of the ways through the code that move what a tile has to move, the shortest.
A loop counts once for the rows of a tile; a loop inside of it as often as its kernel's constants say.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ALMOST = 0.9  # of the bytes that a way through the code can move at most: then it is that of a full tile


class Sass(NamedTuple):
    """An instruction: its opcode, what may skip it, and where it may jump to."""

    opcode: str
    guard: str | None
    target: str | None


class Loop(NamedTuple):
    """First and last instruction."""

    first: int
    last: int

    def holds(self, other: Loop) -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


class Code:
    """A kernel in machine code."""

    def __init__(self, cubin: bytes) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(cubin)
            text = _output("nvdisasm", "-c", path)
            usage = _output("cuobjdump", "-res-usage", path)
        self.instructions: list[Sass] = []
        self.labels: dict[str, int] = {}
        for line in text.splitlines():
            if label := re.match(r"\s*(\.L_?x?_?\w+):", line):
                self.labels[label[1]] = len(self.instructions)
            elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z0-9_.]+)\s*(.*?);", line):
                jump = re.search(r"`\((\.L\w+)\)", found[3])
                guard = found[1] or (re.match(r"!?U?P\d", found[3]) and "BRA" in found[2] and found[3].split(",")[0])
                self.instructions.append(Sass(found[2], guard or None, jump[1] if jump else None))
        resources = {name: int(value) for name, value in re.findall(r"([A-Z]+)(?:\[\d\])?:(\d+)", usage)}
        self.registers, self.stack = resources["REG"], resources["STACK"]

    def jump(self, at: int) -> int | None:
        """Where the instruction may jump to, by its number. Jumps of slow paths, which return, do not count."""
        ins = self.instructions[at]
        if not re.match(r"BRA(?!\.DIV)", ins.opcode) or ins.target is None:
            return None
        return self.labels[ins.target]

    @cached_property
    def end(self) -> int:
        """The number of instructions before the first atomic: behind it the last program adds what all have left."""
        numbers = (i for i, ins in enumerate(self.instructions) if re.match(r"ATOMG|ATOM\.|RED", ins.opcode))
        return next(numbers, len(self.instructions))

    @cached_property
    def loops(self) -> list[Loop]:
        """Loops before `end`, outer ones first; the padding behind the code is none."""
        found: dict[int, int] = {}
        for i in range(len(self.instructions)):
            target = self.jump(i)
            if target is not None and target < i and i < self.end:
                found[target] = max(i, found.get(target, 0))
        return sorted((Loop(a, b) for a, b in found.items()), key=lambda x: (x.first, -x.last))

    @cached_property
    def rows_loop(self) -> Loop | None:
        """The outer loop that loads most, over tiles of rows; None where a program is one tile."""
        outer = [x for x in self.loops if not any(y.holds(x) for y in self.loops)]
        return max(outer, key=lambda x: loaded(self._between(x)), default=None)

    def tile(self, loops: bool, trips: int) -> Counter[str]:
        """Opcodes that a warp executes for a full tile of rows.

        Args:
            loops: Whether a program loops over tiles.
            trips: How often a loop inside of a tile runs.
        """
        whole = Loop(0, len(self.instructions) - 1)
        loop = self.rows_loop if loops and self.rows_loop else whole
        counts: Counter[str] = Counter()
        inner = [x for x in self.loops if loop.holds(x)]
        for i in self._shortest_way(loop):
            times = trips if any(x.first <= i <= x.last for x in inner) else 1
            counts[self.instructions[i].opcode] += times
        return counts

    def _between(self, loop: Loop) -> Iterator[str]:
        return (ins.opcode for ins in self.instructions[loop.first : loop.last + 1])

    def _shortest_way(self, loop: Loop) -> list[int]:
        """The instructions of the shortest way that moves almost as much as any, backward jumps not taken."""
        ways: dict[int, list[tuple[int, int, tuple]]] = {loop.first: [(0, 0, ())]}  # bytes moved, length, blocks
        ends: list[tuple[int, int, tuple]] = []
        starts = sorted({loop.first, *self._block_starts(loop)})
        for start, stop in zip(starts, [*starts[1:], loop.last + 1], strict=True):
            here = _best(ways.pop(start, []))
            if not here:
                continue
            size = sum(1 for ins in self.instructions[start:stop] if ins.opcode != "NOP")
            names = [ins.opcode for ins in self.instructions[start:stop]]
            moved = loaded(names) + stored(names)
            here = [(b + moved, n + size, (*blocks, (start, stop))) for b, n, blocks in here]
            last, target = self.instructions[stop - 1], self.jump(stop - 1)
            goes_on = last.guard is not None or not re.match(r"BRA(?!\.DIV)|EXIT|RET", last.opcode)
            if last.opcode == "EXIT" or stop == loop.last + 1:
                ends += here
            if target is not None and target >= stop and target <= loop.last:
                ways.setdefault(target, []).extend(here)
            if goes_on and stop <= loop.last:
                ways.setdefault(stop, []).extend(here)
        most = max(way[0] for way in ends)
        chosen = min((way for way in ends if way[0] >= ALMOST * most), key=lambda way: way[1])
        return [i for start, stop in chosen[2] for i in range(start, stop) if self.instructions[i].opcode != "NOP"]

    def _block_starts(self, loop: Loop) -> Iterator[int]:
        for i in range(loop.first, loop.last):
            if self.jump(i) is not None or self.instructions[i].opcode in ("EXIT", "RET"):
                yield i + 1
        yield from (x for x in self.labels.values() if loop.first < x <= loop.last)


def _best(ways: list[tuple[int, int, tuple]]) -> list[tuple[int, int, tuple]]:
    """The shortest way for each number of bytes."""
    best: dict[int, tuple[int, int, tuple]] = {}
    for way in ways:
        if way[0] not in best or way[1] < best[way[0]][1]:
            best[way[0]] = way
    return list(best.values())


def width(opcode: str) -> int:
    """Bits that a lane moves in one load or store."""
    found = re.search(r"\.(?:U|S)?(8|16|64|128|256)(?=\.|$)", opcode)
    return int(found[1]) if found else 32


def loaded(opcodes: Iterable[str]) -> int:
    """Bytes that the opcodes load from global memory, by one lane."""
    return sum(width(x) // 8 for x in opcodes if x.startswith(("LDG", "LDGSTS", "UBLKCP")))


def stored(opcodes: Iterable[str]) -> int:
    """Bytes that they store there."""
    return sum(width(x) // 8 for x in opcodes if x.startswith("STG"))


def _output(tool: str, *arguments: object) -> str:
    command = [str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
