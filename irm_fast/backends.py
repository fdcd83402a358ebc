"""Which implementation computes: Triton on GPUs, C++ on CPUs, or the float64 reference."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from irm_fast import checks, reference

BACKENDS = ("triton", "cpu", "reference")


def backends() -> dict[str, str]:
    """What can compute the loss here: backend name -> "available", or why not."""
    return {name: _why_not(name) or "available" for name in BACKENDS}


def choose_backend(name: str | None, device: torch.device, is_double: bool) -> Callable:
    """The forward pass of the backend asked for, or of the best one for this device and dtype.

    Raises ValueError for an unknown name or a dtype the backend does not take, RuntimeError where it cannot be had.
    """
    if name is None:
        name = _default_backend(device.type, is_double)
    elif name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS} or None, got {name!r}")
    elif is_double and name != "reference":
        raise ValueError(f"backend {name!r} computes in float32: for float64 logits use the reference backend")
    elif name == "cpu" and device.type != "cpu":
        raise RuntimeError(f"backend 'cpu' was asked for, the tensors are on {device}")
    elif name == "triton" and device.type == "cpu" and not _interpreting():
        raise RuntimeError("backend 'triton' runs on GPU tensors (on CPU tensors only with TRITON_INTERPRET=1)")
    return _load(name)


@cache
def _default_backend(device_type: str, is_double: bool) -> str:
    if is_double:
        return "reference"
    if device_type == "cpu":
        return "reference" if _why_not("cpu") else "cpu"
    # PyTorch calls AMD GPUs cuda too. A Triton that cannot be imported there is an error, not a slow path.
    return "triton" if device_type == "cuda" else "reference"


@cache
def _load(name: str) -> Callable:
    if name == "reference":
        return reference_forward
    module = {"cpu": "irm_fast.kernels.cpu", "triton": "irm_fast.kernels.triton.implicit_rm"}[name]
    try:
        return importlib.import_module(module).implicit_rm_forward
    except (ImportError, OSError) as error:
        raise RuntimeError(f"backend {name!r} cannot be had: {error}") from error


def _why_not(name: str) -> str | None:
    if name == "triton" and not (torch.cuda.is_available() or _interpreting()):
        return "no GPU"
    try:
        _load(name)
    except RuntimeError as error:
        return str(error)
    return None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def reference_forward(
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
    """What the kernels compute, from the float64 reference and autograd. Same arguments and results."""
    checks.check_values(feedback, preference, weight)
    shape, dtype = propensity.shape, torch.promote_types(reward.dtype, propensity.dtype)
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    polarity, rate = signals[0].double(), signals[1].double()
    evidence: dict[str, Any] = {"preference": preference, "polarity": polarity, "misclick_rate": rate}

    def columns(x: Tensor) -> Tensor:
        return x.unsqueeze(-1) if x.dim() == 1 else x

    s = reward.detach().double().requires_grad_()
    t = columns(propensity.detach()).double().requires_grad_()
    feedback = columns(feedback)
    posterior = (s, t)
    if stratification is not None:
        posterior = (stratification[0], columns(stratification[1]))
    with torch.enable_grad():
        rows = reference.implicit_rm_loss(
            s, t, feedback, **evidence, stratification=None if stratification is None else posterior
        )
        grads = torch.autograd.grad(rows.sum(), (s, t))
    # Rows without a likelihood have no gradient, whatever autograd makes of their pieces.
    broken = ~rows.detach().isfinite()
    grad_s = grads[0].masked_fill(broken, torch.nan)
    grad_t = grads[1].masked_fill(broken[:, None] & (feedback != -1), torch.nan)
    factor = torch.full_like(rows, scale) if weight is None else weight.double() * scale
    nothing = factor == 0  # such a row contributes nothing, whatever it holds
    loss = torch.where(nothing, 0.0, rows.detach() * factor)
    grad_s = torch.where(nothing, 0.0, grad_s * factor).to(dtype)
    grad_t = torch.where(nothing[:, None], 0.0, grad_t * factor[:, None]).to(dtype).reshape(shape)
    groups = None
    if need_groups:
        with torch.no_grad():
            groups = reference.stratify(*posterior, feedback, **evidence).to(dtype).reshape(*shape, 4)
    loss = (loss if per_row else loss.sum()).to(dtype)
    return loss, grad_s if need_grads[0] else None, grad_t if need_grads[1] else None, groups
