"""What the launchers share."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import triton
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def strides(x: Tensor | None) -> tuple[int, int]:
    """Row and signal stride; one signal may come without a dimension of its own."""
    if x is None:
        return 0, 0
    return x.stride(0), x.stride(1) if x.dim() == 2 else 0


def as_codes(x: Tensor | None) -> Tensor | None:
    """Triton has no pointers to bool."""
    return x.view(torch.uint8) if x is not None and x.dtype == torch.bool else x


def device_limits(x: Tensor) -> tuple[int, int]:
    """Number of processors of the tensor's GPU, and the shared memory that one program can have there, in bytes."""
    return (4, 65536) if INTERPRETED else _device_limits(x.device.index)


@cache
def _device_limits(index: int) -> tuple[int, int]:
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return properties["multiprocessor_count"], properties["max_shared_mem"]


@cache
def has_tensor_cores() -> bool:
    """Whether dots of bfloat16 run as `heads.dot_logits` wants them: on NVIDIA, and in the interpreter."""
    return INTERPRETED or triton.runtime.driver.active.get_current_target().backend == "cuda"
