"""The gradients of the logits in the backward pass, in operations of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def scaled(grad: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply a gradient by the upstream gradient and round once.

    Args:
        grad: The gradient of the loss, (N,) or (N, K).
        upstream: The upstream gradient, () or (N,).
        dtype: The dtype of the result.
    """
    if upstream.dim() == 1 and grad.dim() == 2:
        upstream = upstream.unsqueeze(-1)
    grad = grad * upstream
    return grad if grad.dtype == dtype else grad.to(dtype)


def scale_gradients(
    grads: Sequence[Tensor | None], upstream: Tensor, dtypes: Sequence[torch.dtype], kept: bool
) -> list[Tensor | None]:
    """Multiply gradients by the upstream gradient and round once.

    Args:
        grads: Gradients of the loss, (N,) or (N, K), as the forward pass returned them; None where not needed.
        upstream: The upstream gradient, () or (N,).
        dtypes: The dtypes of the results, one for each.
        kept: Whether the gradients may be read again: a result may then not be a gradient itself.
    """
    return [None if x is None else scaled(x, upstream, dtype) for x, dtype in zip(grads, dtypes, strict=True)]
