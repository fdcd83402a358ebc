"""The C++ kernel of the loss: packs its arguments and allocates its results."""

from __future__ import annotations

import struct

import torch
from irm_fast.kernels.cpu.library import LOGIT_TYPES, UNSIGNED, bind, raise_status, require_storage
from torch import Tensor

# Field by field `struct Arguments` of implicit_rm.h: sizes; four views of logits; two of codes; then
# weight, signals, has_misclick, scale, five results, threads.
ARGUMENTS = struct.Struct("=2q 16q 10q 3q d 5q q")
_run = bind("irm_implicit_rm", ARGUMENTS)
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
    feedback: Tensor,
    preference: Tensor | None,
    weight: Tensor | None,
    stratification: tuple[Tensor, Tensor] | None,
    signals: Tensor,
    has_misclick: bool,
    scale: float,
    per_row: bool,
    results: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
) -> bytes:
    """`struct Arguments` of a batch of shape (N, K), from views of its logits; results in the kernel's order."""
    loss, grad_reward, grad_propensity, groups = results
    return ARGUMENTS.pack(
        *shape,
        *reward,
        *propensity,
        *(NO_LOGITS if stratification is None else logits_view(stratification[0])),
        *(NO_LOGITS if stratification is None else logits_view(stratification[1])),
        *codes_view(feedback),
        *(_NO_CODES if preference is None else codes_view(preference)),
        address(weight),
        signals.data_ptr(),
        has_misclick,
        scale,
        loss.data_ptr() if per_row else 0,
        0 if per_row else loss.data_ptr(),
        address(grad_reward),
        address(grad_propensity),
        address(groups),
        torch.get_num_threads(),
    )


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
    """Loss, both gradients and groups of a batch in one pass; all results float32. Shapes as in the Triton twin."""
    shape, empty = propensity.shape, signals.new_empty  # float32 whatever torch's defaults are, and half the price
    n = shape[0]
    loss = empty(n if per_row else ())
    grad_reward = empty(n) if need_grads[0] else None
    grad_propensity = empty(shape) if need_grads[1] else None
    groups = empty((*shape, 4)) if need_groups else None
    reward_view = logits_view(reward)
    if n:
        require_storage(reward_view[0])
    arguments = pack_arguments(
        (n, shape[1] if len(shape) == 2 else 1),
        reward_view,
        logits_view(propensity),
        feedback,
        preference,
        weight,
        stratification,
        signals,
        has_misclick,
        scale,
        per_row,
        (loss, grad_reward, grad_propensity, groups),
    )
    status = _run(arguments)
    if status:
        raise_status(status)
    return loss, grad_reward, grad_propensity, groups
