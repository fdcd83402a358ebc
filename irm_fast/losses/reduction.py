"""Reduction."""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from irm_fast.kernels.reference import values
from irm_fast.losses import checks


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


Reduction = Literal["mean", "sum", "none"]


REDUCTIONS = get_args(Reduction)


def check_options(
    n: int,
    first: Tensor,
    weight: Tensor | None,
    reduction: str,
    normalizer: float | Tensor | None,
    feedback: Tensor,
    preference: Tensor | None,
    check_values: bool,
) -> Tensor | None:
    """What both losses check of their options; the weight as the kernels read it."""
    check_reduction(n, first.device, reduction, normalizer)
    if weight is not None:
        weight = checks.check_weight(weight, first)
    if check_values:
        values.check_values(feedback, preference, weight)
    return weight


def check_reduction(n: int, device: torch.device, reduction: str, normalizer: float | Tensor | None) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(f'normalizer replaces N under reduction="mean"; it means nothing with {reduction!r}')
        check_normalizer(normalizer, device)
    elif n == 0 and reduction == "mean":
        raise ValueError('reduction="mean" over no rows (N=0): give a normalizer, or use "sum"')


def mean_over(reduction: str, normalizer: float | Tensor | None) -> tuple[float | None, float | Tensor | None]:
    """What the kernel multiplies by, None for 1/N, and what to divide by afterwards.

    A normalizer on a device stays there, never read. torch.compile would compile anew for every value that it sees
    handed over to the kernel: it gets neither 1/N nor a normalizer.
    """
    if reduction != "mean":
        return 1.0, None
    if isinstance(normalizer, Tensor) or (normalizer is not None and torch.compiler.is_compiling()):
        return 1.0, normalizer
    return None if normalizer is None else 1.0 / normalizer, None


def divided(loss: Tensor, by: float | Tensor) -> Tensor:
    return loss / (by.to(loss.dtype) if isinstance(by, Tensor) else by)
