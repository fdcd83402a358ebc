"""The loss by dtype and backend, and where it runs: threads, modes, transforms."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import irm_fast
from irm_fast.losses.dispatch import choose_backend
from tests.losses.loss_cases import NAN, assert_same, evaluate, make

# --- dtypes, backends, module ------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["reward", "propensity", "both"])
def test_float64_goes_to_the_reference(which: str) -> None:
    s, t, f = make(30, 2)
    s, t = (s.double() if which != "propensity" else s), (t.double() if which != "reward" else t)
    loss, ds, dt = evaluate(s, t, f)
    assert (loss.dtype, ds.dtype, dt.dtype) == (torch.float64, s.dtype, t.dtype)
    assert torch.equal(loss, evaluate(s, t, f, backend="reference")[0])
    want = evaluate(s.double(), t.double(), f)
    torch.testing.assert_close(loss, want[0], rtol=1e-14, atol=0)
    for name in ("cpu", "triton"):
        with pytest.raises((TypeError, ValueError), match="float64"):
            irm_fast.implicit_rm_loss(s, t, f, backend=name)


WITHOUT_KERNEL = """
import sys, warnings, torch, irm_fast
sys.modules["irm_fast.kernels.cpu.library"] = None  # as where it was not built
s = torch.zeros(4, requires_grad=True)
arguments = s, torch.zeros(4, 2), torch.ones(4, 2, dtype=torch.int8)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    irm_fast.implicit_rm_loss(*arguments, backend="reference").backward()
    irm_fast.implicit_rm_loss(*(x.double() if x.is_floating_point() else x for x in arguments))
    quiet = len(said)
    for _ in range(3):
        irm_fast.implicit_rm_loss(*arguments).backward()
    irm_fast.SignalHeads(8, ["copy", "share"]).loss(torch.zeros(4, 8), arguments[2]).backward()
print(quiet, len(said), said[0].filename, said[0].message)
"""


def test_a_reference_that_nobody_asked_for_is_said_once_with_the_remedy() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_KERNEL], capture_output=True, text=True, check=True)
    quiet, said, where, message = run.stdout.split(maxsplit=3)
    assert (quiet, said, where) == ("0", "1", "<string>")
    assert message.startswith(
        "losses on cpu are computed by the float64 reference, which is slow: backend 'cpu' is not"
    )
    assert "install g++ or clang++ and then irm-fast again" in message and "backend='reference'" in message


def test_other_devices_have_the_reference_where_they_have_float64() -> None:
    with pytest.warns(UserWarning, match=r"slow: there is no kernel for xpu\. To mend it move the tensors to the CPU"):
        choose_backend.__wrapped__(None, "xpu", False)
    with pytest.raises(RuntimeError, match=r"no backend runs on mps.*move the tensors to the CPU"):
        choose_backend.__wrapped__(None, "mps", False)


def test_backends_tell_what_there_is() -> None:
    backends = irm_fast.backends()
    assert set(backends) == {"reference", "cpu", "triton"}
    assert backends["reference"] == "available"
    assert all(isinstance(reason, str) and reason for reason in backends.values())


def test_the_default_backend_is_one_of_them() -> None:
    s, t, f = make(100, 2)
    fast = "cpu" if irm_fast.backends()["cpu"] == "available" else "reference"
    assert_same(evaluate(s, t, f), evaluate(s, t, f, backend=fast), exact=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_module(reduction: Any, backend: str) -> None:
    s, t, f = make(30, 2)
    module = irm_fast.ImplicitRMLoss(polarity=[1, -1], misclick_rate=[0.1, 0.2], reduction=reduction, backend=backend)
    assert isinstance(module, torch.nn.Module) and not list(module.parameters())
    keywords: dict[str, Any] = {
        "preference": torch.full((30,), -1),
        "weight": torch.rand(30),
        "stratification": (s.flip(0), t.flip(0)),
        "normalizer": 7 if reduction == "mean" else None,
        "return_groups": True,
    }
    want = irm_fast.implicit_rm_loss(
        s,
        t,
        f,
        polarity=[1, -1],
        misclick_rate=[0.1, 0.2],
        reduction=reduction,
        backend=backend,
        **keywords,
    )
    assert_same(module(s, t, f, **keywords), want, exact=True)


def test_module_defaults() -> None:
    s, t, f = make(30, 2)
    assert torch.equal(irm_fast.ImplicitRMLoss()(s, t, f), irm_fast.implicit_rm_loss(s, t, f))


# --- where it runs ----------------------------------------------------------------------------------------------


def test_the_kernel_is_built_where_a_compiler_is() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    assert irm_fast.backends()["cpu"] == "available"


@pytest.mark.parametrize("environment", [{}, {"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}])
def test_fewer_threads_than_asked_for_compute_every_row(environment: dict[str, str]) -> None:
    program = """
import torch, irm_fast
torch.set_num_threads(2)
s, t = torch.linspace(-3, 3, 100_000), torch.linspace(2, -2, 100_000)
f = (torch.arange(100_000) % 3 == 0).int()
print([irm_fast.implicit_rm_loss(s, t, f, reduction="sum", backend=b).item() for b in ("cpu", "reference")])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    ours, truth = json.loads(run.stdout)
    assert ours == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_changes_nothing(dtype: torch.dtype, backend: str) -> None:
    s, t, f = make(300, 2)
    want = evaluate(s, t, f, backend=backend)
    torch.set_default_dtype(dtype)
    try:
        got = evaluate(s, t, f, backend=backend)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(got, want, exact=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_after_inference_with_the_same_settings(dtype: torch.dtype) -> None:
    """Tables of the signals are kept: one made in inference mode could not be saved for backward."""
    s, t = torch.randn(5, dtype=dtype, requires_grad=True), torch.randn(5, 2, dtype=dtype, requires_grad=True)
    settings = {"misclick_rate": (0.0625, 0.03125), "backend": "reference"}  # of no other test
    with torch.inference_mode():
        irm_fast.implicit_rm_loss(s, t, torch.ones(5, 2).bool(), **settings)
    irm_fast.implicit_rm_loss(s, t, torch.ones(5, 2).bool(), **settings).backward()
    assert bool(t.grad.any())


def test_inference_mode(backend: str) -> None:
    s, t, f = make(30, 2)
    want = irm_fast.implicit_rm_loss(s, t, f, backend=backend)
    with torch.inference_mode():
        assert torch.equal(irm_fast.implicit_rm_loss(s, t, f, backend=backend), want)
        assert irm_fast.stratify(s.double(), t.double(), f).dtype == torch.float64


@pytest.mark.parametrize(
    ("normalizer", "error"),
    [
        (torch.ones(4), ValueError),
        (torch.ones(4, 1), ValueError),
        (torch.tensor(2.0, device="meta"), ValueError),
        (-4, ValueError),
        (0, ValueError),
        (math.inf, ValueError),
        ("4", TypeError),
    ],
)
def test_normalizers_that_make_no_sense(normalizer: Any, error: type[Exception]) -> None:
    s, t, f = make(4, 1)
    with pytest.raises(error, match="normalizer"):
        irm_fast.implicit_rm_loss(s, t, f, normalizer=normalizer)


def test_a_float64_normalizer_leaves_the_loss_float32() -> None:
    s, t, f = make(4, 1)
    loss = irm_fast.implicit_rm_loss(s, t, f, normalizer=torch.tensor(8.0, dtype=torch.float64))
    assert loss.dtype == torch.float32


def test_a_weight_that_underflows_is_not_a_weight_of_zero(backend: str) -> None:
    s, t, f = make(4, 1)
    s[0] = NAN
    weight = torch.tensor([1e-44, 1, 1, 1])
    assert irm_fast.implicit_rm_loss(s, t, f, weight=weight, normalizer=1e6, backend=backend).isnan()


def test_a_teacher_in_float64_is_rounded(backend: str) -> None:
    s, t, f = make(50, 2)
    teacher = s.flip(0), t.flip(0)
    want = evaluate(s, t, f, stratification=teacher, backend=backend)
    got = evaluate(s, t, f, stratification=(teacher[0].double(), teacher[1].double()), backend=backend)
    assert_same(got, want, exact=True)


@pytest.mark.parametrize("bad", [[0.1, 0.2], None, np.zeros(3, np.float32)])
def test_what_is_no_tensor(bad: Any) -> None:
    s, t, f = make(3, 1)
    for arguments in ((bad, t, f), (s, bad, f), (s, t, bad)):
        with pytest.raises(TypeError, match=r"must be a torch\.Tensor"):
            irm_fast.implicit_rm_loss(*arguments)


def test_a_transform_leaves_later_calls_alone() -> None:
    """The cached constants of a setting that is first met under a transform are ordinary tensors."""
    s, t, f = make(20, 2)
    rates = [0.0123, 0.0456]
    with contextlib.suppress(RuntimeError):
        torch.func.grad(lambda x: irm_fast.implicit_rm_loss(x, t, f, misclick_rate=rates))(s)
    assert irm_fast.implicit_rm_loss(s, t, f, misclick_rate=rates).isfinite()
