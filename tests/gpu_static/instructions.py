"""What each PTX instruction does to the registers and memories of a block. Names are those of the PTX manual.

A function takes the running `Emulator` (its `read`, `write` and `address` give operands) and the instruction. Not
supported: wgmma, tcgen05, bulk and tensor copies (TMA), textures; clusters; float64 beyond add, sub, mul and fma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gpu_static.memory import Array
from tests.gpu_static.ptx import Instruction, Number, dtype, width

if TYPE_CHECKING:
    from tests.gpu_static.emulator import Emulator

Semantics = Callable[["Emulator", Instruction], None]
INSTRUCTIONS: dict[str, Semantics] = {}


def instruction(*names: str) -> Callable[[Semantics], Semantics]:
    """Register a function under the names of instructions."""

    def register(function: Semantics) -> Semantics:
        INSTRUCTIONS.update(dict.fromkeys(names, function))
        return function

    return register


# Floating point


def flushed(ins: Instruction, x: Array) -> Array:
    """Subnormal numbers become zero under .ftz."""
    if "ftz" not in ins or x.dtype != np.float32:
        return x
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def floats(block: Emulator, ins: Instruction, count: int) -> list[Array]:
    return [flushed(ins, block.read(x, ins.type)) for x in ins.operands[1 : 1 + count]]


def rounded(x: Array, kind: str) -> Array:
    """float64 to a floating type; bfloat16 as its bits."""
    if kind != "bf16":
        return x.astype(dtype(kind))
    return to_bfloat16(x.astype(np.float32))


def to_bfloat16(x: Array) -> Array:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(x), 0x7FFF, nearest).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def halves(bits: Array, kind: str) -> Array:
    """Packed pairs (..,) as float32 (.., 2), the low half first; also single halves (..,) as (.., 1)."""
    pieces = np.ascontiguousarray(bits)[..., None].view(np.uint16)
    return from_bfloat16(pieces) if kind.startswith("bf") else pieces.view(np.float16).astype(np.float32)


def packed(values: Array, kind: str) -> Array:
    """The opposite of `halves`."""
    pieces = to_bfloat16(values) if kind.startswith("bf") else values.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(pieces)
    return bits.view(np.uint32)[..., 0] if bits.shape[-1] == 2 else bits[..., 0]


def arithmetic(name: str, x: Array, y: Array, z: Array | None) -> Array:
    if name in ("mul", "fma", "mad"):
        return x * y if z is None else (x.astype(np.float64) * y + z)
    if name in ("min", "max"):
        return (np.fmin if name == "min" else np.fmax)(x, y)
    return x + y if name == "add" else x - y


@instruction("add", "sub", "mul", "fma", "mad", "min", "max")
def compute(block: Emulator, ins: Instruction) -> None:
    kind, count = ins.type, 3 if ins.name in ("fma", "mad") else 2
    if kind[0] in "us" or kind in ("b32", "b64"):
        return integer(block, ins, count)
    if kind in ("f32", "f64"):
        result = arithmetic(ins.name, *([*floats(block, ins, count), None])[:3])
        if "NaN" in ins:
            x, y = floats(block, ins, 2)
            result = np.where(np.isnan(x) | np.isnan(y), np.nan, result)
        result = flushed(ins, result.astype(dtype(kind)))
        return block.write(ins.operands[0], np.clip(result, 0, 1) if "sat" in ins else result)
    if kind == "f32x2":
        values = [block.read(x, "b64")[..., None].view(np.float32) for x in ins.operands[1 : 1 + count]]
        result = arithmetic(ins.name, *([*values, None])[:3]).astype(np.float32)
        return block.write(ins.operands[0], np.ascontiguousarray(result).view(np.uint64)[..., 0])
    bits = "b32" if kind.endswith("x2") else "b16"
    values = [halves(block.read(x, bits), kind) for x in ins.operands[1 : 1 + count]]
    return block.write(ins.operands[0], packed(arithmetic(ins.name, *([*values, None])[:3]), kind))


@instruction("neg", "abs", "not", "popc", "clz")
def unary(block: Emulator, ins: Instruction) -> None:
    kind = ins.type
    x = block.read(ins.operands[1], kind)
    if ins.name == "not":
        result = ~x
    elif ins.name in ("popc", "clz"):
        digits = [format(int(v), f"0{width(kind)}b") for v in np.broadcast_to(x, block.lanes)]
        counts = [d.count("1") if ins.name == "popc" else len(d) - len(d.lstrip("0")) for d in digits]
        result = np.array(counts, np.uint32)
    elif kind.startswith(("bf16", "f16")):
        x = x.view(f"u{x.dtype.itemsize}")
        sign = x.dtype.type(0x80008000 if kind.endswith("x2") else 0x8000)
        result = x ^ sign if ins.name == "neg" else x & ~sign
    else:
        result = flushed(ins, -x if ins.name == "neg" else np.abs(x))
    block.write(ins.operands[0], result)


# Greatest relative errors of the hardware's approximate functions of float32, before a rounding to float32, as the PTX
# manual bounds them (ISA 9.1, sections 9.7.3.8 to 9.7.3.22). rcp: 1 ulp. ex2: 2 ulp from the correctly rounded one.
# lg2: 2^-22, absolutely where the operand is in (1/2, 2). sqrt, rsqrt, tanh: relative, as here. div: 2 ulp, and zero
# for div.approx by more than 2^126. An ulp is at most 2^-23 of its number, so that these bounds allow up to twice it.
ERRORS = {"rcp": 2.0**-23, "ex2": 2.0**-22, "lg2": 2.0**-22, "sqrt": 2.0**-23, "rsqrt": 2.0**-22.9, "tanh": 2.0**-11}
DIVISION_ERROR = 2.0**-22  # 2 ulp
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "rcp": lambda x: 1 / x, "ex2": np.exp2, "lg2": np.log2, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
}  # fmt: skip


@instruction(*ERRORS)
def function(block: Emulator, ins: Instruction) -> None:
    (x,) = floats(block, ins, 1)
    exact = FUNCTIONS[ins.name](x.astype(np.float64))
    if "rn" in ins:
        result = exact.astype(x.dtype)
    else:
        near_one = (x > 0.5) & (x < 2) if ins.name == "lg2" else False
        result = block.approximate(exact, ERRORS[ins.name], near_one)
    block.write(ins.operands[0], flushed(ins, result))


@instruction("div")
def divide(block: Emulator, ins: Instruction) -> None:
    if ins.type[0] in "us":
        return integer(block, ins, 2)
    x, y = floats(block, ins, 2)
    exact = x.astype(np.float64) / y
    if "approx" in ins:
        far = np.isfinite(y) & (np.abs(y) > np.float32(2.0**126))
        exact = np.where(far, np.where(np.isinf(x), np.nan, np.copysign(0.0, exact)), exact)
    result = exact.astype(x.dtype) if "rn" in ins else block.approximate(exact, DIVISION_ERROR)
    block.write(ins.operands[0], flushed(ins, result))


# Integers


def integer(block: Emulator, ins: Instruction, count: int) -> None:
    kind = ins.type
    if kind.endswith("x2"):
        pairs = [block.read(operand, "b32")[..., None].view(f"{dtype(kind).kind}2") for operand in ins.operands[1:3]]
        result = np.ascontiguousarray(arithmetic(ins.name, *pairs, None))
        return block.write(ins.operands[0], result.view(np.uint32)[..., 0])
    x, y = (block.read(operand, kind) for operand in ins.operands[1:3])
    if ins.name in ("mul", "mad"):
        wide = kind[0] + str(2 * width(kind)) if "wide" in ins or "hi" in ins else kind
        result = product(x, y, dtype(wide)) if "hi" not in ins else high(x, y, kind)
        if count == 3:
            result = result + block.read(ins.operands[3], wide if "wide" in ins else kind)
    elif ins.name in ("div", "rem"):
        result = quotient(ins.name, x, y)
    else:
        result = arithmetic(ins.name, x, y, None)
    block.write(ins.operands[0], result)


def product(x: Array, y: Array, kind: np.dtype) -> Array:
    return x.astype(kind) * y.astype(kind)


def high(x: Array, y: Array, kind: str) -> Array:
    exact = np.multiply(x.astype(object), y.astype(object)) >> width(kind)
    return np.asarray(exact & ((1 << width(kind)) - 1)).astype(f"u{width(kind) // 8}").view(dtype(kind))


def quotient(name: str, x: Array, y: Array) -> Array:
    """Rounded towards zero, as C does; by zero: nothing is promised, here 0."""
    y = np.where(y == 0, 1, y)
    whole = (
        np.where((x < 0) != (y < 0), -(np.abs(x) // np.abs(y)), np.abs(x) // np.abs(y))
        if x.dtype.kind == "i"
        else x // y
    )
    return (whole if name == "div" else x - whole * y).astype(x.dtype)


@instruction("rem")
def remainder(block: Emulator, ins: Instruction) -> None:
    integer(block, ins, 2)


@instruction("and", "or", "xor")
def logic(block: Emulator, ins: Instruction) -> None:
    x, y = (block.read(operand, ins.type) for operand in ins.operands[1:3])
    block.write(ins.operands[0], {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[ins.name](x, y))


@instruction("lop3")
def logic3(block: Emulator, ins: Instruction) -> None:
    x, y, z = (block.read(operand, "b32") for operand in ins.operands[1:4])
    table = ins.operands[4]
    assert isinstance(table, Number)
    result = np.uint32(0)
    for i in range(8):
        if table.bits >> i & 1:
            result = result | ((x if i & 4 else ~x) & (y if i & 2 else ~y) & (z if i & 1 else ~z))
    block.write(ins.operands[0], result)


@instruction("shl", "shr")
def shift(block: Emulator, ins: Instruction) -> None:
    kind = ins.type
    x, by = block.read(ins.operands[1], kind), block.read(ins.operands[2], "u32")
    bits = width(kind)
    inside = np.minimum(by, bits - 1).astype(x.dtype)
    if ins.name == "shl":
        result = np.where(by >= bits, 0, x << inside)
    elif kind[0] == "s":
        result = x >> inside  # the sign, if shifted out
    else:
        result = np.where(by >= bits, 0, x >> inside)
    block.write(ins.operands[0], result.astype(x.dtype))


@instruction("shf")
def funnel_shift(block: Emulator, ins: Instruction) -> None:
    low, top = (block.read(operand, "u32").astype(np.uint64) for operand in ins.operands[1:3])
    by = block.read(ins.operands[3], "u32").astype(np.uint64)
    by = by & np.uint64(31) if "wrap" in ins else np.minimum(by, 32)
    both = top << np.uint64(32) | low
    result = (both << by) >> np.uint64(32) if "l" in ins else both >> by
    block.write(ins.operands[0], (result & np.uint64(0xFFFFFFFF)).astype(np.uint32))


@instruction("bfe")
def extract(block: Emulator, ins: Instruction) -> None:
    kind = ins.type
    x, start, length = block.read(ins.operands[1], kind), *(block.read(o, "u32") for o in ins.operands[2:4])
    bits = width(kind)
    up = np.maximum(0, bits - start.astype(np.int64) - length).astype(x.dtype)
    down = np.minimum(bits - 1, bits - length.astype(np.int64)).astype(x.dtype)
    result = np.where(length == 0, 0, (x << up) >> down)
    block.write(ins.operands[0], result.astype(x.dtype))


@instruction("bfi")
def insert(block: Emulator, ins: Instruction) -> None:
    kind = ins.type
    x, y, start, length = (block.read(o, t) for o, t in zip(ins.operands[1:5], (kind, kind, "u32", "u32"), strict=True))
    one = x.dtype.type(1)
    mask = ((one << length.astype(x.dtype)) - one) << start.astype(x.dtype)
    block.write(ins.operands[0], (y & ~mask) | ((x << start.astype(x.dtype)) & mask))


@instruction("prmt")
def permute(block: Emulator, ins: Instruction) -> None:
    x, y, choice = (np.broadcast_to(block.read(operand, "b32"), block.lanes) for operand in ins.operands[1:4])
    eight = np.stack([x, y], 1).view(np.uint8)
    picks = (choice[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & 15
    taken = np.take_along_axis(eight, (picks & 7).astype(np.int64), 1)
    signs = np.where(taken & 0x80, 0xFF, 0).astype(np.uint8)
    result = np.where(picks & 8, signs, taken).astype(np.uint8)
    block.write(ins.operands[0], np.ascontiguousarray(result).view(np.uint32)[:, 0])


# Comparisons, moves and conversions

COMPARISONS = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


@instruction("setp")
def compare(block: Emulator, ins: Instruction) -> None:
    relation, kind = ins.parts[0], ins.type
    x, y = (block.read(operand, kind) for operand in ins.operands[1:3])
    if kind.startswith(("bf16", "f16")):
        x, y = (halves(v.view(f"u{v.dtype.itemsize}"), kind) for v in (x, y))
        x, y = (x, y) if kind.endswith("x2") else (x[..., 0], y[..., 0])
    unordered = np.isnan(x) | np.isnan(y) if x.dtype.kind == "f" else np.zeros((), bool)
    if relation in ("nan", "num"):
        result = unordered if relation == "nan" else ~unordered
    else:
        result = COMPARISONS[relation[:2]](x, y)
        result = result | unordered if len(relation) == 3 else result & ~unordered
    if len(ins.operands) == 4:  # combined with another predicate
        combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[ins.parts[1]]
        result = combine(result, block.read(ins.operands[3], "pred"))
    target = ins.operands[0]
    if not isinstance(target, list):
        return block.write(target, result)
    both = (result[..., 0], result[..., 1]) if kind.endswith("x2") else (result, ~result)
    for register, value in zip(target, both, strict=True):
        block.write(register, value)


@instruction("selp")
def select(block: Emulator, ins: Instruction) -> None:
    x, y = (block.read(operand, ins.type) for operand in ins.operands[1:3])
    block.write(ins.operands[0], np.where(block.read(ins.operands[3], "pred"), x, y).astype(x.dtype))


@instruction("mov", "cvta")
def move(block: Emulator, ins: Instruction) -> None:
    target, source = ins.operands
    bits = f"b{width(ins.type)}" if ins.type != "pred" else "pred"
    if isinstance(source, list):
        part = f"b{width(ins.type) // len(source)}"
        pieces = np.stack([np.broadcast_to(block.read(x, part), block.lanes) for x in source], 1)
        block.write(target, np.ascontiguousarray(pieces).view(dtype(bits))[:, 0])
    elif isinstance(target, list):
        whole = np.array(np.broadcast_to(block.read(source, bits), block.lanes))
        pieces = whole[:, None].view(f"u{whole.dtype.itemsize // len(target)}")
        for i, register in enumerate(target):
            block.write(register, pieces[:, i])
    else:
        block.write(target, block.read(source, bits))


@instruction("cvt")
def convert(block: Emulator, ins: Instruction) -> None:
    to, source = ins.types
    if len(ins.operands) == 3:  # two floats packed, the first one on top
        top, low = (np.broadcast_to(block.read(x, source), block.lanes) for x in ins.operands[1:])
        return block.write(ins.operands[0], packed(np.stack([low, top], 1), to))
    x = block.read(ins.operands[1], source)
    if source in ("bf16", "f16"):
        x = halves(x.view(np.uint16), source)[..., 0]
    x = flushed(ins, x)
    if to in ("f32", "f64", "f16", "bf16"):
        if ins.parts[0] in ("rni", "rmi", "rpi", "rzi"):
            x = whole_number(ins.parts[0], x)
        return block.write(ins.operands[0], rounded(x, to))
    if x.dtype.kind == "f":
        limits = np.iinfo(dtype(to))
        nearest = np.nan_to_num(whole_number(ins.parts[0], x.astype(np.float64)), nan=0.0)
        inside = np.clip(nearest, float(limits.min), float(limits.max))
        big = nearest >= float(limits.max)
        return block.write(ins.operands[0], np.where(big, limits.max, np.where(big, 0, inside).astype(dtype(to))))
    if "sat" in ins:
        limits = np.iinfo(dtype(to))
        x = np.clip(x, max(limits.min, np.iinfo(x.dtype).min), min(limits.max, np.iinfo(x.dtype).max))
    return block.write(ins.operands[0], x.astype(dtype(to)))


def whole_number(mode: str, x: Array) -> Array:
    return {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}[mode](x)


# Threads of a warp


@instruction("shfl")
def shuffle(block: Emulator, ins: Instruction) -> None:
    value, by, clamp = (np.broadcast_to(block.read(x, "b32"), block.lanes) for x in ins.operands[1:4])
    thread = np.arange(block.lanes)
    lane, by = thread % 32, by.astype(np.int64)
    mask = (clamp >> np.uint32(8)).astype(np.int64) & 31
    last = (lane & mask) | (clamp.astype(np.int64) & 31 & ~mask)
    mode = next(part for part in ins.parts if part in ("bfly", "idx", "up", "down"))
    source = {"bfly": lane ^ by, "up": lane - by, "down": lane + by, "idx": (lane & mask) | (by & ~mask)}[mode]
    inside = source >= last if mode == "up" else source <= last
    target = ins.operands[0]
    if isinstance(target, list):  # the second one says whether the source was inside
        block.write(target[1], inside)
        target = target[0]
    block.write(target, value[thread - lane + np.where(inside, source, lane)])


@instruction("vote")
def vote(block: Emulator, ins: Instruction) -> None:
    votes = np.broadcast_to(block.read(ins.operands[1], "pred"), block.lanes).reshape(-1, 32)
    if "ballot" in ins:
        bits = np.packbits(votes, axis=1, bitorder="little").view(np.uint32)
        return block.write(ins.operands[0], np.repeat(bits, 32))
    result = votes.all(1) if "all" in ins else votes.any(1)
    block.write(ins.operands[0], np.repeat(result, 32))


@instruction("redux")
def reduce_warp(block: Emulator, ins: Instruction) -> None:
    x = np.broadcast_to(block.read(ins.operands[1], ins.type), block.lanes).reshape(-1, 32)
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
    name = next(part for part in ins.parts if part in functions)
    block.write(ins.operands[0], np.repeat(functions[name].reduce(x, axis=1), 32).astype(x.dtype))


@instruction("elect")
def elect(block: Emulator, ins: Instruction) -> None:
    register, elected = ins.operands[0]  # type: ignore[misc]
    block.write(register, np.zeros(block.lanes, np.uint32))
    block.write(elected, np.arange(block.lanes) % 32 == 0)


# A block runs alone and in lockstep: there is nothing to wait for.
@instruction("bar", "barrier", "fence", "membar", "nanosleep", "griddepcontrol", "prefetch")
def wait(block: Emulator, ins: Instruction) -> None:
    """Nothing."""


# Memory


@instruction("ld", "ldu")
def load(block: Emulator, ins: Instruction) -> None:
    kind, target = ins.type, ins.operands[0]
    if ins.parts[0] == "param":
        return load_parameter(block, ins)
    registers = target if isinstance(target, list) else [target]
    n_bytes = len(registers) * width(kind) // 8
    addresses, active = block.address(ins.operands[1]), block.active
    values = np.zeros((block.lanes, n_bytes), np.uint8)
    if "global" in ins:
        block.memory.traffic["load"].add(addresses, active, n_bytes)
    space = block.memory if "global" in ins else block.shared
    values[active] = space.read(addresses[active], n_bytes)
    columns = values.view(dtype(kind))
    for i, register in enumerate(registers):
        block.write(register, columns[:, i])


def load_parameter(block: Emulator, ins: Instruction) -> None:
    name = ins.operands[1].base.name  # type: ignore[union-attr]
    value = block.parameters[name]
    if isinstance(value, float):
        return block.write(ins.operands[0], np.array(value, np.float32))
    bits = width(ins.type)
    number = np.array(int(value) & ((1 << bits) - 1), f"u{bits // 8}")
    block.write(ins.operands[0], number.view(dtype(ins.type)))


@instruction("st")
def store(block: Emulator, ins: Instruction) -> None:
    kind, source = ins.type, ins.operands[1]
    registers = source if isinstance(source, list) else [source]
    values = np.stack([np.broadcast_to(block.read(x, f"b{width(kind)}"), block.lanes) for x in registers], 1)
    values = np.ascontiguousarray(values).view(np.uint8)
    addresses, active = block.address(ins.operands[0]), block.active
    if "global" in ins:
        block.memory.traffic["store"].add(addresses, active, values.shape[1])
    space = block.memory if "global" in ins else block.shared
    space.write(addresses[active], values[active])


ATOMICS: dict[str, Callable[..., Any]] = {
    "add": lambda old, x: old + x, "min": min, "max": max, "and": lambda old, x: old & x, "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x, "exch": lambda old, x: x, "inc": lambda old, x: 0 if old >= x else old + 1,
    "dec": lambda old, x: x if old == 0 or old > x else old - 1, "cas": lambda old, x, new: new if old == x else old,
}  # fmt: skip


@instruction("atom", "red")
def atomic(block: Emulator, ins: Instruction) -> None:
    """The active threads take their turns in order."""
    kind = ins.type
    first = 1 if ins.name == "atom" else 0
    addresses = block.address(ins.operands[first])
    values = [np.broadcast_to(block.read(x, kind), block.lanes) for x in ins.operands[first + 1 :]]
    space, old_values = block.memory if "global" in ins else block.shared, np.zeros(block.lanes, dtype(kind))
    for i in np.flatnonzero(block.active):
        place, (value, *more) = addresses[i : i + 1], (v[i] for v in values)
        old = old_values[i] = space.read(place, width(kind) // 8).view(dtype(kind))[0, 0]
        new = ATOMICS[next(part for part in ins.parts if part in ATOMICS)](old, value, *more)
        space.write(place, np.array([new], dtype(kind))[:, None].view(np.uint8))
    if ins.name == "atom":
        block.write(ins.operands[0], old_values)


@instruction("cp")
def copy_async(block: Emulator, ins: Instruction) -> None:
    """cp.async copies when it is issued; cp.async.wait_group has nothing to wait for."""
    if ins.parts[0] != "async" or "bulk" in ins:
        raise NotImplementedError(f"the emulator does not know {ins.text!r}")
    if "ca" not in ins and "cg" not in ins:
        return
    size = ins.operands[2]
    assert isinstance(size, Number)
    active, target = block.active, block.address(ins.operands[0])
    source = block.address(ins.operands[1])
    wanted = np.full(block.lanes, size.bits)
    if len(ins.operands) > 3:  # fewer bytes, the rest zero
        wanted = np.broadcast_to(block.read(ins.operands[3], "u32"), block.lanes).astype(np.int64)
    if not np.isin(wanted[active], (0, size.bits)).all():
        raise NotImplementedError(f"part of a piece is copied: {ins.text}")
    reads = active & (wanted > 0)
    block.memory.traffic["load"].add(source, reads, size.bits)
    values = np.zeros((block.lanes, size.bits), np.uint8)
    values[reads] = block.memory.read(source[reads], size.bits)
    block.shared.write(target[active], values[active])


def matrix_places(block: Emulator, addresses: Array, count: int, transposed: bool) -> Array:
    """Where the pairs of `count` 8 x 8 matrices lie, (threads, count, 2): lane i has row i / 4, column 2 (i % 4)."""
    thread = np.arange(block.lanes)
    lane, warp = thread % 32, thread - thread % 32
    places = np.empty((block.lanes, count, 2), np.int64)
    for matrix in range(count):
        for j in range(2):
            row, column = (2 * (lane % 4) + j, lane // 4) if transposed else (lane // 4, 2 * (lane % 4) + j)
            places[:, matrix, j] = addresses[warp + 8 * matrix + row] + 2 * column
    return places


@instruction("ldmatrix", "stmatrix")
def matrix(block: Emulator, ins: Instruction) -> None:
    loads = ins.name == "ldmatrix"
    target, place = ins.operands if loads else reversed(ins.operands)
    registers = target if isinstance(target, list) else [target]
    if "m8n8" not in ins or ins.type != "b16":
        raise NotImplementedError(f"the emulator does not know {ins.text!r}")
    places = matrix_places(block, block.address(place), len(registers), "trans" in ins)
    flat = places.reshape(-1)
    if loads:
        values = block.shared.read(flat, 2).reshape(*places.shape[:2], 4).view(np.uint32)[..., 0]
        for i, register in enumerate(registers):
            block.write(register, values[:, i])
    else:
        columns = np.stack([np.broadcast_to(block.read(x, "b32"), block.lanes) for x in registers], 1)
        block.shared.write(flat, np.ascontiguousarray(columns)[..., None].view(np.uint8).reshape(-1, 2))


# Tensor cores


def fragments(lanes: int, depth: int, per: int) -> tuple[Array, Array, Array, Array]:
    """Row and column of A, and row and column of B, of each element that a lane holds; `per` neighbours a register."""
    lane = np.arange(32)[:, None]
    group, inner = lane // 4, lane % 4
    i = np.arange(depth // 8 * 4)[None, :] if per == 2 else np.arange(4 * depth // 8)[None, :]
    register, half = i // per, i % per
    a_row, a_column = group + 8 * (register % 2), inner * per + half + 4 * per * (register // 2)
    j = np.arange(depth // 4)[None, :]
    b_row, b_column = inner * per + j % per + 4 * per * (j // per), group + 0 * j
    return a_row, a_column, b_row, b_column


@instruction("mma")
def multiply_matrices(block: Emulator, ins: Instruction) -> None:
    """mma.sync of m16n8k16 and m16n8k8 with bfloat16, float16 or tf32, accumulated in float32.

    The sum of a product is rounded once here; with a seed it errs by as much as truncation of each addend would cause.
    """
    shape = next(part for part in ins.parts if part.startswith("m16n8k"))
    depth, kind = int(shape[6:]), ins.types[1]
    if ins.types[0] != "f32" or kind not in ("bf16", "f16", "tf32"):
        raise NotImplementedError(f"the emulator does not know {ins.text!r}")
    per = 1 if kind == "tf32" else 2

    def elements(registers: list) -> Array:
        bits = np.stack([np.broadcast_to(block.read(x, "b32"), block.lanes) for x in registers], 1)
        if kind == "tf32":
            values = (bits & np.uint32(0xFFFFE000)).view(np.float32)
        else:
            values = halves(bits, kind).reshape(block.lanes, -1)
        return values.reshape(-1, 32, values.shape[1]).astype(np.float64)

    target, a, b, c = (x if isinstance(x, list) else [x] for x in ins.operands)
    warps = block.lanes // 32
    a_row, a_column, b_row, b_column = fragments(32, depth, per)
    left, right = np.zeros((warps, 16, depth)), np.zeros((warps, depth, 8))
    left[:, a_row, a_column] = elements(a)
    right[:, b_row, b_column] = elements(b)
    lane, i = np.arange(32)[:, None], np.arange(4)[None, :]
    row, column = lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2
    start = np.zeros((warps, 16, 8))
    held = np.stack([np.broadcast_to(block.read(x, "f32"), block.lanes) for x in c], 1)
    start[:, row, column] = held.reshape(warps, 32, 4)
    total = left @ right + start
    if block.random is not None:
        largest = np.maximum(np.abs(start), (np.abs(left)[..., None] * np.abs(right)[:, None]).max(2))
        total = total + largest * block.random.uniform(-(2.0**-22), 2.0**-22, total.shape)
    result = total[:, row, column].reshape(block.lanes, 4).astype(np.float32)
    for k, register in enumerate(target):
        block.write(register, result[:, k])
