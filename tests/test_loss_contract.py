"""What the loss, stratify and ImplicitRMLoss promise beside accuracy: shapes, dtypes, errors, symmetries."""

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
from torch import Tensor

import irm_fast

NAN, INF = float("nan"), float("inf")
BLOCK_EDGES = (1, 2, 7, 8, 9, 31, 255, 256, 257, 1023, 1024, 1025, 4097)


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and irm_fast.backends()["cpu"] != "available":
        pytest.skip(irm_fast.backends()["cpu"])
    return str(request.param)


def make(n: int, k: int, seed: int = 0, *, missing: float = 0.15) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N,), (N, K) and int8 feedback (N, K) of which nothing contradicts while polarities are +1."""
    rng = np.random.default_rng(seed)
    s, t = rng.normal(0, 2, n), rng.normal(0, 2, (n, k))
    f = np.where(rng.random((n, k)) < missing, -1, rng.random((n, k)) < 0.4)
    return torch.tensor(s).float(), torch.tensor(t).float(), torch.tensor(f, dtype=torch.int8)


def evaluate(s: Tensor, t: Tensor, feedback: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Row losses and the gradients of their sum, on detached views that keep the storage of the inputs."""
    s, t = s.detach().requires_grad_(), t.detach().requires_grad_()
    loss = irm_fast.implicit_rm_loss(s, t, feedback, **{"reduction": "none", **kwargs})
    ds, dt = torch.autograd.grad(loss.sum(), [s, t])
    return loss.detach(), ds, dt


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...], *, exact: bool = False) -> None:
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-6, "atol": 1e-7}
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, **tolerance)


def options(k: int) -> dict[str, Any]:
    """Every option at once; no contradiction can arise where all misclick rates are positive."""
    return {"polarity": [1, -1, 1, -1][:k], "misclick_rate": [0.05, 0.2, 0.5, 0.01][:k]}


# --- reductions, weights, normaliser -----------------------------------------------------------------------


def test_reductions(backend: str) -> None:
    s, t, f = make(300, 2)
    weight = torch.rand(300, generator=torch.Generator().manual_seed(0)) * 2
    rows = irm_fast.implicit_rm_loss(s, t, f, reduction="none", backend=backend)
    weighted = irm_fast.implicit_rm_loss(s, t, f, weight=weight, reduction="none", backend=backend)
    assert rows.shape == (300,)
    torch.testing.assert_close(weighted, rows * weight)

    def loss(**kwargs: Any) -> float:
        return irm_fast.implicit_rm_loss(s, t, f, weight=weight, backend=backend, **kwargs).item()

    total = weighted.double().sum().item()
    assert loss(reduction="sum") == pytest.approx(total, rel=1e-6)
    assert loss() == loss(reduction="mean") == pytest.approx(total / 300, rel=1e-6)
    for normalizer in (64, 64.0, torch.tensor(64.0), torch.tensor(64)):
        assert loss(normalizer=normalizer) == pytest.approx(total / 64, rel=1e-6)


@pytest.mark.parametrize("normalizer", [None, 64, 64.5, torch.tensor(64)])
def test_mean_scales_the_gradients(normalizer: Any, backend: str) -> None:
    s, t, f = make(300, 2)
    _, ds, dt = evaluate(s, t, f, reduction="sum", backend=backend)
    _, ds_mean, dt_mean = evaluate(s, t, f, reduction="mean", normalizer=normalizer, backend=backend)
    divisor = 300 if normalizer is None else float(normalizer)
    assert_same((ds_mean * divisor, dt_mean * divisor), (ds, dt))


def test_weight_zero_removes_and_weight_two_duplicates(backend: str) -> None:
    s, t, f = make(200, 3)
    weight = torch.tensor([0.0, 1.0, 2.0, 1.0]).repeat(50)
    index = torch.arange(200).repeat_interleave(weight.long())
    loss, ds, dt = evaluate(s, t, f, weight=weight, reduction="sum", backend=backend)
    base_s, base_t = s.clone().requires_grad_(), t.clone().requires_grad_()
    copies = irm_fast.implicit_rm_loss(base_s[index], base_t[index], f[index], reduction="sum", backend=backend)
    want_s, want_t = torch.autograd.grad(copies, [base_s, base_t])
    assert loss.item() == pytest.approx(copies.item(), rel=1e-6)
    assert_same((ds, dt), (want_s, want_t))
    assert (ds[weight == 0] == 0).all() and (dt[weight == 0] == 0).all()


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_weight_zero_silences_whatever_the_row_holds(reduction: str, backend: str) -> None:
    s, t, f = make(8, 2, missing=0)
    f[:] = 0
    s[0], s[1], t[2, 0], t[3, 1] = NAN, INF, NAN, -INF
    f[4] = 1  # contradictory, as the polarities differ
    weight = torch.tensor([0.0] * 5 + [1.0] * 3)
    kwargs: dict[str, Any] = {"polarity": [1, -1], "backend": backend}
    loss, ds, dt = evaluate(s, t, f, weight=weight, reduction=reduction, **kwargs)
    rest, rest_ds, rest_dt = evaluate(s[5:], t[5:], f[5:], reduction="none", **kwargs)
    scale = 8 if reduction == "mean" else 1
    if reduction == "none":
        assert (loss[:5] == 0).all()
    assert loss.sum().item() == pytest.approx(rest.sum().item() / scale, rel=1e-6)
    assert (ds[:5] == 0).all() and (dt[:5] == 0).all()
    assert_same((ds[5:] * scale, dt[5:] * scale), (rest_ds, rest_dt))


def test_no_rows(backend: str) -> None:
    for shape in ((0,), (0, 3)):
        s, t = torch.zeros(0, requires_grad=True), torch.zeros(shape, requires_grad=True)
        f = torch.zeros(shape, dtype=torch.int8)

        def loss(**kwargs: Any) -> Any:
            return irm_fast.implicit_rm_loss(s, t, f, backend=backend, **kwargs)  # noqa: B023

        total, groups = loss(reduction="sum", return_groups=True)
        assert total.item() == 0 and total.shape == () and groups.shape == (*shape, 4)
        ds, dt = torch.autograd.grad(total, [s, t])
        assert ds.shape == (0,) and dt.shape == shape
        assert loss(reduction="none").shape == (0,)
        assert loss(reduction="mean", normalizer=4).item() == 0
        assert irm_fast.stratify(s, t, f).shape == (*shape, 4)
        with pytest.raises(ValueError, match=r"(?i)normali|empty|N=0|no rows"):
            loss(reduction="mean")


# --- shapes, sizes, memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", BLOCK_EDGES)
def test_rows_do_not_depend_on_their_neighbours(n: int, backend: str) -> None:
    s, t, f = make(n, 2, seed=n)
    whole = evaluate(s, t, f, backend=backend)
    assert_same(whole, evaluate(s, t, f, backend="reference"))
    edges = {0, 1, 6, 7, 8, 15, 16, 255, 256, 257, 511, 512, 1023, 1024, 1025, 2048, 4095, 4096, n - 2, n - 1}
    some = sorted(i for i in edges if 0 <= i < n) if n > 10 else range(n)
    rows = [evaluate(s[i : i + 1], t[i : i + 1], f[i : i + 1], backend=backend) for i in some]
    for got, want in zip(whole, zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(got[torch.tensor(list(some))], torch.cat(want), rtol=5e-7, atol=1e-9)
    total = irm_fast.implicit_rm_loss(s, t, f, reduction="sum", backend=backend).item()
    assert total == pytest.approx(whole[0].double().sum().item(), rel=1e-6)


@pytest.mark.parametrize("k", range(1, 17))
def test_every_number_of_signals(k: int, backend: str) -> None:
    s, t, f = make(37, k)
    assert_same(evaluate(s, t, f, backend=backend), evaluate(s, t, f, backend="reference"))


def test_one_dimension_is_one_signal(backend: str) -> None:
    s, t, f = make(40, 1)
    kwargs: dict[str, Any] = {"polarity": [-1], "misclick_rate": 0.1, "backend": backend}
    loss, ds, dt = evaluate(s, t, f, **kwargs)
    assert_same(evaluate(s, t[:, 0], f[:, 0], **kwargs), (loss, ds, dt[:, 0]), exact=True)
    _, flat = irm_fast.implicit_rm_loss(s, t[:, 0], f[:, 0], return_groups=True, **kwargs)
    _, deep = irm_fast.implicit_rm_loss(s, t, f, return_groups=True, **kwargs)
    assert flat.shape == (40, 4) and deep.shape == (40, 1, 4)
    assert torch.equal(flat, deep[:, 0])


def strided(x: Tensor) -> Tensor:
    base = x.new_zeros(*(2 * n for n in x.shape))
    view = base[tuple(slice(None, None, 2) for _ in x.shape)]
    return view.copy_(x)


def transposed(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def misaligned(x: Tensor) -> Tensor:
    return x.new_zeros(x.numel() + 1)[1:].view_as(x).copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [strided, transposed, misaligned], ids=lambda f: f.__name__)
def test_any_memory_layout(layout: Any, dtype: torch.dtype, backend: str) -> None:
    s, t, f = make(67, 3)
    s, t = s.to(dtype), t.to(dtype)
    weight, preference = torch.arange(67) / 30, torch.full((67,), -1, dtype=torch.int8)
    want = evaluate(s, t, f, weight=weight, preference=preference, backend=backend)
    got = evaluate(
        layout(s),
        layout(t),
        layout(f),
        weight=layout(weight),
        preference=layout(preference),
        stratification=None,
        backend=backend,
    )
    assert_same(got, want, exact=True)
    teacher = (s.flip(0), t.flip(0))
    want = evaluate(s, t, f, stratification=teacher, backend=backend)
    got = evaluate(s, t, f, stratification=(layout(teacher[0]), layout(teacher[1])), backend=backend)
    assert_same(got, want, exact=True)


def test_expanded_inputs(backend: str) -> None:
    s, t, f = torch.tensor([0.3]), torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[0, 1, 0]])
    wide = s.expand(50), t.expand(50, 3), f.expand(50, 3)
    want = tuple(x.repeat_interleave(50, 0) for x in evaluate(s, t, f, backend=backend))
    weight = torch.tensor(1.0).expand(50)
    assert_same(evaluate(*wide, weight=weight, backend=backend), want, exact=backend != "cpu")
    constant = t[0].clone().requires_grad_()  # one propensity for all rows
    loss = irm_fast.implicit_rm_loss(wide[0], constant.expand(50, 3), wide[2], reduction="sum", backend=backend)
    (grad,) = torch.autograd.grad(loss, constant)
    torch.testing.assert_close(grad, want[2].sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_feedback_dtypes(dtype: torch.dtype, backend: str) -> None:
    signed = dtype not in (torch.bool, torch.uint8)
    s, t, f = make(50, 2, missing=0.3 if signed else 0)
    # An explicit label agrees with an action, so that nothing contradicts.
    preference = (f == 1).any(1).to(torch.int8)
    if signed:
        preference[::3] = -1
    want = evaluate(s, t, f, preference=preference, backend=backend)
    got = evaluate(s, t, f.to(dtype), preference=preference.to(dtype), backend=backend)
    assert_same(got, want, exact=True)


def test_feedback_of_one_boolean_signal_in_one_dimension(backend: str) -> None:
    s, t, f = make(50, 1, missing=0)
    assert_same(
        evaluate(s, t[:, 0], f[:, 0].bool(), backend=backend),
        evaluate(s, t[:, 0], f[:, 0], backend=backend),
        exact=True,
    )


@pytest.mark.parametrize("container", [tuple, list, torch.tensor, np.array])
def test_polarity_and_misclick_containers(container: Any, backend: str) -> None:
    s, t, f = make(30, 2)
    want = evaluate(s, t, f, polarity=[1, -1], misclick_rate=[0.5, 0.25], backend=backend)
    got = evaluate(s, t, f, polarity=container([1, -1]), misclick_rate=container([0.5, 0.25]), backend=backend)
    assert_same(got, want, exact=True)


def test_one_misclick_rate_serves_every_signal(backend: str) -> None:
    s, t, f = make(30, 3)
    assert_same(
        evaluate(s, t, f, misclick_rate=0.25, backend=backend),
        evaluate(s, t, f, misclick_rate=[0.25] * 3, backend=backend),
        exact=True,
    )
    assert_same(evaluate(s, t, f, misclick_rate=0, backend=backend), evaluate(s, t, f, backend=backend), exact=True)


# --- autograd ----------------------------------------------------------------------------------------------


def test_upstream_gradients_need_not_be_uniform(backend: str) -> None:
    s, t, f = make(300, 3)
    _, ds, dt = evaluate(s, t, f, backend=backend)
    s.requires_grad_()
    t.requires_grad_()
    loss = irm_fast.implicit_rm_loss(s, t, f, reduction="none", backend=backend)
    upstream = torch.linspace(-3, 5, 300)
    got = torch.autograd.grad(loss, [s, t], upstream)
    assert_same(got, (ds * upstream, dt * upstream[:, None]))
    total = irm_fast.implicit_rm_loss(s, t, f, reduction="sum", backend=backend)
    assert_same(torch.autograd.grad(total * -2.5, [s, t]), (ds * -2.5, dt * -2.5))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_second_backward_gives_the_same(reduction: Any, backend: str) -> None:
    s, t, f = make(50, 2)
    s.requires_grad_()
    t.requires_grad_()
    loss = irm_fast.implicit_rm_loss(s, t, f, reduction=reduction, backend=backend).sum() * 3
    first = [x.clone() for x in torch.autograd.grad(loss, [s, t], retain_graph=True)]
    second = torch.autograd.grad(loss, [s, t])
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_double_backward_is_an_error(reduction: Any, backend: str) -> None:
    """Also where other terms would let the sum go through: a penalty must not vanish in silence."""
    for penalty_only in (True, False):
        s, t, f = make(20, 2)
        s.requires_grad_()
        loss = irm_fast.implicit_rm_loss(s, t.requires_grad_(), f, reduction=reduction, backend=backend).sum()
        with pytest.raises(RuntimeError):
            ds, dt = torch.autograd.grad(loss, [s, t], create_graph=True)
            penalty = ds.square().sum() + dt.square().sum()
            (penalty if penalty_only else penalty + s.sum() + loss).backward()


def test_only_what_needs_a_gradient_gets_one(backend: str) -> None:
    s, t, f = make(30, 2)
    _, ds, dt = evaluate(s, t, f, backend=backend)
    assert not irm_fast.implicit_rm_loss(s, t, f, backend=backend).requires_grad
    for leaf, want in ((s, ds), (t, dt)):
        leaf.requires_grad_()
        loss = irm_fast.implicit_rm_loss(s, t, f, reduction="sum", backend=backend)
        (got,) = torch.autograd.grad(loss, [leaf])
        assert torch.equal(got, want)
        with torch.no_grad():
            assert not irm_fast.implicit_rm_loss(s, t, f, backend=backend).requires_grad
        leaf.requires_grad_(False)


def test_no_gradient_reaches_stratification_or_groups(backend: str) -> None:
    s, t, f = make(30, 2)
    teacher = s.clone().requires_grad_(), t.clone().requires_grad_()
    loss, groups = irm_fast.implicit_rm_loss(
        s.requires_grad_(), t, f, stratification=teacher, return_groups=True, backend=backend
    )
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None, None)
    assert not groups.requires_grad
    assert not irm_fast.stratify(*teacher, f).requires_grad


def test_inputs_are_never_written(backend: str) -> None:
    s, t, f = make(300, 3)
    preference, weight = torch.full((300,), -1), torch.rand(300)
    teacher = (s.flip(0), t.flip(0))
    inputs = [s, t, f, preference, weight, *teacher]
    before, versions = [x.clone() for x in inputs], [x._version for x in inputs]
    kwargs: dict[str, Any] = {"preference": preference, "weight": weight, "backend": backend}
    evaluate(s, t, f, **kwargs)
    evaluate(s, t, f, stratification=teacher, return_groups=False, **kwargs)
    irm_fast.implicit_rm_loss(s, t, f, return_groups=True, check_values=True, **kwargs)
    irm_fast.stratify(s, t, f, preference=preference)
    assert all(map(torch.equal, inputs, before))
    assert versions == [x._version for x in inputs]


def test_outputs_are_written_whole(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is filled with NaN: an element that is never written shows."""

    def compute() -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for n, k in ((1, 1), (300, 3), (1025, 2)):
            s, t, f = make(n, k)
            for teacher in (None, (s.flip(0), t.flip(0))):
                for dtype in (torch.float32, torch.bfloat16):
                    results += evaluate(
                        s.to(dtype), t.to(dtype), f, stratification=teacher, backend=backend, **options(k)
                    )
                results += evaluate(s, t, f, reduction="sum", stratification=teacher, backend=backend)
                results += irm_fast.implicit_rm_loss(
                    s, t, f, return_groups=True, stratification=teacher, backend=backend, **options(k)
                )
            results.append(irm_fast.stratify(s, t, f, **options(k)))
        return tuple(results)

    def poison(allocate: Any) -> Any:
        def poisoned(*args: Any, **kwargs: Any) -> Tensor:
            out: Tensor = allocate(*args, **kwargs)
            fill = NAN if out.is_floating_point() else 99
            return out.detach().fill_(fill).requires_grad_(out.requires_grad)

        return poisoned

    want = compute()
    for where, names in (
        (torch, ("empty", "empty_like", "empty_strided")),
        (torch.Tensor, ("new_empty", "new_empty_strided")),
    ):
        for name in names:
            monkeypatch.setattr(where, name, poison(getattr(where, name)))
    got = compute()
    monkeypatch.undo()
    assert_same(got, want, exact=True)
    assert all(torch.isfinite(x).all() for x in got)


def test_the_same_input_gives_the_same_bits(backend: str) -> None:
    n = 20_000 if backend == "cpu" else 1500
    s, t, f = make(n, 2)
    first = evaluate(s, t, f, reduction="sum", backend=backend)
    for _ in range(99):
        assert_same(evaluate(s, t, f, reduction="sum", backend=backend), first, exact=True)


def test_threads_do_not_change_the_bits() -> None:
    if irm_fast.backends()["cpu"] != "available":
        pytest.skip(irm_fast.backends()["cpu"])
    s, t, f = make(300_001, 2)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            results.append(evaluate(s, t, f, reduction="sum", backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same(other, results[0], exact=True)


# --- groups ------------------------------------------------------------------------------------------------


def test_groups_by_hand(backend: str) -> None:
    """One silent signal, g = 0.8 and m = 0.25: PP must outweigh NA by far; interchanged they fail here."""
    s, t = torch.logit(torch.tensor([0.8, 0.8, 0.8, 0.8])), torch.logit(torch.full((4,), 0.25))
    f = torch.tensor([0, 1, -1, 0])
    _, groups = irm_fast.implicit_rm_loss(s, t, f, return_groups=True, backend=backend)
    silent = [0.0, 0.2 * 0.25 / 0.8, 0.8 * 0.75 / 0.8, 0.2 * 0.75 / 0.8]
    want = torch.tensor([silent, [1, 0, 0, 0], [0.2, 0.05, 0.6, 0.15], silent])
    torch.testing.assert_close(groups, want, rtol=1e-5, atol=1e-7)
    # A silent thumbs-down may hide displeasure; one that was given proves it: NA, not PA.
    _, groups = irm_fast.implicit_rm_loss(s, t, f, polarity=[-1], return_groups=True, backend=backend)
    silent = [0.8 * 0.25 / 0.95, 0.0, 0.8 * 0.75 / 0.95, 0.2 * 0.75 / 0.95]
    want = torch.tensor([silent, [0, 1, 0, 0], [0.2, 0.05, 0.6, 0.15], silent])
    torch.testing.assert_close(groups, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_groups_are_a_distribution_and_stratify_gives_them(k: int, dtype: torch.dtype, backend: str) -> None:
    s, t, f = make(200, k)
    s, t = s.to(dtype), t.to(dtype)
    preference = torch.randint(-1, 2, (200,), generator=torch.Generator().manual_seed(0))
    kwargs: dict[str, Any] = {"preference": preference, **options(k)}
    loss, groups = irm_fast.implicit_rm_loss(s, t, f, reduction="none", return_groups=True, backend=backend, **kwargs)
    assert groups.shape == (200, k, 4) and groups.dtype == dtype
    assert (groups >= 0).all() and (groups <= 1).all()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(groups.float().sum(-1), torch.ones(200, k), rtol=0, atol=2.5 * eps)
    q = (groups[..., 0] + groups[..., 2]).float()  # every signal tells the same P(r* = 1)
    torch.testing.assert_close(q, q[:, :1].expand(-1, k), rtol=0, atol=2.5 * eps)
    torch.testing.assert_close(groups, irm_fast.stratify(s, t, f, **kwargs), rtol=2 * eps, atol=1e-7)
    assert torch.equal(loss, irm_fast.implicit_rm_loss(s, t, f, reduction="none", backend=backend, **kwargs))
    assert (groups[..., [0, 2]][preference == 0] == 0).all()
    assert (groups[..., [1, 3]][preference == 1] == 0).all()


def test_gradients_are_what_the_groups_say(backend: str) -> None:
    """Fisher's identity: dL/ds = g - (PA + PP), dL/dt = m - (PA + NA) on recorded entries."""
    s, t, f = make(300, 3)
    _, ds, dt = evaluate(s, t, f, backend=backend, **options(3))
    _, groups = irm_fast.implicit_rm_loss(s, t, f, return_groups=True, backend=backend, **options(3))
    pa, na, pp, _ = groups.unbind(-1)
    torch.testing.assert_close(ds, s.sigmoid() - (pa + pp)[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dt, (t.sigmoid() - pa - na) * (f >= 0), rtol=1e-4, atol=1e-6)
    assert (dt[f == -1] == 0).all()


def test_marginal_and_current_stratification_have_one_gradient(backend: str) -> None:
    s, t, f = make(300, 3)
    _, ds, dt = evaluate(s, t, f, backend=backend, **options(3))
    loss, ds_current, dt_current = evaluate(s, t, f, stratification=(s, t), backend=backend, **options(3))
    assert_same((ds_current, dt_current), (ds, dt))
    assert ds.abs().mean() > 0.05 and dt.abs().mean() > 0.05
    groups = irm_fast.stratify(s, t, f, **options(3)).double()
    q, p = groups[:, 0, 0] + groups[:, 0, 2], groups[..., 0] + groups[..., 1]
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    want = entropy(s.double(), q, reduction="none")
    want += (entropy(t.double(), p, reduction="none") * (f >= 0)).sum(1)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)


# --- symmetries --------------------------------------------------------------------------------------------


def test_the_order_of_signals_does_not_matter(backend: str) -> None:
    s, t, f = make(200, 4)
    order = [2, 0, 3, 1]
    shuffled = {name: [values[i] for i in order] for name, values in options(4).items()}
    loss, ds, dt = evaluate(s, t, f, backend=backend, **options(4))
    got = evaluate(s, t[:, order], f[:, order], backend=backend, **shuffled)
    assert_same(got, (loss, ds, dt[:, order]))


@pytest.mark.parametrize("where", [0, 1, 3])
def test_a_missing_signal_is_no_signal(where: int, backend: str) -> None:
    s, t, f = make(200, 3)
    loss, ds, dt = evaluate(s, t, f, backend=backend, **options(3))

    def insert(x: Tensor, value: float) -> Tensor:
        return torch.cat([x[:, :where], torch.full_like(x[:, :1], value), x[:, where:]], 1)

    more = options(3)
    more["polarity"].insert(where, -1)
    more["misclick_rate"].insert(where, 0.3)
    got = evaluate(s, insert(t, 1.7), insert(f, -1), backend=backend, **more)
    assert_same(got, (loss, ds, insert(dt, 0.0)))
    assert (got[2][:, where] == 0).all()


def test_pleasure_and_displeasure_are_mirror_images(backend: str) -> None:
    s, t, f = make(200, 4)
    preference = torch.randint(-1, 2, (200,), generator=torch.Generator().manual_seed(0))
    mirrored = torch.where(preference < 0, preference, 1 - preference)
    flipped = {**options(4), "polarity": [-p for p in options(4)["polarity"]]}
    loss, ds, dt = evaluate(s, t, f, preference=preference, backend=backend, **options(4))
    assert_same(evaluate(-s, t, f, preference=mirrored, backend=backend, **flipped), (loss, -ds, dt))


def test_one_signal_cannot_tell_reward_from_propensity(backend: str) -> None:
    s, t, f = make(200, 1, missing=0)
    t, f = t[:, 0], f[:, 0]
    loss, ds, dt = evaluate(s, t, f, backend=backend)
    assert_same(evaluate(t, s, f, backend=backend), (loss, dt, ds))


def test_without_feedback_only_labels_speak(backend: str) -> None:
    s, t, f = make(60, 2)
    f[:] = -1
    loss, ds, dt = evaluate(s, t, f, backend=backend)
    assert (loss.abs() <= 1e-7).all() and (ds.abs() <= 1e-7).all() and (dt == 0).all()
    label = torch.arange(60) % 2
    loss, ds, dt = evaluate(s, t, f, preference=label, backend=backend)
    want = torch.nn.functional.binary_cross_entropy_with_logits(s.double(), label.double(), reduction="none")
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(ds.double(), s.double().sigmoid() - label, rtol=1e-5, atol=1e-7)
    assert (dt == 0).all()


# --- values that are not ordinary --------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True])
def test_contradictory_evidence_has_infinite_loss(separate: bool, backend: str) -> None:
    cases = [  # feedback of a +1, a -1 and another +1 signal; preference
        ([1, 1, 0], -1),
        ([1, 1, 1], -1),
        ([1, 1, -1], 1),
        ([1, 0, 0], 0),
        ([0, 1, 0], 1),
        ([-1, 1, 1], -1),
        ([1, 0, 1], -1),  # fine
    ]
    f, preference = torch.tensor([c[0] for c in cases]), torch.tensor([c[1] for c in cases])
    s, t, _ = make(len(cases), 3)
    kwargs: dict[str, Any] = {"preference": preference, "polarity": [1, -1, 1], "backend": backend}
    if separate:
        kwargs["stratification"] = (s + 1, t - 1)
    loss, ds, dt = evaluate(s, t, f, **kwargs)
    _, groups = irm_fast.implicit_rm_loss(s, t, f, return_groups=True, **kwargs)
    assert (loss[:-1] == INF).all() and torch.isfinite(loss[-1])
    for value in (ds, dt[f >= 0].split((f >= 0).sum(1).tolist()), groups):
        assert all(torch.isnan(x).all() for x in value[:-1]) and torch.isfinite(value[-1]).all()
    assert evaluate(s, t, f, **{**kwargs, "reduction": "sum"})[0] == INF
    # A misclick explains it away.
    loss, ds, dt = evaluate(s, t, f, **{**kwargs, "misclick_rate": 0.1, "preference": None})
    assert all(torch.isfinite(x).all() for x in (loss, ds, dt))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_nan_and_infinite_logits_become_nan(bad: float, backend: str) -> None:
    for feedback in (0, 1):
        s, t, f = make(40, 2)
        f[:, 0], f[:, 1] = feedback, 0
        want = evaluate(s, t, f, backend=backend)
        s[3], t[5, 0], t[20, 1] = bad, bad, bad
        got = evaluate(s, t, f, backend=backend)
        _, groups = irm_fast.implicit_rm_loss(s, t, f, return_groups=True, backend=backend)
        ill = torch.zeros(40, dtype=torch.bool)
        ill[[3, 5, 20]] = True
        for value, clean in zip(got, want, strict=True):
            assert torch.isnan(value[ill]).all()
            assert torch.equal(value[~ill], clean[~ill])
        assert torch.isnan(groups[ill]).all() and torch.isfinite(groups[~ill]).all()
        assert torch.isnan(evaluate(s, t, f, reduction="sum", backend=backend)[0])
        assert torch.isnan(irm_fast.stratify(s, t, f)[ill]).all()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_nan_and_infinite_stratification_logits_become_nan(bad: float, backend: str) -> None:
    s, t, f = make(40, 2, missing=0)
    teacher = s.flip(0), t.flip(0)
    teacher[0][3], teacher[1][5, 0], teacher[1][20, 1] = bad, bad, bad
    ill = torch.zeros(40, dtype=torch.bool)
    ill[[3, 5, 20]] = True
    loss, ds, dt = evaluate(s, t, f, stratification=teacher, backend=backend)
    for value in (loss, ds, dt):
        assert torch.isnan(value[ill]).all() and torch.isfinite(value[~ill]).all()
    # An ill student with a sound teacher is no better.
    loss, ds, dt = evaluate(*teacher, f, stratification=(s, t), backend=backend)
    for value in (loss, ds, dt):
        assert torch.isnan(value[ill]).all() and torch.isfinite(value[~ill]).all()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_propensity_logit_of_a_missing_entry_is_ignored(bad: float, backend: str) -> None:
    s, t, f = make(40, 3, missing=0.4)
    holes = f == -1
    ill = t.masked_fill(holes, bad)
    for teacher, ill_teacher in ((None, None), ((s, t), (s, ill))):
        want = evaluate(s, t, f, stratification=teacher, backend=backend)
        got = evaluate(s, ill, f, stratification=ill_teacher, backend=backend)
        assert_same(got, want, exact=True)
    _, clean = irm_fast.implicit_rm_loss(s, t, f, return_groups=True, backend=backend)
    _, groups = irm_fast.implicit_rm_loss(s, ill, f, return_groups=True, backend=backend)
    assert torch.isnan(groups[holes]).all()
    assert torch.equal(groups[~holes], clean[~holes])


IMPOSSIBLE = {
    "feedback 2": {"feedback": torch.tensor(2, dtype=torch.int8)},
    "feedback -2": {"feedback": torch.tensor(-2, dtype=torch.int8)},
    "feedback 127": {"feedback": torch.tensor(127, dtype=torch.int8)},
    "feedback -128": {"feedback": torch.tensor(-128, dtype=torch.int8)},
    "feedback uint8 255, no -1": {"feedback": torch.tensor(255, dtype=torch.uint8)},
    "feedback 255, wraps to -1": {"feedback": torch.tensor(255, dtype=torch.int16)},
    "feedback 256, wraps to 0": {"feedback": torch.tensor(256, dtype=torch.int64)},
    "feedback 257, wraps to 1": {"feedback": torch.tensor(257, dtype=torch.int32)},
    "feedback 65536": {"feedback": torch.tensor(65536, dtype=torch.int32)},
    "feedback 2**32": {"feedback": torch.tensor(2**32)},
    "feedback 2**32 + 1": {"feedback": torch.tensor(2**32 + 1)},
    "feedback 2**32 - 1": {"feedback": torch.tensor(2**32 - 1)},
    "feedback -2**63": {"feedback": torch.tensor(-(2**63))},
    "preference 2": {"preference": torch.tensor(2)},
    "preference -2": {"preference": torch.tensor(-2, dtype=torch.int8)},
    "preference 256": {"preference": torch.tensor(256)},
    "preference 2**32 + 1": {"preference": torch.tensor(2**32 + 1)},
    "weight -1": {"weight": torch.tensor(-1.0)},
    "weight -0.5 bfloat16": {"weight": torch.tensor(-0.5, dtype=torch.bfloat16)},
    "weight nan": {"weight": torch.tensor(NAN)},
    "weight inf": {"weight": torch.tensor(INF)},
    "weight -inf": {"weight": torch.tensor(-INF)},
}


@pytest.mark.parametrize("n, at", [(3, 1), (300, 299)])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_values(case: str, n: int, at: int, backend: str) -> None:
    """An error where values are looked at; elsewhere NaN; nowhere a plausible number."""
    ((name, value),) = IMPOSSIBLE[case].items()
    s, t, f = make(n, 2, missing=0)
    defaults = {"feedback": f, "preference": (f == 1).any(1), "weight": torch.ones(n)}
    sound = defaults[name].to(value.dtype)
    column = sound.clone()
    column[(at, 1) if name == "feedback" else at] = value
    arguments: dict[str, Any] = {"feedback": f, "backend": backend, name: column}
    evaluate(s, t, **{**arguments, name: sound, "check_values": True})
    if backend == "triton":
        loss, ds, dt = evaluate(s, t, **arguments)
        assert torch.isnan(loss[at]) and torch.isnan(ds[at]) and torch.isnan(dt[at]).all()
        assert torch.isnan(evaluate(s, t, **arguments, reduction="sum")[0])
        others = torch.arange(n) != at
        want = evaluate(s, t, **{**arguments, name: sound})
        assert all(torch.equal(a[others], b[others]) for a, b in zip((loss, ds, dt), want, strict=True))
        arguments["check_values"] = True
    for reduction in ("sum", "none"):
        with pytest.raises(ValueError, match=name):
            irm_fast.implicit_rm_loss(s, t, reduction=reduction, **arguments)


# --- arguments that are refused ----------------------------------------------------------------------------

S, T, F = torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int8)
REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "integer rewards": (TypeError, "reward_logits", {"reward_logits": S.long()}),
    "integer propensities": (TypeError, "propensity_logits", {"propensity_logits": T.int()}),
    "boolean rewards": (TypeError, "reward_logits", {"reward_logits": S.bool()}),
    "complex rewards": (TypeError, "reward_logits", {"reward_logits": S.to(torch.complex64)}),
    "float feedback": (TypeError, "feedback", {"feedback": F.float()}),
    "float preference": (TypeError, "preference", {"preference": S}),
    "(N,1) rewards": (ValueError, r"squeeze\(-1\)", {"reward_logits": S[:, None]}),
    "(N,1) rewards, one signal": (
        ValueError,
        r"squeeze\(-1\)",
        {"reward_logits": S[:, None], "propensity_logits": T[:, 0], "feedback": F[:, 0]},
    ),
    "(1,N) rewards": (ValueError, "reward_logits", {"reward_logits": S[None]}),
    "0-d rewards": (ValueError, "reward_logits", {"reward_logits": S[0]}),
    "three dimensions": (
        ValueError,
        "propensity_logits",
        {"propensity_logits": T[..., None], "feedback": F[..., None]},
    ),
    "other N": (ValueError, "propensity_logits", {"propensity_logits": T[:3], "feedback": F[:3]}),
    "one row would broadcast": (
        ValueError,
        "propensity_logits",
        {"propensity_logits": T[:1], "feedback": F[:1]},
    ),
    "one reward would broadcast": (ValueError, "propensity_logits", {"reward_logits": S[:1]}),
    "other N in feedback": (ValueError, "feedback", {"feedback": F[:3]}),
    "K mismatch": (ValueError, "feedback", {"feedback": F[:, :1]}),
    "1-d feedback, 2-d propensities": (ValueError, "feedback", {"feedback": F[:, 0]}),
    "2-d feedback, 1-d propensities": (ValueError, "feedback", {"propensity_logits": T[:, 0]}),
    "K = 0": (ValueError, "propensity_logits", {"propensity_logits": T[:, :0], "feedback": F[:, :0]}),
    "K = 17": (
        ValueError,
        "16",
        {"propensity_logits": torch.zeros(4, 17), "feedback": torch.zeros(4, 17, dtype=torch.int8)},
    ),
    "misclick 1": (ValueError, "misclick_rate", {"misclick_rate": 1.0}),
    "misclick negative": (ValueError, "misclick_rate", {"misclick_rate": -0.1}),
    "misclick nan": (ValueError, "misclick_rate", {"misclick_rate": NAN}),
    "misclick 1 in a list": (ValueError, "misclick_rate", {"misclick_rate": [0.1, 1.0]}),
    "misclick of wrong length": (ValueError, "misclick_rate", {"misclick_rate": [0.1]}),
    "misclick too long": (ValueError, "misclick_rate", {"misclick_rate": [0.1] * 3}),
    "polarity 0": (ValueError, "polarity", {"polarity": [1, 0]}),
    "polarity 2": (ValueError, "polarity", {"polarity": [1, 2]}),
    "polarity of wrong length": (ValueError, "polarity", {"polarity": [1]}),
    "polarity too long": (ValueError, "polarity", {"polarity": [1, 1, -1]}),
    "preference (N,1)": (ValueError, "preference", {"preference": F[:, :1]}),
    "preference of wrong length": (ValueError, "preference", {"preference": F[:3, 0]}),
    "weight (N,K)": (ValueError, "weight", {"weight": torch.ones(4, 2)}),
    "weight (N,1)": (ValueError, "weight", {"weight": torch.ones(4, 1)}),
    "weight of one element": (ValueError, "weight", {"weight": torch.ones(1)}),
    "stratification (N,1)": (ValueError, "stratification", {"stratification": (S[:, None], T)}),
    "stratification of other K": (ValueError, "stratification", {"stratification": (S, T[:, :1])}),
    "stratification of other N": (ValueError, "stratification", {"stratification": (S[:3], T[:3])}),
    "feedback elsewhere": (ValueError, "device", {"feedback": F.to("meta")}),
    "propensities elsewhere": (ValueError, "device", {"propensity_logits": T.to("meta")}),
    "rewards elsewhere": (ValueError, "device", {"reward_logits": S.to("meta")}),
    "preference elsewhere": (ValueError, "device", {"preference": F[:, 0].to("meta")}),
    "weight elsewhere": (ValueError, "device", {"weight": S.to("meta")}),
    "stratification elsewhere": (ValueError, "device", {"stratification": (S.to("meta"), T)}),
    "unknown reduction": (ValueError, "reduction", {"reduction": "median"}),
    "unknown backend": (ValueError, "backend", {"backend": "cuda"}),
    "normalizer with sum": (ValueError, "normalizer", {"reduction": "sum", "normalizer": 4}),
    "normalizer with none": (ValueError, "normalizer", {"reduction": "none", "normalizer": 4}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_arguments(case: str, backend: str) -> None:
    error, message, changed = REFUSED[case]
    sound: dict[str, Any] = {"reward_logits": S, "propensity_logits": T, "feedback": F}
    arguments = {**sound, "backend": backend}
    irm_fast.implicit_rm_loss(**arguments)
    with pytest.raises(error, match=message):
        irm_fast.implicit_rm_loss(**{**arguments, **changed})
    accepted = {"reward_logits", "propensity_logits", "feedback", "preference", "polarity", "misclick_rate"}
    if set(changed) <= accepted:
        with pytest.raises(error, match=message):
            irm_fast.stratify(**{**sound, **changed})


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
