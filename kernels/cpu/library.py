"""Loads the C++ kernels, which are called through ctypes: no torch headers at build time, and the GIL is released.

Importing this module raises ImportError where the library was not built (no C++ compiler at installation).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path

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


def bind(name: str, arguments: struct.Struct) -> Callable[[bytes], int]:
    """The function `name`, which takes a packed C struct whose fields all have 8 bytes.

    A packed struct costs a third of a microsecond to make, a ctypes.Structure with nested ones eight.
    """
    if getattr(library, f"{name}_arguments_size")() != arguments.size:
        raise ImportError(f"{library._name} was built from other sources than this package: install again")
    function = getattr(library, name)
    function.argtypes = (ctypes.c_char_p,)
    return function


_OUT_OF_MEMORY = 8


def raise_status(status: int) -> None:
    """What a kernel says of the values it passed over."""
    if status & _OUT_OF_MEMORY:
        raise MemoryError("no memory for the partial sums of the C++ kernel")
    raise ValueError("; ".join(text for bit, text in _STATUS if status & bit))


def require_storage(address: int) -> None:
    if not address:
        raise RuntimeError("the tensors have no storage (fake or traced): the C++ kernel needs real ones")
