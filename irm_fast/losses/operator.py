"""The operations as PyTorch sees them: an autograd.Function for eager calls, a custom operator under torch.compile.

Eager calls go past the dispatcher, which would cost them more than the kernel at small batches; Dynamo cannot look
into the kernels and needs the operator. Gradients are computed in the forward pass and scaled, never in place, in
backward. Backends hand float32 gradients over; they are rounded to the dtype of the logits after the upstream gradient
has been applied, so that a loss scale can lift small ones above float16's floor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from irm_fast.losses.signal_tables import signal_table


class Evidence(NamedTuple):
    """The tensors of a batch that carry no gradient."""

    feedback: Tensor
    preference: Tensor | None
    weight: Tensor | None
    stratification: tuple[Tensor, Tensor] | None


class Settings(NamedTuple):
    """What else the backends want to know; numbers and names only."""

    polarity: tuple[float, ...]
    misclick_rate: tuple[float, ...]
    scale: float | None  # None: 1/N
    per_row: bool
    need_groups: bool
    backend: str | None


def flatten(evidence: Evidence) -> tuple[Tensor | None, ...]:
    """Operators take no tuple of tensors that may be missing."""
    feedback, preference, weight, stratification = evidence
    return feedback, preference, weight, *(stratification or (None, None))


def bound_options(evidence: Evidence, settings: Settings, device: torch.device, is_double: bool) -> dict:
    """The keyword arguments that the backends of both operations share."""
    return {
        "preference": evidence.preference,
        "weight": evidence.weight,
        "stratification": evidence.stratification,
        "signals": signal_table(settings.polarity, settings.misclick_rate, device, is_double),
        "has_misclick": any(settings.misclick_rate),
        "scale": 1.0 / (len(evidence.feedback) or 1) if settings.scale is None else settings.scale,
        "per_row": settings.per_row,
        "need_groups": settings.need_groups,
    }


def scaled(grad: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient times upstream, () or (N,), rounded once."""
    if upstream.dim() == 1 and grad.dim() == 2:
        upstream = upstream.unsqueeze(-1)
    grad = grad * upstream
    return grad if grad.dtype == dtype else grad.to(dtype)


def refuse_double_backward(name: str) -> None:
    """create_graph=True: a second derivative must not vanish in silence."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} has closed-form gradients and cannot be differentiated twice (create_graph=True); "
            f"irm_fast.reference.{name} can"
        )


def unflatten(
    feedback: Tensor,
    preference: Tensor | None,
    weight: Tensor | None,
    reward_strat: Tensor | None,
    propensity_strat: Tensor | None,
) -> Evidence:
    stratification = None
    if reward_strat is not None and propensity_strat is not None:
        stratification = (reward_strat, propensity_strat)
    return Evidence(feedback, preference, weight, stratification)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
