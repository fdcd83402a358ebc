"""All losses take the same forms of arguments: constants as scalars, feedback of floating point; no fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad

import irm_fast
from irm_fast import baselines
from irm_fast.losses.conversions import for_every_row, integer_codes
from tests.losses.loss_cases import NAN, make

N, K, H = 40, 2, 8
Loss = Callable[..., Tensor]  # of rewards (N,), propensity logits and feedback


def linear(s: Tensor, t: Tensor, f: Tensor, **options: Any) -> Tensor:
    """The linear loss whose reward logits are s: the hidden states are those, and the head is 1."""
    return irm_fast.linear_implicit_rm_loss(s[:, None], torch.ones_like(s[:1]), f, propensity_logits=t, **options)


def stratified(s: Tensor, t: Tensor, f: Tensor, **options: Any) -> Tensor:
    """The stratified form, with the same propensities in both models."""
    return irm_fast.implicit_rm_loss(s, t, f, stratification=(s / 2, t), **options)


def linear_stratified(s: Tensor, t: Tensor, f: Tensor, **options: Any) -> Tensor:
    return linear(s, t, f, stratification=(s / 2, t), **options)


# Those with propensity logits, of all K signals or of one; and those of feedback alone.
SEVERAL = {"implicit": irm_fast.implicit_rm_loss, "linear": linear}
SEVERAL |= {"stratified": stratified, "linear, stratified": linear_stratified}
ONE: dict[str, Loss] = {**SEVERAL, "sar_em": baselines.sar_em_loss, "recrec": baselines.recrec_loss}
FEEDBACK: dict[str, Loss] = {
    **ONE,
    "naive": lambda s, t, f, **o: baselines.naive_loss(s, f, **o),
    "ips": lambda s, t, f, **o: baselines.ips_loss(s, 0.4, f, **o),
    "upu": lambda s, t, f, **o: baselines.upu_loss(s, f, class_prior=0.5, **o),
    "nnpu": lambda s, t, f, **o: baselines.nnpu_loss(s, f, class_prior=0.5, **o),
    "doubly robust": lambda s, t, f, **o: baselines.doubly_robust_loss(s, 0.4, f, imputed_preference=0.3, **o),
    "causalrm": lambda s, t, f, **o: baselines.causalrm_loss(s, 0.4, f, observed=f, flip_rates=(0.1, 0.1), **o),
}
CASES = [(name, shape) for name in SEVERAL for shape in ((), (K,))] + [
    (name, shape) for name in ONE for shape in ("one", (1,))
]


def case(shape: Any, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards (N,), constants of the shape ("one": () beside feedback of one dimension), and feedback."""
    s, _, f = make(N, K)
    constants = torch.tensor([-0.7, 0.4], dtype=dtype)
    if shape in ("one", (1,)):
        return s, constants[0].reshape(() if shape == "one" else (1,)), f[:, 0]
    return s, constants if shape else constants[0], f


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_constants_are_those_of_every_row(name: str, shape: Any, dtype: torch.dtype, backend: str) -> None:
    """The same bits as logits of rows; the gradient is their sum, taken in float32 and rounded once."""
    s, constants, f = case(shape, dtype)
    loss = ONE[name]
    rows = constants.float().expand(f.shape).clone()
    leaves, wide = (s.clone().requires_grad_(), constants.clone().requires_grad_()), rows.requires_grad_()
    got = loss(*leaves, f, backend=backend)
    want = loss(leaves[0], wide, f, backend=backend)
    assert torch.equal(got, want)
    grads = torch.autograd.grad(got, leaves)
    want_s, want_rows = torch.autograd.grad(want, (leaves[0], wide))
    summed = want_rows.sum() if constants.numel() == 1 else want_rows.sum(0)
    assert grads[1].dtype == dtype and grads[1].shape == constants.shape and grads[1].abs().min() > 1e-3
    torch.testing.assert_close(grads[0], want_s)
    torch.testing.assert_close(
        grads[1], summed.reshape(constants.shape).to(dtype), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(), (K,)])
def test_groups_of_constants(shape: tuple, backend: str) -> None:
    s, constants, f = case(shape, torch.bfloat16)
    rows = constants.expand(N, K).clone()
    assert torch.equal(irm_fast.stratify(s, constants, f), irm_fast.stratify(s, rows, f))
    for loss in (irm_fast.implicit_rm_loss, linear):
        groups = [loss(s, t, f, return_groups=True, backend=backend)[1] for t in (constants, rows)]
        assert groups[0].dtype == groups[1].dtype and torch.equal(*groups)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_gradients_of_constants_do_not_depend_on_threads(shape: tuple) -> None:
    threads, upstream = torch.get_num_threads(), torch.randn(70_001, 3)
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            constants = torch.zeros(shape, requires_grad=True)
            for_every_row(constants, upstream.shape).backward(upstream)
            found.append(constants.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, found[0]) for x in found)
    torch.testing.assert_close(found[0], (upstream.sum(0) if shape else upstream.sum()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback_of_floating_point(name: str, dtype: torch.dtype, backend: str) -> None:
    """With 1, 0, -1 and NaN, which means -1: as a frame of pandas gives it."""
    s, t, f = make(N, K)
    t, f = (t, f) if name in SEVERAL else (t[:, 0], f[:, 0])
    floating = f.to(dtype)
    floating[(f == -1) & (torch.arange(len(f)) % 2 == 0).reshape(-1, *[1] * (f.dim() - 1))] = NAN
    assert floating.isnan().any() and (floating == -1).any()
    want = FEEDBACK[name](s, t, f, backend=backend)
    assert want.abs() > 1e-2 and torch.equal(FEEDBACK[name](s, t, floating, backend=backend), want)


def test_labels_of_floating_point(backend: str) -> None:
    s, t, f = make(N, K)
    preference = torch.arange(N) % 3 - 1
    preference[(f == 1).any(1)] = 1
    floating = torch.where(preference == -1, NAN, preference.double())
    for loss in (irm_fast.implicit_rm_loss, linear):
        want, got = (loss(s, t, f, preference=x, backend=backend) for x in (preference, floating))
        assert torch.equal(got, want) and not torch.equal(want, loss(s, t, f, backend=backend))


@pytest.mark.parametrize("wrong", [0.5, 2.0, -2.0, -100.0, 257.0, 1e30, float("inf"), 1 + 2**-10])
@pytest.mark.parametrize("name", ["implicit", "linear", "recrec"])
def test_other_numbers_are_no_feedback(name: str, wrong: float) -> None:
    s, t, f = make(N, 1)
    f = f[:, 0].float()
    f[3] = wrong
    for backend in ("cpu", "reference"):
        if irm_fast.backends()[backend] == "available":
            with pytest.raises(ValueError, match="feedback"):
                ONE[name](s, t[:, 0], f, backend=backend)
    with pytest.raises(ValueError, match=r"feedback .* row 3"):
        irm_fast.implicit_rm_loss(s, t[:, 0], f, check_values=True)
    assert ONE[name](s, t[:, 0], f, backend="triton").isnan()
    assert baselines.naive_loss(s, f).isnan()


def test_codes_that_are_integers_are_not_copied() -> None:
    for dtype in (torch.bool, torch.int8, torch.int64):
        f = torch.ones(3, dtype=dtype)
        assert integer_codes(f) is f


def test_the_definition_takes_nan_for_missing() -> None:
    s, t, f = (x.double() if x.is_floating_point() else x for x in make(N, K))
    floating = torch.where(f == -1, NAN, f.double())
    for options in ({}, {"stratification": (s / 2, t)}):
        want = irm_fast.reference.implicit_rm_loss(s, t, f, **options)
        assert torch.equal(irm_fast.reference.implicit_rm_loss(s, t, floating, **options), want)


@pytest.mark.parametrize("shape", [(), (K,)])
def test_the_definition_takes_constants(shape: tuple) -> None:
    s, constants, f = case(shape, torch.float64)
    rows = constants.expand(N, K)
    for function in (irm_fast.reference.implicit_rm_loss, irm_fast.reference.stratify):
        torch.testing.assert_close(function(s, constants, f), function(s, rows, f), rtol=1e-14, atol=0)
    stratified = [irm_fast.reference.implicit_rm_loss(s, t, f, stratification=(s / 2, t)) for t in (constants, rows)]
    torch.testing.assert_close(*stratified, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["implicit", "linear"])
@pytest.mark.parametrize("shape", [(), (K,)])
def test_other_batch_sizes_are_not_compiled_anew(name: str, shape: Any) -> None:
    s, constants, f = case(shape)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(SEVERAL[name], fullgraph=True, backend=graphs)
    for n in (N, 31, 12):
        some, codes = s[:n].clone(), f[:n].clone()
        torch.testing.assert_close(compiled(some, constants, codes.float()), SEVERAL[name](some, constants, codes))
    assert graphs.frame_count <= 2  # one for the first size, one for all sizes


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("shape", [(), (K,)])
def test_constants_and_floats_under_compile_and_func(name: str, shape: Any, backend: str) -> None:
    s, constants, f = case(shape)
    f = torch.where(f == -1, NAN, f.float())
    loss = SEVERAL[name]

    def run(s: Tensor, t: Tensor) -> Tensor:
        return loss(s, t, f, backend=backend)

    leaves = s.clone().requires_grad_(), constants.clone().requires_grad_()
    want = torch.autograd.grad(run(*leaves), leaves)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(compiled, run(*leaves))
    for got in (torch.autograd.grad(compiled, leaves), grad(run, argnums=(0, 1))(s, constants)):
        for one, other in zip(got, want, strict=True):
            assert other.abs().max() > 1e-3
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", [*FEEDBACK, "groups", "pointwise"])
@pytest.mark.parametrize("how", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"])
def test_tensors_without_values_are_refused_by_name(name: str, how: Callable[[], AbstractContextManager]) -> None:
    losses = {**FEEDBACK, "groups": irm_fast.stratify, "pointwise": lambda s, t, f: baselines.pointwise_loss(s, t, t)}
    with how():
        s, t, f = torch.zeros(N), torch.zeros(N), torch.zeros(N, dtype=torch.int8)
        with pytest.raises(TypeError, match=r"which ha(s|ve) no(ne| values)"):
            losses[name](s, t, f)


@pytest.mark.parametrize("name", ["weight", "normalizer", "polarity", "preference", "stratification"])
def test_one_fake_tensor_is_refused(name: str) -> None:
    s, t, f = make(N, 1)
    with FakeTensorMode():
        one, rows = torch.tensor(1.0), torch.ones(N)
    fake: dict[str, Any] = {"weight": rows, "normalizer": one, "polarity": one, "preference": rows}
    fake["stratification"] = (rows, rows)
    with pytest.raises(TypeError, match=rf"{name}\S* must be a tensor of values, got a FakeTensor"):
        irm_fast.implicit_rm_loss(s, t[:, 0], f[:, 0], **{name: fake[name]})


def test_export_traces_the_loss() -> None:
    """Tracing works on fake tensors, in Python that runs as it stands."""

    class Model(torch.nn.Module):
        def forward(self, s: Tensor, t: Tensor, f: Tensor) -> Tensor:
            return irm_fast.implicit_rm_loss(s, t, f)

    s, constants, f = case((K,))
    program = torch.export.export(Model(), (s, constants, f.float()), strict=False)
    torch.testing.assert_close(program.module()(s, constants, f.float()), Model()(s, constants, f))
