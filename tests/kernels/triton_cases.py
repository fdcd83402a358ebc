"""Launches of every Triton kernel, compiled instead of run: what the launchers ask for, for a GPU that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from irm_fast.kernels.batch import Batch, PointwiseBatch
from irm_fast.kernels.triton import implicit_rm, linear_gradients, linear_implicit_rm, linear_tiles, pointwise
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Target, and the shared memory that one program can have there.
TARGETS: dict[str, tuple[GPUTarget, int]] = {
    "sm_80": (GPUTarget("cuda", 80, 32), 166912),
    "sm_89": (GPUTarget("cuda", 89, 32), 101376),
    "sm_90": (GPUTarget("cuda", 90, 32), 232448),
    "sm_100": (GPUTarget("cuda", 100, 32), 232448),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65536),
}
KERNELS = (
    (implicit_rm, "implicit_rm_kernel"),
    (implicit_rm, "one_sided_kernel"),
    (linear_implicit_rm, "linear_implicit_rm_fwd_kernel"),
    (linear_gradients, "linear_total_kernel"),
    (linear_gradients, "linear_weight_grad_kernel"),
    (linear_gradients, "linear_hidden_grad_kernel"),
    (pointwise, "pointwise_fwd_kernel"),
)
POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.uint8: "*u8", torch.int8: "*i8", torch.int64: "*i64",
}  # fmt: skip
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
N = 4096


def launch_loss(k: int, dtype: torch.dtype, everything: bool = False, gradients: bool = True, **settings: Any) -> None:
    """Forward, with the gradients or without them as autograd asks for it."""
    logits = torch.empty(N, dtype=dtype), torch.empty(N, k, dtype=dtype)
    need = (gradients, gradients)
    implicit_rm.implicit_rm_forward(*logits, _batch(k, dtype, everything)._replace(**settings), need)


def launch_loss_gradients(k: int, dtype: torch.dtype, everything: bool = False, **settings: Any) -> None:
    """The backward pass."""
    logits = torch.empty(N, dtype=dtype), torch.empty(N, k, dtype=dtype)
    batch = _batch(k, dtype, everything)._replace(per_row=False, need_groups=False, **settings)
    upstream = torch.empty(N) if everything else torch.tensor(1.0)
    implicit_rm.implicit_rm_gradients(*logits, batch, upstream, (True, True))


def launch_linear(k: int, h: int, dtype: torch.dtype, everything: bool = False, heads: bool = True) -> None:
    m = k + 1 if heads else 1
    linear_implicit_rm.linear_implicit_rm_forward(
        torch.empty(N, h, dtype=dtype),
        torch.empty(m, h),
        torch.empty(m),
        None if heads else torch.empty(k).expand(N, k),
        _batch(k, dtype, everything),
        (True, True),
    )


def launch_hidden_grad(k: int, h: int, dtype: torch.dtype) -> None:
    upstream = torch.tensor(1.0)
    linear_gradients.linear_hidden_grad(torch.empty(N, k + 1), upstream, torch.empty(k + 1, h), dtype)


def launch_pointwise(dtype: torch.dtype, per_row: bool = False, step: int = 1) -> None:
    logits = torch.empty(N * step, dtype=dtype)[::step]
    batch = PointwiseBatch(torch.empty(N), torch.empty(N), scale=1.0, per_row=per_row, backend=None)
    pointwise.pointwise_forward(logits, batch, (not per_row,))


def _batch(k: int, dtype: torch.dtype, everything: bool) -> Batch:
    return Batch(
        feedback=torch.empty(N, k, dtype=torch.int64 if everything else torch.int8),
        preference=torch.empty(N, dtype=torch.bool) if everything else None,
        weight=torch.empty(N) if everything else None,
        reward_strat=torch.empty(N, dtype=dtype) if everything else None,
        propensity_strat=torch.empty(N, k, dtype=dtype) if everything else None,
        polarity=(1.0,) * k,
        misclick_rate=(0.1 if everything else 0.0,) * k,
        scale=1.0,
        per_row=everything,
        need_groups=everything,
        backend=None,
    )


CASES: dict[str, Callable[[], None]] = {
    "loss K=1 float32": partial(launch_loss, 1, F32),
    "loss K=1 bfloat16": partial(launch_loss, 1, BF16),
    "loss K=2 float32": partial(launch_loss, 2, F32),
    "loss K=3 float32, weight, rows": partial(launch_loss, 3, F32, weight=torch.empty(N), per_row=True),
    "loss K=4 float32": partial(launch_loss, 4, F32),
    "loss K=16 float16": partial(launch_loss, 16, F16),
    "loss K=1 bfloat16, no gradients": partial(launch_loss, 1, BF16, gradients=False),
    "loss gradients K=1 bfloat16": partial(launch_loss_gradients, 1, BF16),
    "loss gradients K=4 float32": partial(launch_loss_gradients, 4, F32),
    "loss gradients K=3 bfloat16, everything": partial(launch_loss_gradients, 3, BF16, everything=True),
    "loss K=2 float32, displeasure": partial(launch_loss, 2, F32, polarity=(1.0, -1.0)),
    "loss K=3 bfloat16, everything": partial(launch_loss, 3, BF16, everything=True),
    "loss K=16 float32, everything": partial(launch_loss, 16, F32, everything=True),
    "linear K=1 H=4096 float32": partial(launch_linear, 1, 4096, F32),
    "linear K=1 H=4096 bfloat16": partial(launch_linear, 1, 4096, BF16),
    "linear K=1 H=4096 float16": partial(launch_linear, 1, 4096, F16),
    "linear K=1 H=8192 bfloat16": partial(launch_linear, 1, 8192, BF16),
    "linear K=2 H=4096 bfloat16": partial(launch_linear, 2, 4096, BF16),
    "linear K=4 H=4096 bfloat16": partial(launch_linear, 4, 4096, BF16),
    "linear K=1 H=2560 bfloat16": partial(launch_linear, 1, 2560, BF16),
    "linear K=1 H=4096 bfloat16, given propensities": partial(launch_linear, 1, 4096, BF16, heads=False),
    "linear K=1 H=1000 bfloat16, unaligned": partial(launch_linear, 1, 1000, BF16),
    "linear K=3 H=3000 bfloat16, unaligned": partial(launch_linear, 3, 3000, BF16),
    "linear K=3 H=1000 float32, everything": partial(launch_linear, 3, 1000, F32, everything=True),
    "linear K=3 H=4096 bfloat16, everything": partial(launch_linear, 3, 4096, BF16, everything=True),
    "linear K=1 H=16384 bfloat16, two reads": partial(launch_linear, 1, 16384, BF16),
    "linear K=16 H=1024 float16, two reads": partial(launch_linear, 16, 1024, F16),
    "linear K=16 H=1024 float32, given propensities": partial(launch_linear, 16, 1024, F32, heads=False),
    "hidden gradient K=1 H=4096 bfloat16": partial(launch_hidden_grad, 1, 4096, BF16),
    "hidden gradient K=3 H=1000 float16": partial(launch_hidden_grad, 3, 1000, F16),
    "hidden gradient K=16 H=8192 float32": partial(launch_hidden_grad, 16, 8192, F32),
    "pointwise float32": partial(launch_pointwise, F32),
    "pointwise bfloat16": partial(launch_pointwise, BF16),
    "pointwise float16, strided, rows": partial(launch_pointwise, F16, per_row=True, step=3),
}


def compile_launches(launch: Callable[[], None], target: str, rows_factor: int = 1) -> Iterator[dict[str, Any]]:
    """Compiles what `launch` would run on the target; one record a kernel: size, stack and shared memory in bytes.

    The forward kernel of the linear loss gets tiles of `rows_factor` times the rows that its launcher chooses.
    """
    gpu, shared = TARGETS[target]
    launches: list[tuple[Any, tuple, dict]] = []
    forward_tile = linear_implicit_rm.forward_tile

    def tile(*args: Any) -> Any:
        chosen = forward_tile(*args)
        return chosen._replace(BLOCK_N=chosen.BLOCK_N * rows_factor)

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple) -> Callable:
            return lambda *args, **kwargs: launches.append((self.kernel, args, kwargs))

    with ExitStack() as patches:
        for module, name in KERNELS:
            patches.enter_context(patch.object(module, name, Recorder(getattr(module, name))))
        for module in (linear_implicit_rm, linear_gradients):
            patches.enter_context(patch.object(module, "device_limits", lambda _: (132, shared)))
        patches.enter_context(patch.object(linear_implicit_rm, "forward_tile", tile))
        patches.enter_context(patch.object(linear_tiles, "has_tensor_cores", lambda: gpu.backend == "cuda"))
        launch()
    for kernel, args, kwargs in launches:
        compiled = _compile(kernel, args, kwargs, gpu)
        record = {"kernel": kernel.__name__, "shared": compiled.metadata.shared, "shared_limit": shared}
        binary = compiled.asm["cubin" if gpu.backend == "cuda" else "hsaco"]
        yield record | {"bytes": len(binary), "stack": _stack(compiled)}


def _compile(kernel: Any, args: tuple, kwargs: dict[str, Any], gpu: GPUTarget) -> Any:
    """Signature, constants and divisibility by 16 as the launch itself would find them."""
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: kwargs.pop(name) for name in kernel.arg_names if name in kwargs}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value, name = values[parameter.name], parameter.name
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, Tensor) or (specialised and isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=gpu, options=kwargs)


def _stack(compiled: Any) -> int:
    """Bytes of stack a thread: registers that spilled. ptxas counts them there, not under LOCAL."""
    if "amdgcn" in compiled.asm:
        return int(compiled.asm["amdgcn"].split(".private_segment_fixed_size:")[1].split()[0])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return int(usage.split("STACK:")[1].split()[0])


if __name__ == "__main__":
    target, rows_factor, part = sys.argv[1:]
    launches = [launch for name, launch in CASES.items() if part in name]
    print(json.dumps([record for launch in launches for record in compile_launches(launch, target, int(rows_factor))]))
