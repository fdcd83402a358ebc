"""The weighted pointwise loss as PyTorch sees it, in the manner of ops.py.

The weights of the two sides are constants: whatever makes a pointwise loss unbiased is in them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from irm_fast.backends import choose_backend
from irm_fast.ops import compute_dtype, refuse_double_backward, scaled


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
