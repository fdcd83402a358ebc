"""The C++ kernel, called through ctypes: no torch headers at build time, and the GIL is released during the call.

Importing this module raises ImportError where the library was not built (no C++ compiler at installation).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

_LOGIT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_UNSIGNED = (torch.bool, torch.uint8)
_STATUS = (
    (1, "feedback holds a value other than 1 (acted), 0 (silent) and -1 (missing)"),
    (2, "preference holds a value other than 1, 0 and -1 (unknown)"),
    (4, "weight holds a value that is negative or not finite"),
)


class _Logits(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("signal_stride", ctypes.c_int64),
    )


class _Codes(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("is_unsigned", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("signal_stride", ctypes.c_int64),
    )


class _Arguments(ctypes.Structure):
    # Field by field `struct Arguments` of implicit_rm.cpp.
    _fields_ = (
        ("n_rows", ctypes.c_int64),
        ("n_signals", ctypes.c_int64),
        ("reward", _Logits),
        ("propensity", _Logits),
        ("reward_strat", _Logits),
        ("propensity_strat", _Logits),
        ("feedback", _Codes),
        ("preference", _Codes),
        ("weight", ctypes.c_void_p),
        ("signals", ctypes.c_void_p),
        ("has_misclick", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("loss_rows", ctypes.c_void_p),
        ("loss_sum", ctypes.c_void_p),
        ("grad_reward", ctypes.c_void_p),
        ("grad_propensity", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("n_threads", ctypes.c_int64),
    )


def _load() -> ctypes.CDLL:
    # __path__ has two entries in an editable install: the sources, and where the library was put.
    for folder in __path__:
        library = Path(folder) / "irm_fast_cpu.so"
        if library.exists():
            loaded = ctypes.CDLL(str(library))
            loaded.irm_implicit_rm.argtypes = (ctypes.POINTER(_Arguments),)
            if loaded.irm_arguments_size() != ctypes.sizeof(_Arguments):
                raise ImportError(f"{library} was built from other sources than this package: install again")
            return loaded
    raise ImportError("the C++ kernel was not built (no C++ compiler at installation); install again with one")


_library = _load()
_library.irm_instruction_set.restype = ctypes.c_char_p
INSTRUCTION_SET: str = _library.irm_instruction_set().decode()  # avx512, avx2 or baseline, by the processor


def _logits(x: Tensor | None) -> _Logits:
    if x is None:
        return _Logits()
    return _Logits(x.data_ptr(), _LOGIT_TYPES[x.dtype], x.stride(0), x.stride(1) if x.dim() == 2 else 0)


def _codes(x: Tensor | None) -> _Codes:
    if x is None:
        return _Codes()
    signal_stride = x.stride(1) if x.dim() == 2 else 0
    return _Codes(x.data_ptr(), x.element_size(), x.dtype in _UNSIGNED, x.stride(0), signal_stride)


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def implicit_rm_forward(
    reward: Tensor,
    propensity: Tensor,
    feedback: Tensor,
    *,
    preference: Tensor | None,
    weight: Tensor | None,
    stratification: tuple[Tensor, Tensor] | None,
    signals: Tensor,
    has_misclick: bool,
    scale: float,
    per_row: bool,
    need_grads: tuple[bool, bool],
    need_groups: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss, both gradients and groups of a batch in one pass; all results float32. Shapes as in the Triton twin."""
    n, shape = reward.shape[0], propensity.shape
    n_signals = shape[1] if len(shape) == 2 else 1
    if n and not reward.data_ptr():
        raise RuntimeError("the tensors have no storage (fake or traced): the C++ kernel needs real ones")

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:  # whatever torch's defaults are
        return torch.empty(size, dtype=dtype, device="cpu")

    loss = empty(n) if per_row else empty(dtype=torch.float64)
    grad_reward = empty(n) if need_grads[0] else None
    grad_propensity = empty(*shape) if need_grads[1] else None
    groups = empty(*shape, 4) if need_groups else None
    reward_strat, propensity_strat = stratification or (None, None)
    arguments = _Arguments(
        n,
        n_signals,
        _logits(reward),
        _logits(propensity),
        _logits(reward_strat),
        _logits(propensity_strat),
        _codes(feedback),
        _codes(preference),
        _pointer(weight),
        signals.data_ptr(),
        has_misclick,
        scale,
        loss.data_ptr() if per_row else None,
        None if per_row else loss.data_ptr(),
        _pointer(grad_reward),
        _pointer(grad_propensity),
        _pointer(groups),
        torch.get_num_threads(),
    )
    status = _library.irm_implicit_rm(ctypes.byref(arguments))
    if status:
        raise ValueError("; ".join(text for bit, text in _STATUS if status & bit))
    return (loss if per_row else loss.float()), grad_reward, grad_propensity, groups
