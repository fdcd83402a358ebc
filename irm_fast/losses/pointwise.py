"""The weighted pointwise loss: what all losses on a single logit a row have in common (see `baselines`)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from irm_fast.losses import checks
from irm_fast.losses.dispatch import choose_backend
from irm_fast.losses.operator import compute_dtype, refuse_double_backward, scaled
from irm_fast.losses.reduction import Reduction, check_reduction, divided, mean_over


def pointwise_loss(
    reward_logits: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    *,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Weighted pointwise loss: every row pulls its reward up by one weight and down by the other, in one launch.

    loss_i = positive_weight_i * softplus(-s_i) + negative_weight_i * softplus(s_i), with s the reward logits. Labels
    y give binary cross-entropy with weights y and 1 - y; other weights give what corrects it: inverse propensities, or
    the positive-unlabelled risks, whose unbiased form has weights below zero and so a loss without a lower bound.

    Args:
        reward_logits: (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        positive_weight: (N,) floating-point weights of softplus(-s), of any sign; constants of the loss.
        negative_weight: (N,) weights of softplus(s), likewise. A row whose weights are both 0 contributes nothing,
            whatever its logit holds.
        reduction: "mean" is the sum over N, as in PyTorch; "sum"; "none" gives (N,).
        normalizer: a number or 0-dim tensor that replaces N under "mean": the examples of the whole optimiser step.
        backend: "triton", "cpu" or "reference"; None chooses by device and dtype.

    Returns:
        The loss, float32 (float64 for float64 logits): () or, for "none", (N,). The gradient comes in the dtype of the
        logits, rounded once.

    Weights are read as float32 unless the logits are float64. A logit that is not finite gives NaN, a weight that is
    not finite NaN or infinity. Inputs are never written to, and double backward is not supported.

    Raises:
        TypeError: logits or weights that are not floating point.
        ValueError: shapes or devices that do not fit, weights that require a gradient; "mean" over no rows without a
            normalizer.
        RuntimeError: a backend that cannot be had here; a second differentiation.
    """
    checks.check_rewards(reward_logits)
    positive_weight = _check_side("positive_weight", positive_weight, reward_logits)
    negative_weight = _check_side("negative_weight", negative_weight, reward_logits)
    check_reduction(reward_logits.shape[0], reward_logits.device, reduction, normalizer)
    scale, divide_by = mean_over(reduction, normalizer)
    loss = pointwise(reward_logits, positive_weight, negative_weight, scale, reduction == "none", backend)
    return loss if divide_by is None else divided(loss, divide_by)


def _check_side(name: str, weight: Tensor, reward_logits: Tensor) -> Tensor:
    """The weight as the kernels read it: contiguous float32, or float64 for float64 logits."""
    checks.check_logits(name, weight, reward_logits.shape, reward_logits.device)
    if weight.requires_grad:
        raise ValueError(f"{name} must not require a gradient: it is a constant of the loss")
    dtype = torch.float64 if reward_logits.dtype == torch.float64 else torch.float32
    return weight.to(dtype).contiguous()


class Settings(NamedTuple):
    scale: float | None  # None: 1/N
    per_row: bool
    backend: str | None


def pointwise(
    reward: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    scale: float | None,
    per_row: bool,
    backend: str | None,
) -> Tensor:
    """The loss, () or, if `per_row`, (N,); times `scale`, where None is 1/N."""
    need_grad = torch.is_grad_enabled() and reward.requires_grad
    settings = Settings(scale, per_row, backend)
    if torch.compiler.is_compiling():
        loss, _ = pointwise_op(reward, positive_weight, negative_weight, *settings, need_grad)
        return loss
    if need_grad:
        return _Pointwise.apply(reward, positive_weight, negative_weight, settings)  # type: ignore[no-any-return]
    return _pointwise_forward(reward, positive_weight, negative_weight, settings, need_grad)[0]


def _pointwise_forward(
    reward: Tensor, positive_weight: Tensor, negative_weight: Tensor, settings: Settings, need_grad: bool
) -> tuple[Tensor, Tensor | None]:
    scale, per_row, backend = settings
    run = choose_backend(backend, reward.device, reward.dtype == torch.float64, "pointwise").pointwise_forward
    scale = 1.0 / (len(reward) or 1) if scale is None else scale
    return run(  # type: ignore[no-any-return]
        reward, positive_weight, negative_weight, scale=scale, per_row=per_row, need_grad=need_grad
    )


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, reward, positive_weight, negative_weight, settings):
        loss, grad = _pointwise_forward(reward, positive_weight, negative_weight, settings, need_grad=True)
        ctx.save_for_backward(grad)
        ctx.dtype = reward.dtype
        return loss

    @staticmethod
    def backward(ctx, upstream):
        return _gradient(ctx, upstream), None, None, None


def _gradient(ctx, upstream: Tensor) -> Tensor | None:
    """Of the reward logits, where needed."""
    refuse_double_backward("pointwise_loss")
    (grad,) = ctx.saved_tensors
    return scaled(grad, upstream, ctx.dtype) if ctx.needs_input_grad[0] else None


@torch.library.custom_op("irm_fast::pointwise", mutates_args=())
def pointwise_op(
    reward: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    scale: float | None,
    per_row: bool,
    backend: str | None,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and float32 gradient of the reward logits; empty where not needed."""
    settings = Settings(scale, per_row, backend)
    loss, grad = _pointwise_forward(reward, positive_weight, negative_weight, settings, need_grad)
    return loss, loss.new_empty(0) if grad is None else grad


@pointwise_op.register_fake
def _(reward, positive_weight, negative_weight, scale, per_row, backend, need_grad):
    dtype = compute_dtype(reward)
    loss = reward.new_empty(reward.shape if per_row else (), dtype=dtype)
    return loss, reward.new_empty(reward.shape if need_grad else 0, dtype=dtype)


def _setup_context(ctx, inputs, output):
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(output[1])


def _backward(ctx, upstream, _):
    return _gradient(ctx, upstream), *(None,) * 6


pointwise_op.register_autograd(_backward, setup_context=_setup_context)
