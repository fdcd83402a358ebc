"""PTX as data: the instructions, labels, parameters and shared variables of the one kernel in a text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

TYPE = re.compile(r"([bsuf])(8|16|32|64)(x2)?|bf16(x2)?|tf32|pred")


class Register(NamedTuple):
    """A register by name, or a special one such as %tid.x."""

    name: str
    negated: bool = False  # a predicate read as its opposite


class Number(NamedTuple):
    """An immediate: the bits of a number, or an integer of any sign."""

    bits: int


class Symbol(NamedTuple):
    """The address of a shared variable, or a label."""

    name: str


class Address(NamedTuple):
    """[base + offset]."""

    base: Register | Symbol | Number
    offset: int


Operand = Register | Number | Symbol | Address | list  # a list: {a, b, ..} or a|b


@dataclass(frozen=True)
class Instruction:
    """One instruction; `name` is the first part of its opcode, `parts` are the others."""

    text: str
    name: str
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    types: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        types = tuple(part for part in self.parts if TYPE.fullmatch(part))
        object.__setattr__(self, "types", types)

    @property
    def type(self) -> str:
        """The last type named by the opcode: that of its arguments."""
        return self.types[-1]

    def __contains__(self, part: str) -> bool:
        return part in self.parts


@dataclass
class Program:
    """A kernel."""

    name: str
    parameters: dict[str, str]  # name: type
    threads: int  # of a block
    instructions: list[Instruction]
    labels: dict[str, int]  # name: index of the instruction behind it
    widths: dict[str, int]  # prefix of registers such as "%r": bits; predicates have 1


def parse(text: str) -> Program:
    """The kernel of a PTX text. Raises ValueError if there is not exactly one or a line is not understood."""
    entries = re.findall(r"\.entry\s+(\w+)\s*\(", text)
    if len(entries) != 1:
        raise ValueError(f"expected one kernel in the PTX text, got {entries}")
    head, body = text[text.index(".entry") :].split("{", 1)
    body = re.split(r"^\s*(?://\s*-- End function|\.section)", body, maxsplit=1, flags=re.M)[0]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    body = re.sub(r"//.*", "", body)
    threads = re.search(r"\.reqntid\s+(\d+)", head)
    if threads is None:
        raise ValueError(f"kernel {entries[0]} does not say its number of threads (.reqntid)")
    parameters = {n: t for t, n in re.findall(r"\.param\s+\.(\w+)\s+(?:\.ptr[^,)]*?)?(\w+)(?=\s*[,)\n])", head)}
    program = Program(entries[0], parameters, int(threads[1]), [], {}, {"%p": 1})
    for statement in _statements(body):
        _add(program, statement)
    return program


def _statements(body: str) -> list[str]:
    """Statements and labels; braces of scopes are dropped, those of vectors kept."""
    body = re.sub(r"^\s*\.(?:loc|file|pragma)\b.*$", "", body, flags=re.M)
    body = re.sub(r"(^|[;:{}])\s*[{}](?=\s)", r"\1 ", body.replace("\n", " \n"), flags=re.M)
    pieces = re.split(r";|(?<=:)\s", body)
    return [text for piece in pieces if (text := " ".join(piece.split()).strip()) and text not in "{}"]


def _add(program: Program, statement: str) -> None:
    label = re.fullmatch(r"(\$?[\w$]+):", statement)
    if label:
        program.labels[label[1]] = len(program.instructions)
        return
    if statement.startswith(".reg"):
        kind, names = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement).groups()  # type: ignore[union-attr]
        for name in names.split(","):
            program.widths[name.strip().split("<")[0]] = width(kind)
        return
    if statement.startswith("."):
        return
    found = re.fullmatch(r"(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)", statement)
    if not found:
        raise ValueError(f"PTX that the parser does not understand: {statement!r}")
    negated, guard, opcode, rest = found.groups()
    name, *parts = opcode.replace("::", "_").split(".")
    operands = tuple(_operand(x) for x in _split(rest))
    guarded = Register(guard, bool(negated)) if guard else None
    program.instructions.append(Instruction(statement, name, tuple(parts), operands, guarded))


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    return [x.strip() for x in re.split(r",(?![^\[{]*[\]}])", text) if x.strip()]


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return [_operand(x) for x in _split(text.strip("{} "))]
    if text.startswith("["):
        found = re.fullmatch(r"\[\s*([%\w.$]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if not found:
            raise ValueError(f"an address that the parser does not understand: {text!r}")
        base = _operand(found[1])
        assert isinstance(base, (Register, Symbol, Number))
        return Address(base, int(found[2] or "0", 0))
    if "|" in text:  # two destinations
        return [_operand(x) for x in text.split("|")]
    if text.startswith(("%", "!%")) or text == "_":
        return Register(text.lstrip("!"), text.startswith("!"))
    if re.match(r"0[fF][0-9a-fA-F]{8}$|0[dD][0-9a-fA-F]{16}$", text):
        return Number(int(text[2:], 16))
    if re.match(r"-?\d", text):
        return Number(int(text.rstrip("U"), 0))
    return Symbol(text)


def width(kind: str) -> int:
    """Bits of a type."""
    if kind == "pred":
        return 1
    return int(re.findall(r"\d+", kind)[0]) * (2 if kind.endswith("x2") else 1)


def dtype(kind: str) -> np.dtype:
    """The numpy dtype in which values of a type are calculated; packed and bfloat16 values are their bits."""
    if kind == "pred":
        return np.dtype(bool)
    letter = {"s": "i", "f": "f"}.get(kind[0], "u")
    if kind[0] == "f" and (kind.endswith("x2") or kind[1] == "8"):
        letter = "u"
    return np.dtype(f"{letter}{width(kind) // 8}")
