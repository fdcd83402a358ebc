"""The gradients of the logits in the backward pass on CPUs: handed out as they are where that is right, else scaled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from irm_fast.kernels.cpu.library import LOGIT_TYPES, bind, raise_status
from irm_fast.kernels.reference.scale import scaled
from torch import Tensor

FIELDS = ("n_elements", "grad", "scale", "scaled", "type", "n_threads")  # of `struct ScaleArguments`, scale.h
_run, ARGUMENTS = bind("irm_scale", FIELDS)
_FEW = 1 << 15  # elements: below, an operation of PyTorch costs less than this call


def scale_gradients(
    grads: Sequence[Tensor | None], upstream: Tensor, dtypes: Sequence[torch.dtype], kept: bool
) -> list[Tensor | None]:
    """As the twin in kernels/reference. An upstream gradient on the CPU is read without waiting for a device."""
    if upstream.dim():
        return [None if x is None else scaled(x, upstream, dtype) for x, dtype in zip(grads, dtypes, strict=True)]
    factor = upstream.item()
    result: list[Tensor | None] = []
    for grad, dtype in zip(grads, dtypes, strict=True):
        if grad is None or (factor == 1.0 and not kept and grad.dtype == dtype):
            result.append(grad)
        elif grad.numel() < _FEW or grad.dtype != torch.float32 or not grad.is_contiguous():
            result.append(scaled(grad, upstream, dtype))
        else:
            result.append(_scaled(grad, factor, dtype))
    return result


def _scaled(grad: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """A contiguous float32 gradient times a number, in one pass into a new tensor of another dtype."""
    result = torch.empty(grad.shape, dtype=dtype, device="cpu")
    status = _run(
        ARGUMENTS.pack(
            grad.numel(), grad.data_ptr(), factor, result.data_ptr(), LOGIT_TYPES[dtype], torch.get_num_threads()
        )
    )
    if status:
        raise_status(status)
    return result
