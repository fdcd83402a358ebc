"""The gradients of the logits in the backward pass on CPUs: handed out as they are where that is right, else scaled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from irm_fast.kernels.cpu.linear_implicit_rm import linear_hidden_grad
from irm_fast.kernels.reference.scale import scaled
from torch import Tensor

_FEW = 1 << 15  # elements: below, an operation of PyTorch costs less than the kernel's call
_ONE = torch.ones((), dtype=torch.float32, device="cpu")


def scale_gradients(
    grads: Sequence[Tensor | None], upstream: Tensor, dtypes: Sequence[torch.dtype], kept: bool
) -> list[Tensor | None]:
    """As the twin in kernels/reference. An upstream gradient on the CPU is read without waiting for a device."""
    if upstream.dim():
        return [None if x is None else scaled(x, upstream, dtype) for x, dtype in zip(grads, dtypes, strict=True)]
    given_away = not kept and upstream.item() == 1.0
    result: list[Tensor | None] = []
    for grad, dtype in zip(grads, dtypes, strict=True):
        if grad is None or (given_away and grad.dtype == dtype):
            result.append(grad)
        elif grad.numel() < _FEW or grad.dtype != torch.float32 or not grad.is_contiguous():
            result.append(scaled(grad, upstream, dtype))
        else:
            result.append(_scaled(grad, upstream, dtype))
    return result


def _scaled(grad: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous float32 gradient times a number in one pass, as an outer product of one row: into huge pages."""
    return linear_hidden_grad(upstream.reshape(1, 1), _ONE, grad.reshape(1, -1), dtype).reshape(grad.shape)
