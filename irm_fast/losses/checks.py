"""Argument checks of the loss. Shape, dtype and device cost no synchronisation; values are checked on request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from irm_fast.losses.operator import REDUCTIONS

MAX_SIGNALS = 16
LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CODE_DTYPES = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def check_logits(name: str, x: Tensor, shape: torch.Size | None, device: torch.device) -> None:
    _check_tensor(name, x)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}")
    _check_place(name, x, shape, device)


def check_codes(name: str, x: Tensor, shape: torch.Size | None, device: torch.device) -> None:
    _check_tensor(name, x)
    if x.dtype not in CODE_DTYPES:
        raise TypeError(f"{name} must be bool or integer (1, 0, -1), got {x.dtype}")
    _check_place(name, x, shape, device)


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    # Dynamo cannot ask for the negation bit, and resolves it by itself.
    if x.layout != torch.strided or (not torch.compiler.is_compiling() and x.is_neg()):
        raise TypeError(f"{name} must be an ordinary dense tensor (to_dense(), resolve_neg())")


def _check_place(name: str, x: Tensor, shape: torch.Size | None, device: torch.device) -> None:
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, the first argument on {device}: move them to one device")


def check_rewards(reward_logits: Tensor) -> None:
    """Rewards (N,) of any of the logits' dtypes."""
    _check_tensor("reward_logits", reward_logits)
    shape = reward_logits.shape
    if len(shape) != 1:
        hint = "; use reward_logits.squeeze(-1)" if len(shape) == 2 and shape[1] == 1 else ""
        raise ValueError(f"reward_logits must have shape (N,), got {tuple(shape)}{hint}")
    check_logits("reward_logits", reward_logits, None, reward_logits.device)


def check_batch(reward_logits: Tensor, propensity_logits: Tensor, feedback: Tensor, preference: Tensor | None) -> None:
    """Rewards (N,); propensities (N,) or (N, K) with 1 <= K <= 16; feedback alike; preference (N,)."""
    check_rewards(reward_logits)
    shape, device = reward_logits.shape, reward_logits.device
    check_logits("propensity_logits", propensity_logits, None, device)
    n, wanted = shape[0], propensity_logits.shape
    if len(wanted) not in (1, 2) or wanted[0] != n:
        raise ValueError(f"propensity_logits must have shape ({n},) or ({n}, K), got {tuple(wanted)}")
    if len(wanted) == 2 and not 1 <= wanted[1] <= MAX_SIGNALS:
        raise ValueError(f"propensity_logits must hold 1 to {MAX_SIGNALS} signals, got shape {tuple(wanted)}")
    check_codes("feedback", feedback, wanted, device)
    if preference is not None:
        check_codes("preference", preference, shape, device)


def check_hidden(hidden: Tensor, feedback: Tensor) -> None:
    """Hidden states (N, H) with H > 0; feedback (N,) or (N, K) with 1 <= K <= 16."""
    _check_tensor("hidden", hidden)
    if hidden.dim() != 2 or not hidden.shape[1]:
        raise ValueError(f"hidden must have shape (N, H), one pooled state a row, got {tuple(hidden.shape)}")
    check_logits("hidden", hidden, None, hidden.device)
    check_codes("feedback", feedback, None, hidden.device)
    n, shape = hidden.shape[0], feedback.shape
    if len(shape) not in (1, 2) or shape[0] != n or (len(shape) == 2 and not 1 <= shape[1] <= MAX_SIGNALS):
        raise ValueError(
            f"feedback must have shape ({n},) or ({n}, K) with K from 1 to {MAX_SIGNALS}, got {tuple(shape)}"
        )


def check_heads(
    hidden: Tensor,
    n_signals: int,
    reward_weight: Tensor,
    reward_bias: Tensor | None,
    propensity_weight: Tensor | None,
    propensity_bias: Tensor | None,
) -> None:
    """Reward head (H,) and (); propensity heads (K, H) and (K,), or none. Any of the logits' dtypes."""
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
    """Logits shaped like feedback, or (K,) constants, as (N, K)."""
    check_logits("propensity_logits", logits, None, hidden.device)
    if logits.dtype == torch.float64 and hidden.dtype != torch.float64:
        raise ValueError("propensity_logits are float64, hidden is not: convert one of them")
    n_signals = feedback.shape[1] if feedback.dim() == 2 else 1
    if logits.shape == feedback.shape:
        return logits.reshape(feedback.shape[0], n_signals)
    if logits.shape == (n_signals,):  # widened first: the gradient of a constant is a long sum
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).expand(feedback.shape[0], n_signals)
    raise ValueError(
        f"propensity_logits must have shape {tuple(feedback.shape)} or ({n_signals},), got {tuple(logits.shape)}"
    )


def check_weight(weight: Tensor, reward_logits: Tensor) -> Tensor:
    """The weight as the kernels read it: contiguous float32."""
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
    """The logits of a separate stratification model, as constants."""
    if not isinstance(stratification, Sequence) or len(stratification) != 2:
        raise ValueError("stratification must be a pair (reward_logits, propensity_logits), or None")
    reward, propensity = stratification
    device = reward_logits.device
    check_logits("stratification[0]", reward, reward_logits.shape, device)
    check_logits("stratification[1]", propensity, propensity_logits.shape, device)
    if torch.float64 not in (reward_logits.dtype, propensity_logits.dtype):  # the kernels read float32 at most
        reward, propensity = (x.float() if x.dtype == torch.float64 else x for x in (reward, propensity))
    return reward.detach(), propensity.detach()


def check_options(
    first: Tensor, weight: Tensor | None, reduction: str, normalizer: float | Tensor | None
) -> Tensor | None:
    """Reduction and normalizer for the rows of `first`, (N, ...); returns the weight as the kernels read it."""
    check_reduction(first.shape[0], first.device, reduction, normalizer)
    return None if weight is None else check_weight(weight, first)


def check_reduction(n: int, device: torch.device, reduction: str, normalizer: float | Tensor | None) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(f'normalizer replaces N under reduction="mean"; it means nothing with {reduction!r}')
        check_normalizer(normalizer, device)
    elif n == 0 and reduction == "mean":
        raise ValueError('reduction="mean" over no rows (N=0): give a normalizer, or use "sum"')


def check_normalizer(normalizer: float | Tensor, device: torch.device) -> None:
    """A finite number above 0, or a 0-dim tensor on the device, whose value is not looked at."""
    if isinstance(normalizer, Tensor):
        if normalizer.dim() or normalizer.requires_grad:
            raise ValueError(f"normalizer must be 0-dim and a constant, got shape {tuple(normalizer.shape)}")
        if normalizer.device not in (device, torch.device("cpu")):
            raise ValueError(f"normalizer is on {normalizer.device}, the first argument on {device}")
    elif not isinstance(normalizer, Real):
        raise TypeError(f"normalizer must be a number or a 0-dim tensor, got {type(normalizer).__name__}")
    elif not 0 < normalizer < math.inf:
        raise ValueError(f"normalizer must be finite and above 0, got {normalizer}")


def signal_constants(polarity: Any, misclick_rate: Any, n_signals: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Polarity and misclick rate of every signal, as numbers."""
    if polarity is None and misclick_rate is None:
        return _PLAIN[n_signals]
    sign = per_signal("polarity", polarity, 1.0, n_signals)
    rate = per_signal("misclick_rate", misclick_rate, 0.0, n_signals)
    if any(p not in (1, -1) for p in sign):
        raise ValueError(f"polarity must be +1 or -1 for every signal, got {sign}")
    if not all(0 <= e < 1 for e in rate):
        raise ValueError(f"misclick_rate must lie in [0, 1), got {rate}")
    return sign, rate


_PLAIN = [((1.0,) * k, (0.0,) * k) for k in range(MAX_SIGNALS + 1)]


def per_signal(name: str, value: Any, default: float, n_signals: int) -> tuple[float, ...]:
    """A number, a sequence or a CPU tensor as a tuple of K numbers."""
    if value is None:
        return (default,) * n_signals
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise ValueError(f"{name} is on {value.device}: give numbers or a CPU tensor (no waiting for the device)")
    if hasattr(value, "tolist"):  # torch, numpy
        value = value.tolist()
    if isinstance(value, Real):
        return (float(value),) * n_signals
    if not isinstance(value, Sequence) or not all(isinstance(entry, Real) for entry in value):
        raise TypeError(f"{name} must be a number, a sequence of numbers or a CPU tensor, got {value!r}")
    numbers = tuple(float(entry) for entry in value)
    if len(numbers) != n_signals:
        raise ValueError(f"{name} has {len(numbers)} entries for {n_signals} signal(s)")
    return numbers
