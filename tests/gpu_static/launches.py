"""A device that is not there: Triton compiles each launch for it, and what would have run is handed to a function.

Everything up to the launch is the real thing: the launchers of kernels/triton, Triton's choice of specialisation from
the very arguments, its check of shared memory. Triton's interpreter must be off, and so the code here runs in a process
of its own, see tests/gpu_static/test_gpu_static.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from irm_fast.kernels.triton import launch as launchers
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

from irm_fast.losses import dispatch
from tests.gpu_static.emulator import Emulator, run_program
from tests.gpu_static.memory import Global
from tests.gpu_static.ptx import parse


class Target(NamedTuple):
    """A GPU as the launchers see it."""

    gpu: GPUTarget
    shared: int  # bytes that one program can have
    processors: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 166912, 108),
    "sm_89": Target(GPUTarget("cuda", 89, 32), 101376, 128),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 232448, 132),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 232448, 148),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 65536, 304),
}


class Compiled:
    """A kernel that was compiled for a launch."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.metadata, self.signature = metadata, dict(source.signature)
        self.constants = {source.fn.arg_names[path[0]]: value for path, value in source.constants.items()}
        self.name = source.fn.__name__
        group = get_cache_manager(metadata.hash).get_group(f"{source.name[:150]}.json")
        self.files = {Path(path).suffix[1:]: Path(path) for path in (group or {}).values()}

    @cached_property
    def ptx(self) -> str:
        return self.files["ptx"].read_text()

    @cached_property
    def binary(self) -> bytes:
        return next(path for suffix, path in self.files.items() if suffix in ("cubin", "hsaco")).read_bytes()


class Launch(NamedTuple):
    """A kernel, its grid and its arguments by name, constants among them."""

    kernel: Compiled
    grid: tuple[int, int, int]
    arguments: dict[str, Any]

    @property
    def passed(self) -> list[Any]:
        """The arguments that the compiled kernel takes."""
        return [value for name, value in self.arguments.items() if self.kernel.signature[name] != "constexpr"]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.arguments.items() if isinstance(x, Tensor)}


class _Launcher:
    """What Triton keeps of a compiled kernel, beyond the driver for which it was made."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.kernel = Compiled(source, metadata)

    def __call__(self, x: int, y: int, z: int, *rest: Any) -> None:
        arguments = dict(zip(self.kernel.signature, rest[6:], strict=True))
        driver.active.run(Launch(self.kernel, (x, y, z), arguments))  # type: ignore[attr-defined]


class _Driver:
    """What Triton asks its driver for."""

    def __init__(self, target: str, run: Callable[[Launch], None], processors: int | None) -> None:
        self.target, self.utils = target, self
        self.processors = processors or TARGETS[target].processors
        self.run, self.launcher_cls = run, _Launcher

    def get_current_device(self) -> str:
        return self.target  # Triton keeps what it compiled by this

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target].gpu

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: Any) -> dict[str, int]:
        return {"max_shared_mem": TARGETS[self.target].shared, "multiprocessor_count": self.processors}

    def load_binary(self, *_: Any) -> tuple[object, object, int, int, int]:
        return object(), object(), 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass


@contextmanager
def launching(target: str, run: Callable[[Launch], None], processors: int | None = None) -> Iterator[None]:
    """Kernels of `irm_fast` that are launched on CPU tensors are compiled for the target and handed to `run`."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise RuntimeError("Triton's interpreter is on: unset TRITON_INTERPRET before triton is imported")
    _forget_devices()
    before = driver._active
    with patch.object(dispatch, "_interpreting", lambda: True):
        driver.set_active(_Driver(target, run, processors))  # type: ignore[arg-type]
        try:
            yield
        finally:
            driver._active = before
            _forget_devices()


def _forget_devices() -> None:
    """Clear what `irm_fast` remembers of the GPUs of this process."""
    for function in (launchers._device_limits, launchers.has_tensor_cores, dispatch.choose_backend):
        function.cache_clear()


@contextmanager
def emulating(seed: int | None = None, processors: int | None = None) -> Iterator[list[tuple[Launch, Emulator]]]:
    """Kernels that are launched on CPU tensors are compiled for sm_90 and run by the emulator.

    Args:
        seed: See `Emulator`.
        processors: Of the device; None: as many as an H100 has. With few, programs loop over more tiles.

    Yields:
        A list that grows with each launch, and its emulator afterwards: traffic and counts.
    """
    done: list[tuple[Launch, Emulator]] = []

    def run(launch: Launch) -> None:
        program = parse(launch.kernel.ptx)
        memory = Global(_span(x) for x in launch.tensors.values())
        values = [x.data_ptr() if isinstance(x, Tensor) else x for x in launch.passed]
        values += [0] * (len(program.parameters) - len(values))  # Triton's scratch memory, which nothing here uses
        done.append((launch, run_program(program, launch.grid, values, memory, seed)))

    with launching("sm_90", run, processors):
        yield done


def _span(x: Tensor) -> tuple[int, int]:
    """First address and number of bytes from the first to behind the last element."""
    elements = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    return x.data_ptr(), elements * x.element_size()
