"""The C++ kernel of the weighted pointwise loss: packs its arguments and allocates its results."""

from __future__ import annotations

import torch
from irm_fast.kernels.batch import PointwiseBatch
from irm_fast.kernels.cpu.implicit_rm import address, logits_view
from irm_fast.kernels.cpu.library import bind, logits_fields, raise_status, require_storage
from torch import Tensor

FIELDS = (  # of `struct PointwiseArguments`, pointwise.h
    "n_rows",
    *logits_fields("reward"),
    *("positive_weight", "negative_weight", "scale", "loss_rows", "loss_sum", "grad_reward", "n_threads"),
)
_run, ARGUMENTS = bind("irm_pointwise", FIELDS)


def pointwise_forward(reward: Tensor, batch: PointwiseBatch, need: tuple[bool]) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient of a batch in one pass, both float32. Shapes as in the Triton twin."""
    n, empty = reward.shape[0], batch.positive_weight.new_empty  # float32 whatever torch's defaults are
    loss = empty(n if batch.per_row else ())
    grad_reward = empty(n) if need[0] else None
    reward_view = logits_view(reward)
    if n:
        require_storage(reward_view[0])
    status = _run(
        ARGUMENTS.pack(
            n,
            *reward_view,
            batch.positive_weight.data_ptr(),
            batch.negative_weight.data_ptr(),
            batch.factor,
            loss.data_ptr() if batch.per_row else 0,
            0 if batch.per_row else loss.data_ptr(),
            address(grad_reward),
            torch.get_num_threads(),
        )
    )
    if status:
        raise_status(status)
    return loss, grad_reward
