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

from irm_fast.backends import choose_backend
from irm_fast.checks import signal_table


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


def implicit_rm(
    reward: Tensor, propensity: Tensor, evidence: Evidence, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """Loss and groups."""
    grad_enabled = torch.is_grad_enabled()
    need_grads = (grad_enabled and reward.requires_grad, grad_enabled and propensity.requires_grad)
    if torch.compiler.is_compiling():
        loss, _, _, groups = implicit_rm_op(reward, propensity, *flatten(evidence), *settings, *need_grads)
        return loss, groups.detach()
    if True in need_grads:
        return _ImplicitRM.apply(reward, propensity, evidence, settings, need_grads)  # type: ignore[no-any-return]
    loss, _, _, groups = _implicit_rm_forward(reward, propensity, evidence, settings, need_grads)
    return loss, groups


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


def _implicit_rm_forward(
    reward: Tensor, propensity: Tensor, evidence: Evidence, settings: Settings, need_grads: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    device, dtype = reward.device, propensity.dtype
    is_double = torch.float64 in (reward.dtype, dtype)
    run = choose_backend(settings.backend, device, is_double).implicit_rm_forward
    options = bound_options(evidence, settings, device, is_double)
    loss, grad_reward, grad_propensity, groups = run(
        reward, propensity, evidence.feedback, need_grads=need_grads, **options
    )
    return loss, grad_reward, grad_propensity, None if groups is None else groups.to(dtype)


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


class _ImplicitRM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, reward, propensity, evidence, settings, need_grads):
        loss, grad_reward, grad_propensity, groups = _implicit_rm_forward(
            reward, propensity, evidence, settings, need_grads
        )
        ctx.save_for_backward(grad_reward, grad_propensity)
        ctx.dtypes = reward.dtype, propensity.dtype
        if groups is not None:
            ctx.mark_non_differentiable(groups)
        return loss, groups

    @staticmethod
    def backward(ctx, upstream, _):
        return *_gradients(ctx, upstream), None, None, None


def _gradients(ctx, upstream: Tensor) -> list[Tensor | None]:
    """Of both logits, where needed."""
    refuse_double_backward("implicit_rm_loss")
    return [
        scaled(grad, upstream, dtype) if needed else None
        for grad, needed, dtype in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], ctx.dtypes, strict=True)
    ]


@torch.library.custom_op("irm_fast::implicit_rm", mutates_args=())
def implicit_rm_op(
    reward: Tensor,
    propensity: Tensor,
    feedback: Tensor,
    preference: Tensor | None,
    weight: Tensor | None,
    reward_strat: Tensor | None,
    propensity_strat: Tensor | None,
    polarity: list[float],
    misclick_rate: list[float],
    scale: float | None,
    per_row: bool,
    need_groups: bool,
    backend: str | None,
    need_reward_grad: bool,
    need_propensity_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, float32 gradients of both logits, and groups; empty where not needed."""
    evidence = unflatten(feedback, preference, weight, reward_strat, propensity_strat)
    settings = Settings(tuple(polarity), tuple(misclick_rate), scale, per_row, need_groups, backend)
    need_grads = (need_reward_grad, need_propensity_grad)
    loss, *results = _implicit_rm_forward(reward, propensity, evidence, settings, need_grads)
    grad_reward, grad_propensity, groups = (loss.new_empty(0) if x is None else x for x in results)
    return loss, grad_reward, grad_propensity, groups


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


@implicit_rm_op.register_fake
def _(
    reward, propensity, feedback, preference, weight, reward_strat, propensity_strat, polarity, misclick_rate, scale,
    per_row, need_groups, backend, need_reward_grad, need_propensity_grad,
):  # fmt: skip
    dtype = compute_dtype(reward, propensity)
    empty = reward.new_empty
    return (
        empty(reward.shape if per_row else (), dtype=dtype),
        empty(reward.shape if need_reward_grad else 0, dtype=dtype),
        empty(propensity.shape if need_propensity_grad else 0, dtype=dtype),
        empty((*propensity.shape, 4) if need_groups else 0, dtype=propensity.dtype if need_groups else dtype),
    )


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _setup_context(ctx, inputs, output):
    reward, propensity = inputs[:2]
    ctx.dtypes = reward.dtype, propensity.dtype
    ctx.save_for_backward(output[1], output[2])


def _backward(ctx, upstream, *_):
    return *_gradients(ctx, upstream), *(None,) * 13


implicit_rm_op.register_autograd(_backward, setup_context=_setup_context)
