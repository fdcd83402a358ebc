"""Checks of the losses' arguments: kind, shape, dtype and device of tensors, and the range of plain numbers.

No value of a tensor on a device is read: nothing waits for it. `kernels/reference/values.py` checks values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from irm_fast.losses import MAX_SIGNALS, rates
from irm_fast.losses.conversions import for_every_row, integer_codes, is_of_signals
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
    _check_tensor(name, x)
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
    _check_tensor(name, x)
    if x.dtype not in CODE_DTYPES and x.dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name} must be bool, integer (1, 0, -1) or floating point (1, 0, -1, NaN), got {x.dtype}")
    _check_place(name, x, shape, device)
    return integer_codes(x)


def _check_tensor(name: str, x: Tensor) -> None:
    """Check that `x`, called `name` in the error, is a dense tensor of this process without a negation bit.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    kind = type(x).__name__  # by name: the modules of the classes need not be loaded
    if kind == "DTensor":
        raise TypeError(
            f"{name} must be a tensor of this process, got a DTensor: use {name}.to_local() or .full_tensor()"
        )
    if kind in _WITHOUT_VALUES and not torch.compiler.is_compiling():
        raise TypeError(
            f"{name} must be a tensor of values, got a {kind}, which has none: call the loss on real tensors, or trace "
            "it by torch.compile or torch.export"
        )
    # Dynamo cannot ask for the negation bit, and resolves it by itself.
    if x.layout != torch.strided or (not torch.compiler.is_compiling() and x.is_neg()):
        raise TypeError(f"{name} must be an ordinary dense tensor (to_dense(), resolve_neg())")


def _check_place(name: str, x: Tensor, shape: torch.Size | None, device: torch.device) -> None:
    """Check that `x`, called `name` in the error, has the shape (None: any) and the device; else raise ValueError."""
    if shape is not None and x.shape != shape:
        hint = f"; use {name}.unsqueeze(-1)" if (*x.shape, 1) == shape else ""
        hint = f"; use {name}.squeeze(-1)" if x.shape == (*shape, 1) else hint
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}{hint}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, the first argument on {device}: move them to one device")


def check_rewards(reward_logits: Tensor) -> None:
    """Check reward logits.

    Args:
        reward_logits: Must be (N,) float32, bfloat16, float16 or float64.

    Raises:
        TypeError: They are no dense tensor, or of another dtype.
        ValueError: The shape is another.
    """
    _check_tensor("reward_logits", reward_logits)
    shape = reward_logits.shape
    if len(shape) != 1:
        hint = "; use reward_logits.squeeze(-1)" if len(shape) == 2 and shape[1] == 1 else ""
        raise ValueError(f"reward_logits must have shape (N,), got {tuple(shape)}{hint}")
    check_logits("reward_logits", reward_logits, None, reward_logits.device)


class CheckedBatch(NamedTuple):
    """The tensors of a batch as the kernels read them."""

    propensity_logits: Tensor  # (N,) or (N, K)
    feedback: Tensor  # likewise, bool or integer
    preference: Tensor | None  # (N,), bool or integer
    groups_dtype: torch.dtype  # that of the propensity logits as they were given


def check_batch(
    reward_logits: Tensor, propensity_logits: Tensor, feedback: Tensor, preference: Tensor | None
) -> CheckedBatch:
    """Check the tensors of a batch against each other; all must be on one device.

    Args:
        reward_logits: Must be (N,) float32, bfloat16, float16 or float64.
        propensity_logits: Must be (N,) or (N, K) with K from 1 to 16, or constants, () or (K,); the same dtypes.
        feedback: Must be (N,) or (N, K), and shaped like `propensity_logits` if these are no constants; bool, integer
            or floating point.
        preference: Must be (N,), of the same dtypes as `feedback`; None: no labels.

    Returns:
        The tensors with constants as logits of rows, and with integer codes.

    Raises:
        TypeError: One is no dense tensor, or of another dtype.
        ValueError: A shape or device does not fit.
    """
    check_rewards(reward_logits)
    shape, device = reward_logits.shape, reward_logits.device
    n = shape[0]
    check_logits("propensity_logits", propensity_logits, None, device)
    dtype = propensity_logits.dtype
    if propensity_logits.dim() < 2 and propensity_logits.shape != getattr(feedback, "shape", None):
        feedback = check_feedback(feedback, n, device)
        propensity_logits = logits_of_rows("propensity_logits", propensity_logits, feedback.shape)
    wanted = propensity_logits.shape
    if len(wanted) not in (1, 2) or wanted[0] != n:
        raise ValueError(f"propensity_logits must have shape ({n},) or ({n}, K), got {tuple(wanted)}")
    if len(wanted) == 2 and not 1 <= wanted[1] <= MAX_SIGNALS:
        raise ValueError(f"propensity_logits must hold 1 to {MAX_SIGNALS} signals, got shape {tuple(wanted)}")
    feedback = check_codes("feedback", feedback, wanted, device)
    if preference is not None:
        preference = check_codes("preference", preference, shape, device)
    return CheckedBatch(propensity_logits, feedback, preference, dtype)


def logits_of_rows(name: str, logits: Tensor, rows: torch.Size) -> Tensor:
    """Return logits of rows as they are, and constants for every row.

    Args:
        name: The name of the argument, for the error.
        logits: Must have the shape of rows, or be constants of signals, () or (K,).
        rows: The shape of the feedback, (N,) of one signal or (N, K).

    Raises:
        ValueError: The shape is another.
    """
    if logits.shape == rows:
        return logits
    if is_of_signals(logits, rows):
        return for_every_row(logits, rows)
    raise ValueError(
        f"{name} must have shape {tuple(rows)} as the feedback has, or {tuple(rows[1:]) or (1,)} or () for constants, "
        f"got {tuple(logits.shape)}"
    )


def check_feedback(feedback: Tensor, n: int, device: torch.device) -> Tensor:
    """Check feedback on n rows, whose values are not read.

    Args:
        feedback: Must be (N,) or (N, K) with K from 1 to 16; bool, integer or floating point.
        n: The number N of rows.
        device: The device that it must be on.

    Returns:
        The feedback as `check_codes` returns it.

    Raises:
        TypeError: It is no dense tensor, or of another dtype.
        ValueError: The shape or device does not fit.
    """
    codes = check_codes("feedback", feedback, None, device)
    shape = codes.shape
    if len(shape) not in (1, 2) or shape[0] != n or (len(shape) == 2 and not 1 <= shape[1] <= MAX_SIGNALS):
        raise ValueError(
            f"feedback must have shape ({n},) or ({n}, K) with K from 1 to {MAX_SIGNALS}, got {tuple(shape)}"
        )
    return codes


def check_states(hidden: Tensor, width: int | None = None) -> None:
    """Check pooled hidden states.

    Args:
        hidden: Must be (N, H) with H > 0, float32, bfloat16, float16 or float64.
        width: The number that H must be; None: any.

    Raises:
        TypeError: They are no dense tensor, or of another dtype.
        ValueError: The shape is another.
    """
    _check_tensor("hidden", hidden)
    if hidden.dim() != 2 or not hidden.shape[1] or width not in (None, hidden.shape[1]):
        wanted = f"(N, {width or 'H'})"
        raise ValueError(f"hidden must have shape {wanted}, one pooled state a row, got {tuple(hidden.shape)}")
    check_logits("hidden", hidden, None, hidden.device)


def check_hidden(hidden: Tensor, feedback: Tensor) -> Tensor:
    """Check hidden states and feedback, which must be on one device.

    Args:
        hidden: Must be (N, H) with H > 0, float32, bfloat16, float16 or float64.
        feedback: Must be (N,) or (N, K) with K from 1 to 16, bool, integer or floating point.

    Returns:
        The feedback as integers.

    Raises:
        TypeError: One is no dense tensor, or of another dtype.
        ValueError: A shape or device does not fit.
    """
    check_states(hidden)
    return check_feedback(feedback, hidden.shape[0], hidden.device)


def check_heads(
    hidden: Tensor,
    n_signals: int,
    reward_weight: Tensor,
    reward_bias: Tensor | None,
    propensity_weight: Tensor | None,
    propensity_bias: Tensor | None,
) -> None:
    """Check linear heads, which may each be float32, bfloat16, float16 or float64.

    Args:
        hidden: Hidden states (N, H), on whose device the heads must be.
        n_signals: The number K of signals.
        reward_weight: Must be (H,).
        reward_bias: Must be () or None.
        propensity_weight: Must be (K, H), or None for no propensity heads.
        propensity_bias: Must be (K,) or None, and None without `propensity_weight`.

    Raises:
        TypeError: One is no dense tensor, or of another dtype.
        ValueError: A shape or device does not fit, or there are propensity biases without weights.
    """
    width, none = hidden.shape[1], torch.Size(())
    _check_tensor("reward_weight", reward_weight)
    shapes: dict[str, tuple[Tensor | None, torch.Size]] = {
        "reward_weight": (reward_weight, torch.Size((width,))),
        "reward_bias": (reward_bias, none),
        "propensity_weight": (propensity_weight, torch.Size((n_signals, width))),
        "propensity_bias": (propensity_bias, torch.Size((n_signals,))),
    }
    for name, (x, shape) in shapes.items():
        if x is None:
            continue
        check_logits(name, x, None, hidden.device)
        if x.shape != shape:
            hint = f"; use {name}.squeeze(0)" if x.shape == (1, *shape) else ""
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}{hint}")
    if propensity_bias is not None and propensity_weight is None:
        raise ValueError("propensity_bias belongs to propensity_weight; constants go into propensity_logits")


def check_given_propensity(logits: Tensor, hidden: Tensor, feedback: Tensor) -> Tensor:
    """Check propensity logits that take the place of propensity heads.

    Args:
        logits: Must be shaped like `feedback`, or constants, () or (K,); floating point, float64 only if `hidden` is.
        hidden: Hidden states (N, H).
        feedback: Feedback (N,) or (N, K).

    Returns:
        The logits as (N, K), or constants as (K,).

    Raises:
        TypeError: They are no dense tensor, or of another dtype.
        ValueError: The shape or device does not fit, or they alone are float64.
    """
    check_logits("propensity_logits", logits, None, hidden.device)
    if logits.dtype == torch.float64 and hidden.dtype != torch.float64:
        raise ValueError("propensity_logits are float64, hidden is not: convert one of them")
    rows = feedback.shape
    if is_of_signals(logits, rows):
        return logits if logits.dim() else logits.expand(rows[1:] or (1,))
    return logits_of_rows("propensity_logits", logits, rows).reshape(rows[0], rows[1] if len(rows) == 2 else 1)


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
    _check_tensor("weight", weight)
    if not weight.dtype.is_floating_point and weight.dtype not in CODE_DTYPES:
        raise TypeError(f"weight must be real numbers, got {weight.dtype}")
    _check_place("weight", weight, reward_logits.shape[:1], reward_logits.device)
    if weight.requires_grad:
        raise ValueError("weight must not require a gradient: it is a constant of the loss")
    return weight if reward_logits.dtype == torch.float64 else weight.to(torch.float32).contiguous()


def check_stratification(
    stratification: tuple[Tensor, Tensor], reward_logits: Tensor, propensity_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Check the logits of a separate stratification model, which the posterior comes from.

    Args:
        stratification: Must be a pair of logits shaped like the next two arguments, on the device of `reward_logits`;
            the propensities may be constants, () or (K,).
        reward_logits: Of the shape (N,).
        propensity_logits: Of the shape (N,) or (N, K); `linear_implicit_rm_loss` gives the feedback, which has it too.

    Returns:
        The pair, detached, and float64 rounded to float32 unless one of the other two arguments is float64.

    Raises:
        TypeError: One of the two is no dense tensor, or not floating point.
        ValueError: It is no pair, or a shape or device does not fit.
    """
    if not isinstance(stratification, Sequence) or len(stratification) != 2:
        raise ValueError("stratification must be a pair (reward_logits, propensity_logits), or None")
    reward, propensity = stratification
    device = reward_logits.device
    check_logits("stratification[0]", reward, reward_logits.shape, device)
    check_logits("stratification[1]", propensity, None, device)
    propensity = logits_of_rows("stratification[1]", propensity, propensity_logits.shape)
    if torch.float64 not in (reward_logits.dtype, propensity_logits.dtype):  # the kernels read float32 at most
        reward, propensity = (x.float() if x.dtype == torch.float64 else x for x in (reward, propensity))
    return reward.detach(), propensity.detach()


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
        _check_tensor("normalizer", normalizer)
        if normalizer.dim() or normalizer.requires_grad:
            raise ValueError(f"normalizer must be 0-dim and a constant, got shape {tuple(normalizer.shape)}")
        if normalizer.device not in (device, torch.device("cpu")):
            raise ValueError(f"normalizer is on {normalizer.device}, the first argument on {device}")
    elif not isinstance(normalizer, Real):
        raise TypeError(f"normalizer must be a number or a 0-dim tensor, got {type(normalizer).__name__}")
    elif not 0 < as_float("normalizer", normalizer) < math.inf:
        raise ValueError(f"normalizer must be finite and above 0, got {normalizer}")


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
        ValueError: It is an integer beyond all floats.
    """
    if isinstance(value, int) and abs(value) >= 2**1023:
        raise ValueError(f"{name} must be a number that a float holds, got an integer of {value.bit_length()} bits")
    return float(value)


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
        _check_tensor(name, value)
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
