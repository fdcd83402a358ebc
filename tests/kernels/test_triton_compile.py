"""Every Triton kernel compiles to machine code for the GPUs it is meant for. No GPU or driver is needed.

The compilation runs in another process: the interpreter, which the other tests use, replaces the compiler
when triton is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Bytes of stack a thread, where registers that do not suffice are spilled to. The tiles are made for sm_90 and nearly
# fill its registers; for sm_100 and gfx942 the compilers need more of them where heads are wide.
STACK_BOUND = {"sm_80": 0, "sm_89": 0, "sm_90": 0, "sm_100": 192, "gfx942": 400}
KERNELS = {
    "implicit_rm_kernel",
    "one_sided_kernel",
    "linear_implicit_rm_fwd_kernel",
    "linear_total_kernel",
    "linear_weight_grad_kernel",
    "linear_hidden_grad_kernel",
    "pointwise_fwd_kernel",
}


def run_without_interpreter(arguments: list[str], tmp_path: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def compiled(tmp_path: Path, target: str, rows_factor: int = 1, cases: str = "") -> list[dict[str, Any]]:
    """Records of `compile_launches` for the cases whose name contains `cases`, by default all."""
    arguments = ["-m", "tests.kernels.triton_cases", target, str(rows_factor), cases]
    return json.loads(run_without_interpreter(arguments, tmp_path))


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_compile(target: str, tmp_path: Path) -> None:
    records = compiled(tmp_path, target)
    assert {record["kernel"] for record in records} == KERNELS
    for record in records:
        assert record["bytes"] > 1000, record
        assert record["stack"] <= STACK_BOUND[target], record
        assert record["shared"] <= record["shared_limit"], record


def test_a_gpu_with_little_shared_memory_gets_fewer_stages(tmp_path: Path) -> None:
    record, *_ = compiled(tmp_path, "sm_89", cases="linear K=1 H=4096 bfloat16")
    assert 0 < record["shared"] <= record["shared_limit"] < 131072
    assert record["stack"] <= STACK_BOUND["sm_89"]


def test_spills_are_seen(tmp_path: Path) -> None:
    """Tiles of four times the rows cannot fit: were no stack reported, the tests above would prove nothing."""
    for target in ("sm_90", "gfx942"):
        record, *_ = compiled(tmp_path, target, rows_factor=4, cases="linear K=1 H=4096 bfloat16")
        assert record["stack"] > STACK_BOUND[target]


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
