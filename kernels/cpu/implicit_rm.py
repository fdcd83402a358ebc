"""The C++ kernel of the loss: packs its arguments and allocates its results."""

from __future__ import annotations

import torch
from irm_fast.kernels.batch import Batch
from irm_fast.kernels.cpu.library import (
    LOGIT_TYPES,
    UNSIGNED,
    bind,
    codes_fields,
    logits_fields,
    raise_status,
    require_storage,
)
from torch import Tensor

FIELDS = (  # of `struct Arguments`, implicit_rm.h
    "n_rows",
    "n_signals",
    *logits_fields("reward"),
    *logits_fields("propensity"),
    *logits_fields("reward_strat"),
    *logits_fields("propensity_strat"),
    *codes_fields("feedback"),
    *codes_fields("preference"),
    "weight",
    "signals",
    "has_misclick",
    "scale",
    "loss_rows",
    "loss_sum",
    "grad_reward",
    "grad_propensity",
    "groups",
    "n_threads",
)
_run, ARGUMENTS = bind("irm_implicit_rm", FIELDS)
CPU = torch.device("cpu")
NO_LOGITS = (0, 0, 0, 0)
_NO_CODES = (0, 0, 0, 0, 0)


def logits_view(x: Tensor) -> tuple[int, int, int, int]:
    """`struct LogitsView`: data, type, row and signal stride."""
    stride = x.stride()
    return x.data_ptr(), LOGIT_TYPES[x.dtype], stride[0], stride[1] if len(stride) == 2 else 0


def codes_view(x: Tensor) -> tuple[int, int, bool, int, int]:
    """`struct CodesView`: data, bytes a value, unsigned, row and signal stride."""
    stride, dtype = x.stride(), x.dtype
    return x.data_ptr(), dtype.itemsize, dtype in UNSIGNED, stride[0], stride[1] if len(stride) == 2 else 0


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def pack_arguments(
    shape: tuple[int, int],
    reward: tuple[int, int, int, int],
    propensity: tuple[int, int, int, int],
    batch: Batch,
    signals: Tensor,
    results: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
) -> bytes:
    """`struct Arguments` of a batch of shape (N, K), from views of its logits; results in the kernel's order."""
    loss, grad_reward, grad_propensity, groups = results
    preference = batch.preference
    reward_strat, propensity_strat = batch.reward_strat, batch.propensity_strat
    return ARGUMENTS.pack(
        *shape,
        *reward,
        *propensity,
        *(NO_LOGITS if reward_strat is None else logits_view(reward_strat)),
        *(NO_LOGITS if propensity_strat is None else logits_view(propensity_strat)),
        *codes_view(batch.feedback),
        *(_NO_CODES if preference is None else codes_view(preference)),
        address(batch.weight),
        signals.data_ptr(),
        batch.has_misclick,
        batch.factor,
        loss.data_ptr() if batch.per_row else 0,
        0 if batch.per_row else loss.data_ptr(),
        address(grad_reward),
        address(grad_propensity),
        address(groups),
        torch.get_num_threads(),
    )


def implicit_rm_forward(
    reward: Tensor, propensity: Tensor, batch: Batch, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss, both gradients and groups of a batch in one pass; all results float32. Shapes as in the Triton twin."""
    shape = propensity.shape
    n = shape[0]
    signals = batch.signal_table(CPU)
    empty = signals.new_empty  # float32 whatever torch's defaults are, and half the price
    loss = empty(n if batch.per_row else ())
    grad_reward = empty(n) if need[0] else None
    grad_propensity = empty(shape) if need[1] else None
    groups = empty((*shape, 4)) if batch.need_groups else None
    reward_view = logits_view(reward)
    if n:
        require_storage(reward_view[0])
    arguments = pack_arguments(
        (n, shape[1] if len(shape) == 2 else 1),
        reward_view,
        logits_view(propensity),
        batch,
        signals,
        (loss, grad_reward, grad_propensity, groups),
    )
    status = _run(arguments)
    if status:
        raise_status(status)
    return loss, grad_reward, grad_propensity, groups
