"""`linear_implicit_rm_loss`: reward head, propensity heads and loss in one read of the hidden states."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from irm_fast.losses import checks
from irm_fast.losses.dispatch import choose_backend
from irm_fast.losses.operator import (
    Evidence,
    Settings,
    bound_options,
    flatten,
    refuse_double_backward,
    scaled,
    unflatten,
)
from irm_fast.losses.reduction import Reduction, check_options, divided, mean_over
from irm_fast.losses.signal_tables import signal_constants


def linear_implicit_rm_loss(
    hidden: Tensor,
    reward_weight: Tensor,
    feedback: Tensor,
    *,
    reward_bias: Tensor | None = None,
    propensity_weight: Tensor | None = None,
    propensity_bias: Tensor | None = None,
    propensity_logits: Tensor | None = None,
    preference: Tensor | None = None,
    polarity=None,
    misclick_rate=None,
    stratification: tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    return_groups: bool = False,
    check_values: bool = False,
    backend: str | None = None,
) -> Any:
    """Linear heads on hidden states, and `implicit_rm_loss` of their logits, in one read of the hidden states.

    The same value as `implicit_rm_loss(hidden @ reward_weight + reward_bias, hidden @ propensity_weight.T +
    propensity_bias, feedback)`, with logits, loss and sums in float32 whatever the dtype of `hidden`. The forward pass
    reads `hidden` once and leaves the gradients of the logits, N (K+1) float32 numbers, and of the weights; backward
    writes the gradient of `hidden`, times the upstream gradient, without a second read. Nothing else grows with N.

    A second read is needed for the weights with `reduction="none"`, whose upstream gradients are not known in the
    forward pass, and on GPUs where the heads outgrow the registers: above 16,384 for next_pow2(M) times next_pow2(H),
    H taken as 2,048 at least, with M = K+1 heads, or 1 when `propensity_logits` are given.

    Args:
        hidden: (N, H) float32, bfloat16 or float16 with any stride between rows, such as a view into packed states;
            neighbours within a row (else it is copied). float64 selects the reference backend.
        reward_weight: (H,) weight of the reward head.
        feedback: (N,), or (N, K) for K signals, at most 16: 1 acted, 0 silent, -1 missing.
        reward_bias: () bias of the reward head.
        propensity_weight, propensity_bias: (K, H) and (K,) propensity heads on the same hidden states; or
        propensity_logits: instead of propensity heads, (K,) constants, or logits shaped like `feedback`.
        preference, polarity, misclick_rate, stratification, weight, reduction, normalizer, return_groups,
        check_values, backend: as in `implicit_rm_loss`. A row of weight 0 contributes nothing, whatever its hidden
            state holds.

    Returns:
        The loss, float32: () or, for "none", (N,); with `return_groups` the pair (loss, groups), groups float32 with
        the shape of `feedback` and 4 at its end. Gradients come in the dtypes of their tensors, rounded once.

    Raises:
        TypeError, ValueError, RuntimeError: as `implicit_rm_loss`; ValueError unless exactly one of
            `propensity_weight` and `propensity_logits` is given.
    """
    checks.check_hidden(hidden, feedback)
    n, n_signals = hidden.shape[0], feedback.shape[1] if feedback.dim() == 2 else 1
    checks.check_heads(hidden, n_signals, reward_weight, reward_bias, propensity_weight, propensity_bias)
    if (propensity_weight is None) == (propensity_logits is None):
        raise ValueError("give either propensity_weight (heads) or propensity_logits (constants or logits)")
    if propensity_logits is not None:
        propensity_logits = checks.check_given_propensity(propensity_logits, hidden, feedback)
    if preference is not None:
        checks.check_codes("preference", preference, hidden.shape[:1], hidden.device)
    if stratification is not None:
        stratification = checks.check_stratification(stratification, hidden[:, 0], feedback)
        stratification = (stratification[0], stratification[1].reshape(n, n_signals))
    weight = check_options(n, hidden, weight, reduction, normalizer, feedback, preference, check_values)

    scale, divide_by = mean_over(reduction, normalizer)
    signals = signal_constants(polarity, misclick_rate, n_signals)
    evidence = Evidence(feedback.reshape(n, n_signals), preference, weight, stratification)
    settings = Settings(*signals, scale, reduction == "none", return_groups, backend)
    heads, bias = _stack_heads(hidden, reward_weight, reward_bias, propensity_weight, propensity_bias)
    if hidden.stride(1) != 1:
        hidden = hidden.contiguous()
    loss, groups = linear_implicit_rm(hidden, heads, bias, propensity_logits, evidence, settings)
    if divide_by is not None:
        loss = divided(loss, divide_by)
    return loss if groups is None or not return_groups else (loss, groups.reshape(*feedback.shape, 4))


def _stack_heads(
    hidden: Tensor,
    reward_weight: Tensor,
    reward_bias: Tensor | None,
    propensity_weight: Tensor | None,
    propensity_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Weights (M, H) and biases (M,) of all heads, the reward's first, as the kernels read them."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    weights = [reward_weight.unsqueeze(0).to(dtype)]
    bias = [hidden.new_zeros(1, dtype=dtype) if reward_bias is None else reward_bias.unsqueeze(0).to(dtype)]
    if propensity_weight is not None:
        n_signals = propensity_weight.shape[0]
        weights.append(propensity_weight.to(dtype))
        zeros = hidden.new_zeros(n_signals, dtype=dtype) if propensity_bias is None else propensity_bias
        bias.append(zeros.to(dtype))
    return torch.cat(weights), torch.cat(bias)


def linear_implicit_rm(
    hidden: Tensor, heads: Tensor, bias: Tensor, propensity: Tensor | None, evidence: Evidence, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """Loss and groups. Shapes: hidden (N, H), heads (M, H), bias (M,), propensity (N, K) or None, feedback (N, K)."""
    inputs = (hidden, heads, bias, propensity)
    needed = tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs)
    # One upstream gradient for the whole batch scales the gradient of the heads; one a row needs a second read.
    need_weight_grad = needed[1] and not settings.per_row
    need_logit_grads = needed[0] or needed[2] or needed[3] or (needed[1] and settings.per_row)
    need_grads = (need_logit_grads, need_weight_grad)
    if torch.compiler.is_compiling():
        arguments = (*flatten(evidence), *settings, *need_grads)
        loss, _, _, groups = linear_implicit_rm_op(hidden, heads, bias, propensity, *arguments)
        return loss, groups.detach()
    if any(needed):
        return _LinearImplicitRM.apply(*inputs, evidence, settings, need_grads)  # type: ignore[no-any-return]
    loss, _, _, groups = _forward(*inputs, evidence, settings, need_grads)
    return loss, groups


def _backend(hidden: Tensor, computed: Tensor, name: str | None) -> Any:
    """The module that works where hidden is, in the dtype of `computed`: heads, or gradients."""
    return choose_backend(name, hidden.device, computed.dtype == torch.float64, "linear_implicit_rm")


def _forward(
    hidden: Tensor,
    heads: Tensor,
    bias: Tensor,
    propensity: Tensor | None,
    evidence: Evidence,
    settings: Settings,
    need_grads: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    return _backend(hidden, heads, settings.backend).linear_implicit_rm_forward(
        hidden,
        heads,
        bias,
        propensity,
        evidence.feedback,
        need_logit_grads=need_grads[0],
        need_weight_grad=need_grads[1],
        **bound_options(evidence, settings, hidden.device, heads.dtype == torch.float64),
    )


class _LinearImplicitRM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, heads, bias, propensity, evidence, settings, need_grads):
        loss, grad_logits, grad_heads, groups = _forward(
            hidden, heads, bias, propensity, evidence, settings, need_grads
        )
        again = hidden if ctx.needs_input_grad[1] and grad_heads is None else None
        ctx.save_for_backward(grad_logits, grad_heads, heads, again, None if again is None else evidence.weight)
        ctx.dtypes = hidden.dtype, None if propensity is None else propensity.dtype
        ctx.backend = _backend(hidden, heads, settings.backend)
        if groups is not None:
            ctx.mark_non_differentiable(groups)
        return loss, groups

    @staticmethod
    def backward(ctx, upstream, _):
        return *_gradients(ctx, upstream, ctx.backend), None, None, None


def _gradients(ctx, upstream: Tensor, backend: Any) -> tuple[Tensor | None, ...]:
    """Of hidden, heads, bias and propensity, where needed."""
    refuse_double_backward("linear_implicit_rm_loss")
    grad_logits, grad_heads, heads, hidden, weight = ctx.saved_tensors
    need_hidden, need_heads, need_bias, need_propensity = ctx.needs_input_grad[:4]
    hidden_dtype, propensity_dtype = ctx.dtypes
    n_heads, dtype = len(heads), heads.dtype
    grad_hidden = grad_bias = grad_propensity = None
    device = upstream.device.type
    # Products of matrices stay in float32.
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        if need_hidden:
            grad_hidden = backend.linear_hidden_grad(grad_logits, upstream, heads, hidden_dtype)
        if need_heads and grad_heads is not None:
            grad_heads = grad_heads * upstream
        elif need_heads:
            rows = scaled(grad_logits, upstream, dtype)
            grad_heads = backend.linear_weight_grad(hidden, rows, weight, n_heads)
        if need_bias:
            grad_bias = scaled(grad_logits[:, :n_heads], upstream, dtype).sum(0)
        if need_propensity:
            grad_propensity = scaled(grad_logits[:, 1:], upstream, propensity_dtype)
    return grad_hidden, grad_heads if need_heads else None, grad_bias, grad_propensity


@torch.library.custom_op("irm_fast::linear_implicit_rm", mutates_args=())
def linear_implicit_rm_op(
    hidden: Tensor,
    heads: Tensor,
    bias: Tensor,
    propensity: Tensor | None,
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
    need_logit_grads: bool,
    need_weight_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, gradients of the logits (N, K+1) and of the heads (M, H), and groups; empty where not needed."""
    evidence = unflatten(feedback, preference, weight, reward_strat, propensity_strat)
    settings = Settings(tuple(polarity), tuple(misclick_rate), scale, per_row, need_groups, backend)
    need_grads = (need_logit_grads, need_weight_grad)
    loss, *results = _forward(hidden, heads, bias, propensity, evidence, settings, need_grads)
    grad_logits, grad_heads, groups = (loss.new_empty(0) if x is None else x for x in results)
    return loss, grad_logits, grad_heads, groups


@linear_implicit_rm_op.register_fake
def _(
    hidden, heads, bias, propensity, feedback, preference, weight, reward_strat, propensity_strat, polarity,
    misclick_rate, scale, per_row, need_groups, backend, need_logit_grads, need_weight_grad,
):  # fmt: skip
    n, n_signals = feedback.shape
    empty = heads.new_empty
    return (
        empty(n if per_row else ()),
        empty((n, n_signals + 1) if need_logit_grads else 0),
        empty(heads.shape if need_weight_grad else 0),
        empty((n, n_signals, 4) if need_groups else 0),
    )


@torch.library.custom_op("irm_fast::linear_hidden_grad", mutates_args=())
def linear_hidden_grad_op(
    grad_logits: Tensor, upstream: Tensor, heads: Tensor, dtype: torch.dtype, backend: str | None
) -> Tensor:
    return _backend(grad_logits, heads, backend).linear_hidden_grad(grad_logits, upstream, heads, dtype)


@linear_hidden_grad_op.register_fake
def _(grad_logits, upstream, heads, dtype, backend):
    return heads.new_empty((grad_logits.shape[0], heads.shape[1]), dtype=dtype)


@torch.library.custom_op("irm_fast::linear_weight_grad", mutates_args=())
def linear_weight_grad_op(
    hidden: Tensor, grad_logits: Tensor, weight: Tensor | None, n_heads: int, backend: str | None
) -> Tensor:
    return _backend(hidden, grad_logits, backend).linear_weight_grad(hidden, grad_logits, weight, n_heads)


@linear_weight_grad_op.register_fake
def _(hidden, grad_logits, weight, n_heads, backend):
    return grad_logits.new_empty((n_heads, hidden.shape[1]))


class _Traced:
    """The backward functions of a backend, as operators."""

    def __init__(self, name: str | None):
        self.name = name

    def linear_hidden_grad(self, grad_logits, upstream, heads, dtype):
        return linear_hidden_grad_op(grad_logits, upstream, heads, dtype, self.name)

    def linear_weight_grad(self, hidden, grad_logits, weight, n_heads):
        return linear_weight_grad_op(hidden, grad_logits, weight, n_heads, self.name)


def _setup_context(ctx, inputs, output):
    hidden, heads, _, propensity, _, _, weight = inputs[:7]
    ctx.backend, need_weight_grad = inputs[-3], inputs[-1]
    again = hidden if ctx.needs_input_grad[1] and not need_weight_grad else None
    ctx.save_for_backward(
        output[1], output[2] if need_weight_grad else None, heads, again, None if again is None else weight
    )
    ctx.dtypes = hidden.dtype, None if propensity is None else propensity.dtype


def _backward(ctx, upstream, *_):
    return *_gradients(ctx, upstream, _Traced(ctx.backend)), *(None,) * 13


linear_implicit_rm_op.register_autograd(_backward, setup_context=_setup_context)
