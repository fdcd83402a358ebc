"""The C++ kernels of the linear loss: heads and loss in one read of the hidden states, and their gradient.

The gradient of the hidden states is an outer product of the logit gradients and the heads. It needs no second read of
the hidden states, so it is written in the backward pass, where the upstream gradient is known: nothing of the size of
the hidden states is held in between.
"""

from __future__ import annotations

import struct

import torch
from irm_fast.kernels.batch import Batch
from irm_fast.kernels.cpu.implicit_rm import CPU, FIELDS, NO_LOGITS, address, logits_view, pack_arguments
from irm_fast.kernels.cpu.library import LOGIT_TYPES, bind, logits_fields, raise_status, require_storage
from torch import Tensor

# Of `struct LinearArguments`, linear_implicit_rm.h: those of the loss, and what follows.
HEADS_FIELDS = (*logits_fields("hidden"), "heads", "bias", "n_heads", "width", "grad_logits", "grad_heads")
HIDDEN_GRAD_FIELDS = (
    *("n_rows", "n_heads", "width", "grad_logits", "grad_stride", "upstream", "upstream_stride", "heads"),
    *("hidden_grad", "type", "n_threads"),
)
_run, _ = bind("irm_linear_implicit_rm", (*(f"loss.{field}" for field in FIELDS), *HEADS_FIELDS))
_HEADS = struct.Struct(f"={len(HEADS_FIELDS)}q")  # packed after the arguments of the loss
_run_hidden_grad, _HIDDEN_GRAD = bind("irm_linear_hidden_grad", HIDDEN_GRAD_FIELDS)


def linear_implicit_rm_forward(
    hidden: Tensor, heads: Tensor, bias: Tensor, propensity: Tensor | None, batch: Batch, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss, gradients of all logits (N, K+1), gradient of the parameters (M H + K+1,) and groups; all float32.

    `heads` holds the reward head, then the K propensity heads; or the reward head alone, and `propensity` the logits.
    `need` tells whether the gradients of the logits and of the parameters are wanted: those of the heads, then the sums
    of the gradients of the logits over the rows, which are those of biases. Rows of weight 0 reach no gradient,
    whatever their hidden state holds.
    """
    (n, width), n_signals, n_heads = hidden.shape, batch.feedback.shape[1], heads.shape[0]
    signals = batch.signal_table(CPU)
    empty = signals.new_empty  # float32 whatever torch's defaults are
    loss = empty(n if batch.per_row else ())
    heads, bias = heads.float(), bias.float()
    grad_logits = empty((n, n_signals + 1)) if need[0] or need[1] else None
    grad_parameters = empty(n_heads * width + n_signals + 1) if need[1] else None
    groups = empty((n, n_signals, 4)) if batch.need_groups else None
    hidden_view = logits_view(hidden)
    if n:
        require_storage(hidden_view[0])
    propensity_view = NO_LOGITS if propensity is None else logits_view(propensity)
    arguments = pack_arguments((n, n_signals), NO_LOGITS, propensity_view, batch, signals, (loss, None, None, groups))
    arguments += _HEADS.pack(
        *hidden_view, heads.data_ptr(), bias.data_ptr(), n_heads, width, address(grad_logits), address(grad_parameters)
    )
    status = _run(arguments)
    if status:
        raise_status(status)
    if grad_parameters is not None:
        torch.sum(grad_logits, 0, out=grad_parameters[n_heads * width :])
    return loss, grad_logits if need[0] else None, grad_parameters, groups


def linear_weight_grad(hidden: Tensor, grad_logits: Tensor, weight: Tensor | None, n_heads: int) -> Tensor:
    """grad_logits[:, :n_heads].T @ hidden, (M, H); rows of weight 0 are left out, whatever they hold.

    A second read of hidden, for upstream gradients that differ between rows: products of matrices are PyTorch's.
    """
    total = torch.zeros((n_heads, hidden.shape[1]), dtype=torch.float32, device="cpu")
    for first in range(0, len(hidden), 8192):  # so that the widened hidden states stay small
        some = slice(first, first + 8192)
        wide = hidden[some].float()
        if weight is not None:
            wide = wide.masked_fill(weight[some, None] == 0, 0.0)
        total += grad_logits[some, :n_heads].T @ wide
    return total


def linear_hidden_grad(grad_logits: Tensor, upstream: Tensor, heads: Tensor, dtype: torch.dtype) -> Tensor:
    """`(grad_logits[:, :M] * upstream) @ heads`, (N, H), in float32 and rounded once to `dtype`."""
    n, (n_heads, width), heads = grad_logits.shape[0], heads.shape, heads.float()
    hidden_grad = torch.empty((n, width), dtype=dtype, device="cpu")
    status = _run_hidden_grad(
        _HIDDEN_GRAD.pack(
            n,
            n_heads,
            width,
            grad_logits.data_ptr(),
            grad_logits.stride(0),
            upstream.data_ptr(),
            upstream.stride(0) if upstream.dim() else 0,
            heads.data_ptr(),
            hidden_grad.data_ptr(),
            LOGIT_TYPES[dtype],
            torch.get_num_threads(),
        )
    )
    if status:
        raise_status(status)
    return hidden_grad
