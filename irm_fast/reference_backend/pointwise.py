"""The weighted pointwise loss in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


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
    s, w1, w0 = (x.detach().double() for x in (reward, positive_weight, negative_weight))
    dropped = (w1 == 0) & (w0 == 0)  # such a row contributes nothing, whatever it holds
    poison = s - s  # 0, or NaN where the logit is not finite
    # softplus(x) is -logsigmoid(-x); PyTorch's own softplus is linear from x = 20 on.
    rows = (poison - w1 * logsigmoid(s) - w0 * logsigmoid(-s)) * scale
    rows = rows.masked_fill(dropped, 0.0)
    loss = (rows if per_row else rows.sum()).to(dtype)
    if not need_grad:
        return loss, None
    grad = (poison + w0 * s.sigmoid() - w1 * (-s).sigmoid()) * scale
    return loss, grad.masked_fill(dropped, 0.0).to(dtype)
