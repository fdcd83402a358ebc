"""What the GPU code computes and takes, found without a GPU: compiled for sm_90 and others, read, run by an emulator.

The compilation runs in other processes: Triton's interpreter, which the other tests use, replaces the compiler when
triton is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import triton

from tests.gpu_static.budgets import TABLE, TARGETS
from tests.gpu_static.forks import ROOT, Forks, without_interpreter

# Those that run by default take two and a half minutes of a processor.
QUICK = () if os.environ.get("IRM_FAST_ALL_GPU_CODE") == "1" else ("--quick",)
TABLED: dict[str, Any] = json.loads(TABLE.read_text())
KERNELS = {
    "implicit_rm_kernel",
    "one_sided_kernel",
    "linear_implicit_rm_fwd_kernel",
    "linear_total_kernel",
    "linear_weight_grad_kernel",
    "linear_hidden_grad_kernel",
    "pointwise_fwd_kernel",
}
# Bytes of stack a thread, where registers that do not suffice are spilled to. The tiles are made for sm_90 and nearly
# fill its registers; for sm_100 and gfx942 the compilers need more of them where heads are wide.
STACK = {"sm_80": 0, "sm_90": 0, "sm_100": 192, "gfx942": 400}
TOLERANCE = 0.02  # of every number in the table
# Errors beyond rounding to the dtype of the result, relative to the greatest value; approximate functions of the
# emulator err as those of the hardware may.
ERROR = 2e-6
SECTORS = {"loss": 4.1, "linear": 2.4, "pointwise": 1.1}  # touched, times as many as would do
COALESCED = re.compile(r"loss K=[124] \w+$")  # of these 1.1 times too


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """What compiles; compiled kernels are kept for all tests and workers of this session."""
    base = tmp_path_factory.getbasetemp()
    with Forks((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled") as forks:
        yield forks


@pytest.mark.parametrize("target", TARGETS)
def test_budgets(forks: Forks, target: str) -> None:
    """Every kernel compiles, spills nothing that it need not, and takes what the table says."""
    found = forks.run("budgets", target, *QUICK)
    launches = [(name, record) for name, records in found.items() for record in records]
    assert {record["kernel"] for _, record in launches} == KERNELS or (QUICK and target != "sm_90")
    for name, record in launches:
        assert record["stack"] <= STACK[target], (name, record)
    if triton.__version__ != TABLED["triton"]:
        pytest.skip(f"the table is of Triton {TABLED['triton']}, this is {triton.__version__}")
    wrong = [
        f"{name}, {a['kernel']}: {key} is {a[key]}, in the table {b.get(key)}"
        for name in found.keys() | (TABLED[target].keys() if not QUICK else ())
        for a, b in zip(found.get(name, []), TABLED[target].get(name, []), strict=False)
        for key in a
        if not same(a[key], b.get(key))
    ]
    wrong += [f"{name}: other launches than in the table" for name in found if not same_launches(found, target, name)]
    assert not wrong, "\n".join([*wrong, "if this is meant: python -m tests.gpu_static.budgets --write"])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= TOLERANCE * abs(b)
    return a == b


def same_launches(found: dict[str, Any], target: str, name: str) -> bool:
    return len(found[name]) == len(TABLED[target].get(name, ()))


@pytest.mark.parametrize("part", ["loss", "linear", "pointwise"])
def test_compiled_kernels_are_right(forks: Forks, part: str) -> None:
    """The code for sm_90 agrees with the float64 reference, and reads and writes inside of its tensors."""
    for found in forks.run("emulate", part, *QUICK):
        for result, error in found["errors"].items():
            assert error <= ERROR, (found["case"], found["rows"], result, error)
        assert found["kernels"], found
        for kernel in found["kernels"]:
            for kind in ("load", "store"):
                sectors, ideal, _ = kernel[kind]
                bound = 1.1 if COALESCED.match(found["case"]) else SECTORS[part]
                assert sectors <= bound * ideal, (found["case"], kernel)


def test_far_logits(forks: Forks) -> None:
    """What is not below 1e-30 is right to 1e-4 of itself, whatever the approximate functions lose; all is finite."""
    for found in forks.run("emulate", "--tails"):
        assert found["finite"] and len(found["errors"]) == 3, found
        assert max(found["errors"].values()) < 1e-4, found


def test_a_gpu_with_little_shared_memory_gets_fewer_stages(forks: Forks) -> None:
    """A launch that asks for more than the GPU has is an error of Triton."""
    (records,) = forks.run("budgets", "sm_89", "linear K=1 H=4096 bf").values()
    assert 0 < records[0]["shared"] < 131072 and records[0]["stack"] == 0


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_spills_are_seen(forks: Forks, target: str) -> None:
    """512 numbers a thread cannot be held in registers: were no stack reported, the budgets would prove nothing."""
    assert forks.run("spill", target) > 500


def test_cpu_tensors_need_the_interpreter() -> None:
    """Without TRITON_INTERPRET the backend refuses CPU tensors and says what to do; the default works."""
    script = """
import json, torch, irm_fast
s, t, f = torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int8)
loss = irm_fast.implicit_rm_loss(s, t, f).item()
try:
    irm_fast.implicit_rm_loss(s, t, f, backend="triton")
except (ValueError, RuntimeError) as error:
    print(json.dumps([loss, str(error)]))
"""
    command, environment = [sys.executable, "-c", script], without_interpreter()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    loss, message = json.loads(done.stdout)
    assert loss == pytest.approx(0.4700036)  # -log(1/2 + 1/2 * 1/4)
    assert "TRITON_INTERPRET" in message


# Kernels of ours and of PyTorch in one eager step with its backward pass.
LAUNCHES = {"loss float32": 4, "loss bfloat16": 4, "linear float32": 6, "linear bfloat16": 7, "trainer's heads": 8}


def test_launches_of_a_step(forks: Forks) -> None:
    """No step launches more than it did."""
    for step, names in forks.run("count").items():
        assert len(names) <= LAUNCHES[step], (step, names)
        assert sum("kernel" in name for name in names) >= 1, (step, names)
