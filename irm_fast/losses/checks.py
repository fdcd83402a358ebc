"""Checks of one argument of a loss: kind, shape, dtype and device of a tensor, and the range of plain numbers.

No value of a tensor on a device is read: nothing waits for it. `batch_checks` checks the tensors of a batch against
each other, `kernels/reference/values.py` checks values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from irm_fast.losses import MAX_SIGNALS, rates
from irm_fast.losses.conversions import integer_codes
from irm_fast.losses.operator import REDUCTIONS

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CODE_DTYPES = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_WITHOUT_VALUES = ("FakeTensor", "FunctionalTensor")


def check_logits(name: str, x: Tensor, shape: torch.Size | None, device: torch.device) -> None:
    """Check a floating-point tensor.

    Args:
        name: The name of the argument, for the error.
        x: The tensor.
        shape: The shape that it must have; None: any.
        device: The device that it must be on.

    Raises:
        TypeError: It is no dense tensor, or not float32, bfloat16, float16 or float64.
        ValueError: Its shape or device is another.
    """
    check_tensor(name, x)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}")
    _check_place(name, x, shape, device)


def check_codes(name: str, x: Tensor, shape: torch.Size | None, device: torch.device) -> Tensor:
    """Check a tensor of codes, such as feedback (1 acted, 0 silent, -1 not recorded), whose values are not read.

    Args:
        name: The name of the argument, for the error.
        x: The tensor.
        shape: The shape that it must have; None: any.
        device: The device that it must be on.

    Returns:
        The codes as the kernels read them: as they are, or as int8 if they are floating point, see `integer_codes`.

    Raises:
        TypeError: It is no dense tensor, or neither bool nor int8, uint8, int16, int32, int64 or floating point.
        ValueError: Its shape or device is another.
    """
    check_tensor(name, x)
    dtype = x.dtype
    whole = dtype in CODE_DTYPES
    if not whole and dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name} must be bool, integer (1, 0, -1) or floating point (1, 0, -1, NaN), got {dtype}")
    _check_place(name, x, shape, device)
    return x if whole else integer_codes(x)


def check_tensor(name: str, x: Tensor) -> None:
    """Check that `x`, called `name` in the error, is a dense tensor of this process without a negation bit.

    Raises:
        TypeError: It is none.
    """
    if type(x) is not Tensor:
        _check_kind(name, x)
    # Dynamo cannot ask for the negation bit, and resolves it by itself.
    if x.is_nested or x.layout != torch.strided or (not torch.compiler.is_compiling() and x.is_neg()):
        raise TypeError(f"{name} must be an ordinary dense tensor (to_dense(), resolve_neg())")


def _check_kind(name: str, x: Tensor) -> None:
    """Check that `x`, called `name` in the error, is a tensor of a class that holds values here; else raise TypeError.

    Classes are told by name: their modules need not be loaded.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    kind = type(x).__name__
    if kind == "DTensor":
        raise TypeError(
            f"{name} must be a tensor of this process, got a DTensor: use {name}.to_local() or .full_tensor()"
        )
    if kind in _WITHOUT_VALUES and not torch.compiler.is_compiling():
        raise TypeError(
            f"{name} must be a tensor of values, got a {kind}, which has none: call the loss on real tensors, or trace "
            "it by torch.compile or torch.export"
        )


def _check_place(name: str, x: Tensor, shape: torch.Size | None, device: torch.device) -> None:
    """Check that `x`, called `name` in the error, has the shape (None: any) and the device; else raise ValueError."""
    if shape is not None and x.shape != shape:
        hint = f"; use {name}.unsqueeze(-1)" if (*x.shape, 1) == shape else ""
        hint = f"; use {name}.squeeze(-1)" if x.shape == (*shape, 1) else hint
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}{hint}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, the first argument on {device}: move them to one device")


def check_weight(weight: Tensor, reward_logits: Tensor) -> Tensor:
    """Check row weights.

    Args:
        weight: Must be (N,) on the device of `reward_logits`: floating point, integer or bool.
        reward_logits: A tensor (N, ...) of logits or hidden states.

    Returns:
        The weights as the kernels read them: contiguous float32; unchanged if `reward_logits` is float64.

    Raises:
        TypeError: They are no dense tensor, or not real numbers.
        ValueError: The shape or device does not fit, or they require a gradient.
    """
    check_tensor("weight", weight)
    if not weight.dtype.is_floating_point and weight.dtype not in CODE_DTYPES:
        raise TypeError(f"weight must be real numbers, got {weight.dtype}")
    _check_place("weight", weight, reward_logits.shape[:1], reward_logits.device)
    if weight.requires_grad:
        raise ValueError("weight must not require a gradient: it is a constant of the loss")
    return weight if reward_logits.dtype == torch.float64 else weight.to(torch.float32).contiguous()


def check_options(
    first: Tensor, weight: Tensor | None, reduction: str, normalizer: float | Tensor | None
) -> Tensor | None:
    """Check the options that all losses share.

    Args:
        first: The first argument of the loss, (N, ...).
        weight: Row weights (N,), or None.
        reduction: Must be "mean", "sum" or "none".
        normalizer: The number that replaces N under "mean", or None.

    Returns:
        The weights as `check_weight` returns them, or None.

    Raises:
        TypeError: As `check_weight` and `check_reduction`.
        ValueError: As `check_weight` and `check_reduction`.
    """
    check_reduction(first.shape[0], first.device, reduction, normalizer)
    return None if weight is None else check_weight(weight, first)


def check_reduction(n: int, device: torch.device, reduction: str, normalizer: float | Tensor | None) -> None:
    """Check the reduction and the normalizer.

    Args:
        n: The number of rows.
        device: The device of the loss.
        reduction: Must be "mean", "sum" or "none".
        normalizer: The number that replaces n under "mean", or None.

    Raises:
        TypeError: As `check_normalizer`.
        ValueError: As `check_normalizer`; the reduction is unknown, a normalizer is given without "mean", or "mean" is
            taken over no rows without a normalizer.
    """
    check_values_exist(device)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(f'normalizer replaces N under reduction="mean"; it means nothing with {reduction!r}')
        check_normalizer(normalizer, device)
    elif n == 0 and reduction == "mean":
        raise ValueError('reduction="mean" over no rows (N=0): give a normalizer, or use "sum"')


def check_values_exist(device: torch.device) -> None:
    """Raise TypeError if tensors on the device have no values."""
    if device.type == "meta":
        raise TypeError("the tensors are meta tensors, which have no values: make them on a device")


def check_normalizer(normalizer: float | Tensor, device: torch.device) -> None:
    """Check a normalizer.

    Args:
        normalizer: Must be a finite number above 0, or a 0-dim tensor without a gradient, whose value is not read.
        device: The device of the loss; a tensor must be there or on the CPU.

    Raises:
        TypeError: It is neither a number nor a tensor.
        ValueError: The number is out of range, or the tensor has another shape or device, or requires a gradient.
    """
    if isinstance(normalizer, Tensor):
        check_tensor("normalizer", normalizer)
        if normalizer.dim() or normalizer.requires_grad:
            raise ValueError(f"normalizer must be 0-dim and a constant, got shape {tuple(normalizer.shape)}")
        if normalizer.device not in (device, torch.device("cpu")):
            raise ValueError(f"normalizer is on {normalizer.device}, the first argument on {device}")
    elif not isinstance(normalizer, Real):
        raise TypeError(f"normalizer must be a number or a 0-dim tensor, got {type(normalizer).__name__}")
    elif not rates.LEAST <= as_float("normalizer", normalizer) < math.inf:  # 1 over less is infinite in float32
        raise ValueError(f"normalizer must be finite and above 0, got {normalizer}; expected what float32 holds")


def signal_constants(polarity: Any, misclick_rate: Any, n_signals: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the polarity and the misclick rate of every signal, as two tuples of K numbers.

    Args:
        polarity: 1 or -1, for all signals or K of them, as `per_signal` takes them; None: all 1.
        misclick_rate: In [0, 1), for all signals or K of them; None: all 0.
        n_signals: The number K of signals.

    Raises:
        TypeError: As `per_signal`.
        ValueError: As `per_signal`, or a number is out of range.
    """
    if polarity is None and misclick_rate is None:
        return _PLAIN[n_signals]
    sign = per_signal("polarity", polarity, 1.0, n_signals)
    rate = per_signal("misclick_rate", misclick_rate, 0.0, n_signals)
    if any(p not in (1, -1) for p in sign):
        raise ValueError(f"polarity must be +1 or -1 for every signal, got {sign}")
    if not rates.are_rates(rate):
        raise ValueError(f"misclick_rate must be {rates.EXPECTED}, got {rate}")
    return sign, rate


_PLAIN = [((1.0,) * k, (0.0,) * k) for k in range(MAX_SIGNALS + 1)]


def as_float(name: str, value: Any) -> float:
    """Return a plain number as a float.

    Args:
        name: The name of the argument, for the error.
        value: The number.

    Raises:
        ValueError: It is beyond all floats.
    """
    if isinstance(value, float):
        return value
    if isinstance(value, int) and abs(value) >= 2**1023:
        raise ValueError(f"{name} must be a number that a float holds, got an integer of {value.bit_length()} bits")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float holds, got a {type(value).__name__}") from None


def per_signal(name: str, value: Any, default: float, n_signals: int) -> tuple[float, ...]:
    """Return a number for each of K signals, as a tuple.

    Args:
        name: The name of the argument, for the error.
        value: A number, which is repeated, or K of them as a sequence, NumPy array or CPU tensor; None: the default.
        default: The number to take for None.
        n_signals: The number K of signals.

    Raises:
        TypeError: The value is neither a number nor a flat sequence of numbers.
        ValueError: It is on another device than the CPU, or has another number of entries than K.
    """
    if value is None:
        return (default,) * n_signals
    if isinstance(value, Tensor):
        check_tensor(name, value)
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise ValueError(f"{name} is on {value.device}: give numbers or a CPU tensor (no waiting for the device)")
    if hasattr(value, "tolist"):  # torch, numpy
        value = value.tolist()
    if isinstance(value, Real):
        return (as_float(name, value),) * n_signals
    if not isinstance(value, Sequence) or not all(isinstance(entry, Real) for entry in value):
        raise TypeError(f"{name} must be a number, a sequence of numbers or a CPU tensor, got {value!r}")
    numbers = tuple(as_float(name, entry) for entry in value)
    if len(numbers) != n_signals:
        raise ValueError(f"{name} has {len(numbers)} entries for {n_signals} signal(s)")
    return numbers
