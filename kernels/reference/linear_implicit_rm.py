"""The linear loss from the float64 reference: heads, then the loss, then two products of matrices."""

from __future__ import annotations

import torch
from irm_fast.kernels.batch import Batch
from irm_fast.kernels.reference.implicit_rm import implicit_rm_forward
from torch import Tensor


def linear_implicit_rm_forward(
    hidden: Tensor, heads: Tensor, bias: Tensor, propensity: Tensor | None, batch: Batch, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss, gradients of all logits (N, K+1) and of the parameters (M H + K+1,), and groups, float32 at least.

    The gradient of the parameters is that of the heads, then the sums of the gradients of the logits over the rows.
    """
    dtype = torch.promote_types(heads.dtype, torch.float32)
    logits = hidden.double() @ heads.double().T + bias.double()
    reward, propensity = logits[:, 0], logits[:, 1:] if propensity is None else propensity.double()
    loss, grad_reward, grad_propensity, groups = implicit_rm_forward(reward, propensity, batch, (any(need), any(need)))
    grad_logits = grad_parameters = None
    if any(need):
        assert grad_reward is not None and grad_propensity is not None
        grad_logits = torch.cat([grad_reward[:, None], grad_propensity], 1)
        if need[1]:
            grad_heads = linear_weight_grad(hidden.double(), grad_logits, batch.weight, len(heads))
            grad_parameters = torch.cat([grad_heads.flatten(), grad_logits.sum(0)]).to(dtype)
        grad_logits = grad_logits.to(dtype)
    groups = None if groups is None else groups.to(dtype)
    return loss.to(dtype), grad_logits, grad_parameters, groups


def linear_weight_grad(hidden: Tensor, grad_logits: Tensor, weight: Tensor | None, n_heads: int) -> Tensor:
    """grad_logits[:, :n_heads].T @ hidden, (M, H); rows of weight 0 are left out, whatever they hold."""
    total = grad_logits.new_zeros(n_heads, hidden.shape[1])
    for first in range(0, len(hidden), 8192):  # so that the widened hidden states stay small
        some = slice(first, first + 8192)
        wide = hidden[some].to(grad_logits.dtype)
        if weight is not None:
            wide = wide.masked_fill(weight[some, None] == 0, 0.0)
        total += grad_logits[some, :n_heads].T @ wide
    return total


def linear_hidden_grad(grad_logits: Tensor, upstream: Tensor, heads: Tensor, dtype: torch.dtype) -> Tensor:
    """`(grad_logits[:, :M] * upstream) @ heads`, (N, H), rounded once to `dtype`."""
    factor = upstream[:, None] if upstream.dim() else upstream
    return ((grad_logits[:, : len(heads)] * factor) @ heads.to(grad_logits.dtype)).to(dtype)
