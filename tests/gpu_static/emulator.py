"""Runs a PTX kernel on the CPU: one block after the other, the threads of a block in lockstep.

It sees what the compiled code computes, every access out of bounds or misaligned, and how many sectors a warp touches.
It does not see races: a block runs alone, cp.async has copied when it is issued, a barrier has nothing to wait for.
Branches must go the same way in all threads of a block. Arithmetic is exact to the last bit but for fma (rounded from
float64) and the approximate functions: these are exact, or, with a seed, wrong by as much as NVIDIA documents for the
hardware, so that a bound that holds here holds there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.gpu_static.instructions import INSTRUCTIONS
from tests.gpu_static.memory import Array, Global, Shared
from tests.gpu_static.ptx import Address, Number, Operand, Program, Register, Symbol, dtype, width

SHARED_BYTES = 232448


class Emulator:
    """One launch.

    Args:
        program: The kernel.
        arguments: Its parameters in order; addresses and integers as int, the others as float.
        memory: What the addresses point to.
        seed: None for exact approximate functions, else the seed of their errors.

    Attributes:
        executed: How often each instruction ran, over all blocks, by its first name and its parts.
    """

    def __init__(self, program: Program, arguments: Sequence[Any], memory: Global, seed: int | None = None) -> None:
        if len(arguments) != len(program.parameters):
            raise ValueError(f"{program.name} takes {len(program.parameters)} parameters, got {len(arguments)}")
        self.program, self.memory = program, memory
        self.parameters = dict(zip(program.parameters, arguments, strict=True))
        self.random = None if seed is None else np.random.default_rng(seed)
        self.executed: Counter[str] = Counter()

    def run(self, grid: tuple[int, int, int]) -> None:
        """Run every block, in the order of their numbers."""
        for z in range(grid[2]):
            for y in range(grid[1]):
                for x in range(grid[0]):
                    self._run_block((x, y, z), grid)

    def _run_block(self, block: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
        thread = np.arange(self.program.threads, dtype=np.uint32)
        nothing = np.uint32(0)
        self.registers: dict[str, Array] = {"%tid.x": thread, "%tid.y": 0 * thread, "%tid.z": 0 * thread}
        self.registers |= {"%laneid": thread % 32, "%warpid": thread // 32, "%ntid.x": 0 * thread + len(thread)}
        for axis, place, size in zip("xyz", block, grid, strict=True):
            self.registers |= {f"%ctaid.{axis}": nothing * thread + place, f"%nctaid.{axis}": 0 * thread + size}
        self.registers = {name: value.astype(np.uint32) for name, value in self.registers.items()}
        self.shared, self.everyone = Shared(SHARED_BYTES), np.ones(len(thread), bool)
        at: int | None = 0
        while at is not None and at < len(self.program.instructions):
            at = self._step(at)

    def _step(self, at: int) -> int | None:
        """Run one instruction; the place of the next one, None at the end."""
        ins = self.program.instructions[at]
        self.executed[".".join((ins.name, *ins.parts))] += 1
        self.active = self.everyone if ins.guard is None else self.read(ins.guard, "pred")
        if ins.name in ("ret", "exit", "bra"):
            if not self.active.any():
                return at + 1
            if not self.active.all():
                raise NotImplementedError(f"threads of a block go different ways: {ins.text}")
            if ins.name != "bra":
                return None
            target = ins.operands[0]
            assert isinstance(target, Symbol)
            return self.program.labels[target.name]
        try:
            INSTRUCTIONS[ins.name](self, ins)
        except KeyError as error:
            if error.args != (ins.name,):
                raise
            raise NotImplementedError(f"the emulator does not know {ins.text!r}; add it to instructions.py") from None
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"in {self.program.name}: {ins.text}")
            raise
        return at + 1

    @property
    def lanes(self) -> int:
        """The number of threads of the block."""
        return len(self.everyone)

    def read(self, operand: Operand, kind: str) -> Array:
        """The value of an operand as a type; a scalar where it is a number."""
        if isinstance(operand, Number):
            if kind == "pred":
                return np.full(self.lanes, bool(operand.bits))
            bits = np.array(operand.bits & ((1 << width(kind)) - 1), f"u{width(kind) // 8}")
            return bits.view(dtype(kind))
        if isinstance(operand, Symbol):
            return np.zeros((), dtype(kind))  # the one shared variable begins at 0
        assert isinstance(operand, Register), operand
        value = self._value(operand.name)
        if kind == "pred":
            return ~value if operand.negated else value
        kind_of = dtype(kind)
        if value.dtype.itemsize > kind_of.itemsize:
            value = value.astype(f"u{kind_of.itemsize}")
        elif value.dtype.itemsize < kind_of.itemsize:
            raise TypeError(f"{operand.name} is narrower than {kind}")
        return value.view(kind_of)

    def _value(self, name: str) -> Array:
        """What a register holds; one that nothing has written, which compilers leave where no one cares, holds NaN."""
        if name not in self.registers:
            bits = self.program.widths[name.rstrip("0123456789")]
            ones = np.ones(self.lanes, bool) if bits == 1 else np.full(self.lanes, -1, f"i{bits // 8}")
            self.registers[name] = ones if bits == 1 else ones.view(f"u{bits // 8}")
        return self.registers[name]

    def write(self, operand: Operand, value: Array) -> None:
        """Set a register where the instruction is active; a signed value is extended by its sign."""
        assert isinstance(operand, Register), operand
        if operand.name == "_":
            return
        bits = self.program.widths[operand.name.rstrip("0123456789")]
        if bits > 1:
            if value.dtype.kind == "f":
                value = value.view(f"u{value.dtype.itemsize}")
            elif value.dtype.kind == "i":
                value = value.astype(f"i{bits // 8}")
            value = value.astype(f"u{bits // 8}")
        value = np.broadcast_to(value, (self.lanes,))
        if self.active is not self.everyone:
            old = self.registers.get(operand.name)
            value = value if old is None else np.where(self.active, value, old)
        self.registers[operand.name] = value

    def address(self, operand: Operand) -> Array:
        """The addresses that an operand means, int64 (threads,)."""
        assert isinstance(operand, Address), operand
        base = operand.base
        if isinstance(base, Register):
            start = self._value(base.name).astype(np.int64)
        else:
            start = np.full(self.lanes, base.bits if isinstance(base, Number) else 0, np.int64)
        return start + operand.offset

    def approximate(self, value: Array, error: float, absolute: Array | bool = False) -> Array:
        """A float64 result of the hardware's approximate functions, rounded to float32.

        Args:
            value: The exact result.
            error: Its greatest relative error on hardware.
            absolute: Where `error` is an absolute error instead.
        """
        if self.random is not None:
            step = self.random.uniform(-error, error, value.shape)
            value = value + step * np.where(absolute, 1.0, np.where(np.isfinite(value), value, 0.0))
        return value.astype(np.float32)


def run_program(
    program: Program, grid: tuple[int, int, int], arguments: Sequence[Any], memory: Global, seed: int | None = None
) -> Emulator:
    """Run a launch to its end; what it wrote is in memory."""
    emulator = Emulator(program, arguments, memory, seed)
    with np.errstate(all="ignore"):
        emulator.run(grid)
    return emulator
