"""Loads the C++ kernels, which are called through ctypes: no torch headers at build time, and the GIL is released.

Importing this module raises ImportError where the library was not built (no C++ compiler at installation).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

LOGIT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
UNSIGNED = (torch.bool, torch.uint8)
_STATUS = (
    (1, "feedback holds a value other than 1 (acted), 0 (silent) and -1 (missing)"),
    (2, "preference holds a value other than 1, 0 and -1 (unknown)"),
    (4, "weight holds a value that is negative or not finite"),
)


def _load() -> ctypes.CDLL:
    # The package's path has two entries in an editable install: the sources, and where the library was put.
    from irm_fast.kernels.cpu import __path__ as folders

    for folder in folders:
        library = Path(folder) / "irm_fast_cpu.so"
        if library.exists():
            return ctypes.CDLL(str(library))
    raise ImportError("the C++ kernel was not built (no C++ compiler at installation); install again with one")


library = _load()
library.irm_instruction_set.restype = ctypes.c_char_p
INSTRUCTION_SET: str = library.irm_instruction_set().decode()  # avx512, avx2 or baseline, by the processor


class Field(ctypes.Structure):
    """An entry of the layout that the library exports for a struct: `irm::Field` of layout.h."""

    _fields_ = (("name", ctypes.c_char_p), ("offset", ctypes.c_int64), ("is_double", ctypes.c_int64))


def logits_fields(view: str) -> tuple[str, ...]:
    """The fields of a `LogitsView`."""
    return f"{view}.data", f"{view}.type", f"{view}.row_stride", f"{view}.signal_stride"


def codes_fields(view: str) -> tuple[str, ...]:
    """The fields of a `CodesView`."""
    return f"{view}.data", f"{view}.width", f"{view}.is_unsigned", f"{view}.row_stride", f"{view}.signal_stride"


def bind(name: str, fields: Sequence[str]) -> tuple[Callable[[bytes], int], struct.Struct]:
    """The function `name`, and the packer of its struct, which takes an eighth of the time of a ctypes.Structure.

    Args:
        name: The name of an exported function, which has a layout, `<name>_layout`.
        fields: The fields in the order in which they are packed. All have 8 bytes; the one named `scale` is a double.

    Raises:
        ImportError: The library has another layout, or no such function.
    """
    if not hasattr(library, name):
        raise ImportError(f"{library._name} has no function {name}: it is of another version; install again")
    layout = getattr(library, f"{name}_layout")
    layout.restype = ctypes.POINTER(Field)
    check_layout(name, fields, layout())
    function = getattr(library, name)
    function.argtypes = (ctypes.c_char_p,)
    return function, struct.Struct("=" + "".join("d" if _is_double(field) else "q" for field in fields))


def check_layout(name: str, fields: Sequence[str], layout: Any) -> None:
    """Raise ImportError, naming the first field that differs, unless the fields lie where the library has them."""
    there = []
    while layout[len(there)].name is not None:
        there.append(layout[len(there)])
    found = {field.name.decode().replace(" ", ""): (field.offset, bool(field.is_double)) for field in there}
    expected = {field: (8 * number, _is_double(field)) for number, field in enumerate(fields)}
    for field in {**expected, **found}:
        got, wanted = (_in_words(where.get(field)) for where in (found, expected))
        if got != wanted:
            raise ImportError(
                f"{library._name}: {name}: field {field!r} {got} in the library and {wanted} in this package: they are "
                "of different versions; install again"
            )
    if layout[len(there)].offset != 8 * len(fields):
        raise ImportError(f"{library._name}: {name}: its struct has fields that have no name; install again")


def _is_double(field: str) -> bool:
    return field.rpartition(".")[2] == "scale"


def _in_words(place: tuple[int, bool] | None) -> str:
    return "is missing" if place is None else f"is {'a double' if place[1] else 'an integer'} at byte {place[0]}"


_OUT_OF_MEMORY = 8


def raise_status(status: int) -> None:
    """What a kernel says of the values it passed over."""
    if status & _OUT_OF_MEMORY:
        raise MemoryError("no memory for the partial sums of the C++ kernel")
    raise ValueError("; ".join(text for bit, text in _STATUS if status & bit))


def require_storage(address: int) -> None:
    if not address:
        raise RuntimeError("the tensors have no storage (fake or traced): the C++ kernel needs real ones")
