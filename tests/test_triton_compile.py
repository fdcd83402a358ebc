"""Every Triton kernel compiles to machine code for the GPUs it is meant for. No GPU or driver is needed.

The compilation runs in another process: the interpreter, which the other tests use, replaces the compiler
when triton is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# Bytes a thread. Older compilers of Triton put a few registers of sm_80 and sm_90 on the stack.
CURRENT = tuple(map(int, version("triton").split(".")[:2])) >= (3, 9)
STACK_BOUND = {"sm_80": 16, "sm_90": 0 if CURRENT else 16, "sm_100": 0 if CURRENT else 16, "gfx942": 0}
# Number of signals, type of feedback, whether optional arguments are there, misclicks, loss per row.
VARIANTS: dict[str, tuple[int, str, bool, bool, bool]] = {
    "training": (1, "*i8", False, False, False),
    "everything": (3, "*i64", True, True, True),
    "most signals": (16, "*i8", True, True, False),
}
DTYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}


def specialise(kernel: Any, dtype: str, variant: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Signature and constants of implicit_rm_fwd_kernel (a heuristics wrapper) for one way of calling it."""
    k, feedback, everything, misclick, per_row = VARIANTS[variant]
    logits = DTYPES[dtype]
    pointers = {
        "reward_ptr": logits,
        "propensity_ptr": logits,
        "reward_strat_ptr": logits,
        "propensity_strat_ptr": logits,
        "feedback_ptr": feedback,
        "preference_ptr": "*u8",
        "weight_ptr": "*fp32",
        "signals_ptr": "*fp32",
        "loss_ptr": "*fp32",
        "grad_reward_ptr": "*fp32",
        "grad_propensity_ptr": "*fp32",
        "groups_ptr": "*fp32",
    }
    optional = {"reward_strat_ptr", "propensity_strat_ptr", "preference_ptr", "weight_ptr", "groups_ptr"}
    constants: dict[str, Any] = {"K": k, "BLOCK_N": 512, "HAS_MISCLICK": misclick, "PER_ROW": per_row}
    if not everything:
        constants |= dict.fromkeys(optional)
    signature = {}
    for name in kernel.arg_names:
        if name in constants or name in kernel.values:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = pointers[name]
        else:
            signature[name] = "fp32" if name == "scale" else "i64"
    arguments = {name: constants.get(name, name) for name in kernel.arg_names}
    return signature, constants | {name: rule(arguments) for name, rule in kernel.values.items()}


def compile_for(target: str) -> list[dict[str, Any]]:
    """One record per kernel, dtype and variant: the size of the machine code, and the stack it needs."""
    import triton
    from irm_fast.kernels.triton.implicit_rm import implicit_rm_fwd_kernel as kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    backend, arch, warp_size = TARGETS[target]
    records = []
    for dtype in DTYPES:
        for variant in VARIANTS:
            signature, constants = specialise(kernel, dtype, variant)
            source = ASTSource(kernel.fn, signature, constexprs=constants)
            compiled = triton.compile(
                source, target=GPUTarget(backend, arch, warp_size), options={"enable_fp_fusion": True}
            )
            binary = compiled.asm["cubin" if backend == "cuda" else "hsaco"]
            stack = stack_of(binary) if backend == "cuda" else 0
            records.append({"dtype": dtype, "variant": variant, "bytes": len(binary), "stack": stack})
    return records


def stack_of(cubin: bytes) -> int:
    """Bytes of stack a thread: registers that spilled. ptxas counts them there, not under LOCAL."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    path.write_bytes(cubin)
    usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return int(usage.split("STACK:")[1].split()[0])


def run_without_interpreter(arguments: list[str], tmp_path: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile(target: str, tmp_path: Path) -> None:
    records = json.loads(run_without_interpreter([__file__, target], tmp_path))
    assert len(records) == len(DTYPES) * len(VARIANTS)
    for record in records:
        assert record["bytes"] > 1000, record
        assert record["stack"] <= STACK_BOUND[target], record


def test_cpu_tensors_need_the_interpreter(tmp_path: Path) -> None:
    """Without TRITON_INTERPRET the backend refuses CPU tensors and says what to do; the default works."""
    script = """
import torch, irm_fast
s, t, f = torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int8)
print(irm_fast.implicit_rm_loss(s, t, f).item())
try:
    irm_fast.implicit_rm_loss(s, t, f, backend="triton")
except (ValueError, RuntimeError) as error:
    print(error)
"""
    loss, message = run_without_interpreter(["-c", script], tmp_path).strip().split("\n")
    assert float(loss) == pytest.approx(0.4700036)  # -log(1/2 + 1/2 * 1/4)
    assert "TRITON_INTERPRET" in message


if __name__ == "__main__":
    print(json.dumps(compile_for(sys.argv[1])))
