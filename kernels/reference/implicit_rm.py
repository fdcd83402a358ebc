"""The loss from the float64 reference and autograd."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from irm_fast.kernels.batch import Batch
from irm_fast.kernels.reference import definition
from irm_fast.kernels.reference.values import check_values
from torch import Tensor


def implicit_rm_forward(
    reward: Tensor, propensity: Tensor, batch: Batch, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss, both gradients and groups, as the kernels compute them, from the float64 reference and autograd."""
    check_values(batch.feedback, batch.preference, batch.weight)
    shape, dtype = propensity.shape, torch.promote_types(reward.dtype, propensity.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    table = batch.signal_table(reward.device, dtype == torch.float64)
    options: dict[str, Any] = {"preference": batch.preference, "polarity": table[0], "misclick_rate": table[1]}

    def columns(x: Tensor) -> Tensor:  # (N,) of one signal as (N, 1), which is what the reference takes
        return x.unsqueeze(-1) if x.dim() == 1 else x

    s, t, feedback = reward.detach(), columns(propensity.detach()), columns(batch.feedback)
    stratification = None
    if batch.reward_strat is not None and batch.propensity_strat is not None:
        stratification = (batch.reward_strat, columns(batch.propensity_strat))
    rows, grad_s, grad_t = _rows_and_gradients(s, t, feedback, stratification, options, any(need))

    weight = batch.weight
    factor = torch.full_like(rows, batch.factor) if weight is None else weight.double() * batch.factor
    # A row of weight 0 contributes nothing, whatever it holds.
    nothing = torch.zeros_like(rows, dtype=torch.bool) if weight is None else weight == 0
    loss = torch.where(nothing, 0.0, rows * factor)
    grad_s = torch.where(nothing, 0.0, grad_s * factor).to(dtype)
    grad_t = torch.where(nothing, 0.0, grad_t.T * factor).T.to(dtype).reshape(shape)
    groups = None
    if batch.need_groups:
        groups = definition.stratify(*(stratification or (s, t)), feedback, **options).to(dtype).reshape(*shape, 4)
    loss = (loss if batch.per_row else loss.sum()).to(dtype)
    return loss, grad_s if need[0] else None, grad_t if need[1] else None, groups


def _differentiate(s, t, feedback, stratification, options) -> tuple[Tensor, Tensor, Tensor]:
    s, t = s.double().requires_grad_(), t.double().requires_grad_()
    rows = definition.implicit_rm_loss(s, t, feedback, stratification=stratification, **options)
    grad_s, grad_t = torch.autograd.grad(rows.sum(), (s, t))
    return rows, grad_s, grad_t


def _rows_and_gradients(
    s: Tensor,
    t: Tensor,
    feedback: Tensor,
    stratification: tuple[Tensor, Tensor] | None,
    options: dict[str, Any],
    need_grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row (N,) and its gradients (N,) and (N, K), float64; the gradients are 0 if nobody needs them."""
    if not need_grads:
        rows = definition.implicit_rm_loss(s, t, feedback, stratification=stratification, **options)
        return rows, torch.zeros_like(rows), torch.zeros_like(t, dtype=rows.dtype)
    # In a thread of its own: inside an operator (torch.compile) PyTorch switches autograd off for the calling thread.
    with ThreadPoolExecutor(1) as thread:
        rows, grad_s, grad_t = thread.submit(_differentiate, s, t, feedback, stratification, options).result()
    # Rows without a likelihood have no gradient, whatever autograd makes of their pieces.
    rows = rows.detach()
    broken = ~rows.isfinite()
    grad_t = grad_t.masked_fill(broken[:, None] & (feedback != -1), torch.nan)
    return rows, grad_s.masked_fill(broken, torch.nan), grad_t
