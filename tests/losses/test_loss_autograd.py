"""The loss under autograd, and its symmetries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import irm_fast
from tests.losses.loss_cases import assert_same, evaluate, make, options
from tests.poison import fresh_memory

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


def test_a_gradient_that_is_changed_does_not_change_the_second_backward(backend: str) -> None:
    s, t, f = make(50, 2)
    loss = irm_fast.implicit_rm_loss(s.requires_grad_(), t.requires_grad_(), f, reduction="sum", backend=backend)
    first = torch.autograd.grad(loss, [s, t], retain_graph=True)
    want = [x.clone() for x in first]
    for x in first:
        x.zero_()
    assert all(map(torch.equal, torch.autograd.grad(loss, [s, t]), want))


def test_on_a_cpu_gradients_are_handed_out_without_a_copy_where_nobody_reads_them_again() -> None:
    pytest.importorskip("irm_fast.kernels.cpu.library", exc_type=ImportError)
    for scale, dtype, copied in ((1, torch.float32, False), (2, torch.float32, True), (1, torch.bfloat16, True)):
        s, t, f = make(50, 2)
        s, t = (x.to(dtype).requires_grad_() for x in (s, t))
        loss = irm_fast.implicit_rm_loss(s, t, f, reduction="sum", backend="cpu")
        computed = [x.data_ptr() for x in loss.grad_fn.saved_tensors]
        (loss * scale).backward()
        assert [x.grad.data_ptr() != place for x, place in zip((s, t), computed, strict=True)] == [copied] * 2


@pytest.mark.parametrize("changed", ["reward", "propensity", "feedback", "weight"])
def test_inputs_changed_before_backward_are_refused_or_do_not_matter(changed: str, backend: str) -> None:
    """Where the backward pass reads the inputs again, it must not read what was written over them."""
    s, t, f = make(30, 2)
    weight = torch.linspace(0.1, 2, 30)
    want = evaluate(s, t, f, weight=weight.clone(), backend=backend)[1:]
    leaves = [s.requires_grad_(), t.requires_grad_()]
    inputs = {"reward": s + 0, "propensity": t + 0, "feedback": f}
    loss = irm_fast.implicit_rm_loss(*inputs.values(), weight=weight, reduction="sum", backend=backend)
    with torch.no_grad():
        {**inputs, "weight": weight}[changed].zero_()
    try:
        got = torch.autograd.grad(loss, leaves)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert_same(got, want)


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


def test_outputs_are_written_whole(backend: str) -> None:
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

    with fresh_memory(filled=False):
        want = compute()
    got = compute()  # on memory that is filled, as in every test here
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
