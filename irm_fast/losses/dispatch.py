"""Which implementation computes: Triton on GPUs, C++ on CPUs, or the float64 reference.

Each backend has a module for each operation, with the same functions: `implicit_rm`, `linear_implicit_rm`, `pointwise`.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

import torch

BACKENDS = ("triton", "cpu", "reference")
_PACKAGES = {
    "triton": "irm_fast.kernels.triton",
    "cpu": "irm_fast.kernels.cpu",
    "reference": "irm_fast.kernels.reference",
}


def backends() -> dict[str, str]:
    """What can compute the loss here: backend name -> "available", or why not."""
    return {name: _why_not(name) or "available" for name in BACKENDS}


def choose_backend(name: str | None, device: torch.device, is_double: bool, operation: str = "implicit_rm") -> Any:
    """The module of an operation in the backend asked for, or in the best one for this device and dtype.

    Raises ValueError for an unknown name or a dtype the backend does not take, RuntimeError where it cannot be had.
    """
    return _choose(name, device.type, is_double, operation)


@cache
def _choose(name: str | None, device_type: str, is_double: bool, operation: str) -> Any:
    if name is None:
        name = _default_backend(device_type, is_double)
    elif name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS} or None, got {name!r}")
    elif is_double and name != "reference":
        raise ValueError(f"backend {name!r} computes in float32: for float64 logits use the reference backend")
    elif name == "cpu" and device_type != "cpu":
        raise RuntimeError(f"backend 'cpu' was asked for, the tensors are on {device_type}")
    elif name == "triton" and device_type == "cpu" and not _interpreting():
        raise RuntimeError("backend 'triton' runs on GPU tensors (on CPU tensors only with TRITON_INTERPRET=1)")
    return _load(name, operation)


def _default_backend(device_type: str, is_double: bool) -> str:
    if is_double:
        return "reference"
    if device_type == "cpu":
        return "reference" if _why_not("cpu") else "cpu"
    # PyTorch calls AMD GPUs cuda too. A Triton that cannot be imported there is an error, not a slow path.
    return "triton" if device_type == "cuda" else "reference"


def _load(name: str, operation: str) -> Any:
    try:
        return importlib.import_module(f"{_PACKAGES[name]}.{operation}")
    except (ImportError, OSError) as error:
        raise RuntimeError(f"backend {name!r} cannot be had: {error}") from error


def _why_not(name: str) -> str | None:
    if name == "triton" and not (torch.cuda.is_available() or _interpreting()):
        return "no GPU"
    try:
        _load(name, "implicit_rm")
    except RuntimeError as error:
        return str(error)
    return None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
