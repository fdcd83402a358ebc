"""The loss from the float64 reference and autograd."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from irm_fast.kernels.reference import definition as reference
from irm_fast.kernels.reference import values
from torch import Tensor


def implicit_rm_forward(
    reward: Tensor,
    propensity: Tensor,
    feedback: Tensor,
    *,
    preference: Tensor | None,
    weight: Tensor | None,
    stratification: tuple[Tensor, Tensor] | None,
    signals: Tensor,
    has_misclick: bool,
    scale: float,
    per_row: bool,
    need_grads: tuple[bool, bool],
    need_groups: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """What the kernels compute, from the float64 reference and autograd. Same arguments and results."""
    values.check_values(feedback, preference, weight)
    shape, dtype = propensity.shape, torch.promote_types(reward.dtype, propensity.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    evidence: dict[str, Any] = {"preference": preference, "polarity": signals[0], "misclick_rate": signals[1]}

    def columns(x: Tensor) -> Tensor:  # (N,) of one signal as (N, 1), which is what the reference takes
        return x.unsqueeze(-1) if x.dim() == 1 else x

    s, t, feedback = reward.detach(), columns(propensity.detach()), columns(feedback)
    if stratification is not None:
        stratification = (stratification[0], columns(stratification[1]))
    rows, grad_s, grad_t = _rows_and_gradients(s, t, feedback, stratification, evidence, any(need_grads))

    factor = torch.full_like(rows, scale) if weight is None else weight.double() * scale
    # A row of weight 0 contributes nothing, whatever it holds.
    nothing = torch.zeros_like(rows, dtype=torch.bool) if weight is None else weight == 0
    loss = torch.where(nothing, 0.0, rows * factor)
    grad_s = torch.where(nothing, 0.0, grad_s * factor).to(dtype)
    grad_t = torch.where(nothing, 0.0, grad_t.T * factor).T.to(dtype).reshape(shape)
    groups = None
    if need_groups:
        groups = reference.stratify(*(stratification or (s, t)), feedback, **evidence).to(dtype).reshape(*shape, 4)
    loss = (loss if per_row else loss.sum()).to(dtype)
    return loss, grad_s if need_grads[0] else None, grad_t if need_grads[1] else None, groups


def _differentiate(s, t, feedback, stratification, evidence) -> tuple[Tensor, Tensor, Tensor]:
    s, t = s.double().requires_grad_(), t.double().requires_grad_()
    rows = reference.implicit_rm_loss(s, t, feedback, stratification=stratification, **evidence)
    grad_s, grad_t = torch.autograd.grad(rows.sum(), (s, t))
    return rows, grad_s, grad_t


def _rows_and_gradients(
    s: Tensor,
    t: Tensor,
    feedback: Tensor,
    stratification: tuple[Tensor, Tensor] | None,
    evidence: dict[str, Any],
    need_grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row (N,) and its gradients (N,) and (N, K), float64; the gradients are 0 if nobody needs them."""
    if not need_grads:
        rows = reference.implicit_rm_loss(s, t, feedback, stratification=stratification, **evidence)
        return rows, torch.zeros_like(rows), torch.zeros_like(t, dtype=rows.dtype)
    # In a thread of its own: inside an operator (torch.compile) PyTorch switches autograd off for the calling thread.
    with ThreadPoolExecutor(1) as thread:
        rows, grad_s, grad_t = thread.submit(_differentiate, s, t, feedback, stratification, evidence).result()
    # Rows without a likelihood have no gradient, whatever autograd makes of their pieces.
    rows = rows.detach()
    broken = ~rows.isfinite()
    grad_t = grad_t.masked_fill(broken[:, None] & (feedback != -1), torch.nan)
    return rows, grad_s.masked_fill(broken, torch.nan), grad_t
