"""The choice of the backend: Triton on GPUs, C++ on CPUs, or the float64 reference.

Every backend has the modules `implicit_rm`, `linear_implicit_rm`, `pointwise` and `scale`, with the same functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from irm_fast.common.warning import warn_caller

BACKENDS = ("triton", "cpu", "reference")
Results = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Backend(NamedTuple):
    """The functions of a backend.

    All results are float32 unless stated, or float64 for float64 inputs, and None where not wanted. A batch holds what
    carries no gradient, see `irm_fast.kernels.batch`. K is the number of signals. M is the number of heads, the reward
    head first: K + 1, or 1 if propensity logits are given. Losses are (), or (N,) if `batch.per_row`.

    Attributes:
        implicit_rm_forward: Takes (reward, propensity, batch, need): logits (N,) and (N,) or (N, K), a `Batch`, and
            whether the gradient of each is wanted. Returns loss, both gradients, and posterior, (N, 4) or (N, K, 4).
        linear_implicit_rm_forward: Takes (hidden, heads, bias, propensity, batch, need): (N, H), (M, H), (M,), logits
            (N, K) or None, a `Batch`, and whether the gradients of the logits and of the parameters are wanted. Returns
            the loss, the gradients of the logits (N, K + 1) and of the parameters, a vector of M H weights and K + 1
            sums over the rows of the former, and the posterior (N, K, 4).
        linear_hidden_grad: Takes (grad_logits, upstream, heads, dtype): (N, K + 1), () or (N,), (M, H), and a dtype.
            Returns the gradient of the hidden states, (N, H) of that dtype.
        linear_weight_grad: Takes (hidden, grad_logits, weight, n_heads): (N, H), (N, K + 1) times the upstream
            gradient, row weights (N,) or None, and M. Returns the gradient of the heads, (M, H), rows of weight 0 left
            out.
        pointwise_forward: Takes (reward, batch, need): logits (N,), a `PointwiseBatch`, and one bool: whether their
            gradient is wanted. Returns the loss and the gradient (N,).
        scale_gradients: Takes (grads, upstream, dtypes, kept): gradients of logits or None, () or (N,), the dtype of
            each result, and whether the gradients may be read again. Returns each gradient times the upstream gradient,
            rounded once; it may be the gradient itself unless that is kept.
        implicit_rm_gradients: Takes (reward, propensity, batch, upstream, need), with the upstream gradient () or (N,).
            Returns both gradients times the upstream gradient, in the dtypes of the logits. None where the gradients
            are computed in the forward pass.
    """

    implicit_rm_forward: Callable[..., Results]
    linear_implicit_rm_forward: Callable[..., Results]
    linear_hidden_grad: Callable[..., Tensor]
    linear_weight_grad: Callable[..., Tensor]
    pointwise_forward: Callable[..., tuple[Tensor, Tensor | None]]
    scale_gradients: Callable[..., list[Tensor | None]]
    implicit_rm_gradients: Callable[..., tuple[Tensor | None, Tensor | None]] | None


def backends() -> dict[str, str]:
    """State of the loss backends on this machine.

    Returns:
        For each name, "available", or why it is not.

    Examples:
        >>> import irm_fast
        >>> irm_fast.backends()["reference"]
        'available'
    """
    return {name: _why_not(name) or "available" for name in BACKENDS}


@cache
def choose_backend(name: str | None, device_type: str, is_double: bool) -> Backend:
    """Return the backend asked for, or the default one for this kind of device and dtype.

    Args:
        name: The name of a backend, or None.
        device_type: The kind of device that holds the tensors, such as "cuda".
        is_double: Whether any logits are float64, which the reference alone computes.

    Raises:
        ValueError: The name is unknown, or the backend does not take the dtype.
        RuntimeError: The backend is not available, or does not run on this kind of device.

    Warns:
        UserWarning: None was named, and there is only the reference, which is slow.
    """
    if name is None:
        name = default_backend(device_type, is_double)
        if name == "reference" and not is_double:
            _say_that_it_is_slow(device_type)
    elif name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS} or None, got {name!r}")
    elif is_double and name != "reference":
        raise ValueError(f"backend {name!r} computes in float32: for float64 logits use the reference backend")
    elif name == "cpu" and device_type != "cpu":
        raise RuntimeError(f"backend 'cpu' was asked for, the tensors are on {device_type}")
    elif name == "triton" and device_type == "cpu" and not _interpreting():
        raise RuntimeError("backend 'triton' runs on GPU tensors (on CPU tensors only with TRITON_INTERPRET=1)")
    return _load(name)


def _say_that_it_is_slow(device_type: str) -> None:
    """Warn that nobody asked for the reference; once, since the choice is remembered.

    Raises:
        RuntimeError: The device has no float64, which the reference computes in.
    """
    if device_type == "mps":
        raise RuntimeError("no backend runs on mps, which has no float64; move the tensors to the CPU, .cpu()")
    why, remedy = f"there is no kernel for {device_type}", "move the tensors to the CPU"
    if device_type == "cpu":
        why = str(_why_not("cpu"))
        again = "in its clone: pip install --force-reinstall --no-deps ."
        remedy = f"install g++ or clang++ and then irm-fast again ({again}), or a wheel of it"
    warn_caller(
        f"losses on {device_type} are computed by the float64 reference, which is slow: {why}. To mend it {remedy}; "
        "backend='reference' asks for the reference without this warning"
    )


def default_backend(device_type: str, is_double: bool = False) -> str:
    """Return the name of the backend that computes a loss for which none is named.

    Args:
        device_type: The kind of device that holds the tensors, such as "cuda".
        is_double: Whether any logits are float64.
    """
    if is_double:
        return "reference"
    if device_type == "cpu":
        return "reference" if _why_not("cpu") else "cpu"
    # PyTorch calls AMD GPUs cuda too. A Triton that cannot be imported there is an error, not a slow path.
    return "triton" if device_type == "cuda" else "reference"


def _load(name: str) -> Backend:
    """Import a backend; RuntimeError if it cannot be imported."""
    try:
        if name == "triton":
            from irm_fast.kernels.reference import scale  # PyTorch's operations
            from irm_fast.kernels.triton import implicit_rm, linear_implicit_rm, pointwise
        elif name == "cpu":
            from irm_fast.kernels.cpu import implicit_rm, linear_implicit_rm, pointwise, scale
        else:
            from irm_fast.kernels.reference import implicit_rm, linear_implicit_rm, pointwise, scale
    except (ImportError, OSError) as error:
        raise RuntimeError(f"backend {name!r} is not available: {error}") from error
    return Backend(
        implicit_rm.implicit_rm_forward,
        linear_implicit_rm.linear_implicit_rm_forward,
        linear_implicit_rm.linear_hidden_grad,
        linear_implicit_rm.linear_weight_grad,
        pointwise.pointwise_forward,
        scale.scale_gradients,
        implicit_rm.implicit_rm_gradients if name == "triton" else None,
    )


def _why_not(name: str) -> str | None:
    """Return why a backend is not available, or None if it is."""
    if name == "triton" and not (torch.cuda.is_available() or _interpreting()):
        return "no GPU"
    try:
        _load(name)
    except RuntimeError as error:
        return str(error)
    return None


def _interpreting() -> bool:
    """Whether Triton's interpreter is switched on, in which kernels run on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
