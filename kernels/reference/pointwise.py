"""The weighted pointwise loss in float64."""

from __future__ import annotations

import torch
from irm_fast.kernels.batch import PointwiseBatch
from irm_fast.kernels.reference import definition
from torch import Tensor


def pointwise_forward(reward: Tensor, batch: PointwiseBatch, need: tuple[bool]) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient, as the kernels compute them, from the definition in float64."""
    dtype, scale = torch.promote_types(reward.dtype, torch.float32), batch.factor
    rows = definition.pointwise_loss(reward.detach(), batch.positive_weight, batch.negative_weight) * scale
    loss = (rows if batch.per_row else rows.sum()).to(dtype)
    if not need[0]:
        return loss, None
    s, w1, w0 = (x.detach().double() for x in (reward, batch.positive_weight, batch.negative_weight))
    poison = s - s  # 0, or NaN where the logit is not finite
    grad = (poison + w0 * s.sigmoid() - w1 * (-s).sigmoid()) * scale
    return loss, grad.masked_fill((w1 == 0) & (w0 == 0), 0.0).to(dtype)
