"""The weighted pointwise loss in float64."""

from __future__ import annotations

import torch
from irm_fast.kernels.reference import definition as reference
from torch import Tensor


def pointwise_forward(
    reward: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    *,
    scale: float,
    per_row: bool,
    need_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """What the kernels compute, from its definition in float64. Same arguments and results."""
    dtype = torch.promote_types(reward.dtype, torch.float32)
    rows = reference.pointwise_loss(reward.detach(), positive_weight, negative_weight) * scale
    loss = (rows if per_row else rows.sum()).to(dtype)
    if not need_grad:
        return loss, None
    s, w1, w0 = (x.detach().double() for x in (reward, positive_weight, negative_weight))
    poison = s - s  # 0, or NaN where the logit is not finite
    grad = (poison + w0 * s.sigmoid() - w1 * (-s).sigmoid()) * scale
    return loss, grad.masked_fill((w1 == 0) & (w0 == 0), 0.0).to(dtype)
