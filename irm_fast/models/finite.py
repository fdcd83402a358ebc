"""Which weights are not finite: no model that has some is ever saved."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def largest_of_each(tensors: Iterable[Tensor]) -> Tensor:
    """The largest absolute value of each tensor, float32 (n,), on the device of the first; NaN if one of it is NaN.

    Nothing waits for a device, and no copy of a tensor is made.

    Args:
        tensors: Tensors of floating point, at least one; an empty one counts as 0.
    """
    found = [torch.linalg.vector_norm(x, math.inf).float() if x.numel() else x.new_zeros(()).float() for x in tensors]
    return torch.stack([value.to(found[0].device) for value in found])


def check_finite(tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Check that weights are finite, before they are written. It waits for their device.

    Args:
        tensors: The weights with their names; what is not of floating point is passed over.
        what: What they belong to, for the error.

    Raises:
        RuntimeError: Some are not.
    """
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named:
        return
    largest = largest_of_each(tensor for _, tensor in named).tolist()
    refuse_not_finite([name for (name, _), value in zip(named, largest, strict=True) if not math.isfinite(value)], what)


def refuse_not_finite(names: list[str], what: str) -> None:
    """Raise RuntimeError if any names of weights are given that are not finite.

    Args:
        names: The names.
        what: What they belong to, for the error.
    """
    if names:
        raise RuntimeError(
            f"{what}: {len(names)} tensors hold NaN or inf, the first is {names[0]}; nothing was saved: lower "
            "learning_rate, head_learning_rate or weight_decay, and start anew with --overwrite"
        )
