"""Every backend against the judge in truth.py, at the published accuracy."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
import torch

import irm_fast
from tests import truth

FORMS = ("marginal", "separate", "current")
HALF = (torch.bfloat16, torch.float16)


def run(
    batch: truth.Batch, backend: str, form: str = "marginal", dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Loss, gradients and groups of a batch, whose logits are first rounded to dtype."""
    s, t, s2, t2 = (
        torch.tensor(x).to(dtype) for x in (batch.reward, batch.propensity, batch.other_reward, batch.other_propensity)
    )
    separate = {"marginal": None, "separate": (s2, t2), "current": (s.clone(), t.clone())}[form]
    s.requires_grad_()
    t.requires_grad_()
    arguments: dict[str, Any] = {
        "preference": None if batch.preference is None else torch.tensor(batch.preference),
        "polarity": batch.polarity,
        "misclick_rate": batch.misclick,
        "weight": None if batch.weight is None else torch.tensor(batch.weight),
        "stratification": separate,
        "backend": backend,
    }
    feedback = torch.tensor(batch.feedback)
    total = irm_fast.implicit_rm_loss(s, t, feedback, reduction="sum", **arguments)
    ds, dt = torch.autograd.grad(total, [s, t])
    loss, groups = irm_fast.implicit_rm_loss(s, t, feedback, reduction="none", return_groups=True, **arguments)
    return {"total": total.detach(), "loss": loss.detach(), "ds": ds, "dt": dt, "groups": groups}


def assert_close(got: torch.Tensor, want: Any, *, relative: float, absolute: Any, what: str) -> None:
    error = np.abs(got.detach().double().numpy() - want)
    allowed = np.maximum(relative * np.abs(want), absolute)
    bad = ~(error <= allowed)  # NaN is bad
    if bad.any():
        i = tuple(int(j) for j in np.unravel_index(np.argmax(np.where(bad, error / allowed, 0)), bad.shape))
        worst = f"got {got[i].item()!r}, want {want[i]!r} at {i}"
        pytest.fail(f"{what}: {bad.sum()} of {bad.size} outside; worst {worst}")


def assert_tails(got: torch.Tensor, want: Any, what: str) -> None:
    """Within 1e-4 relative, however small the true gradient, down to 1e-30."""
    large = np.abs(want) > 1e-30
    assert_close(got[torch.tensor(large)], want[large], relative=1e-4, absolute=0, what=what + ", tails")


def test_the_judge_agrees_with_plain_enumeration() -> None:
    """The factorised sum over states is the sum over all 2^(K+1) of them."""
    for row in truth.BATCHES["usual-both-3"].rows():
        sides = dict.fromkeys(truth.SIDES, truth.mp.zero)
        for r, *active in product((0, 1), repeat=4):
            chance = [
                truth.sigmoid(t if a else -t) * row.entry(k, r, a)
                for k, (t, a) in enumerate(zip(row.t, active, strict=True))
            ]
            sides[r] += row.prior(row.s, r) * prod(chance)
        total = sides[0] + sides[1]
        assert abs(row.likelihood(row.s, row.t) / total - 1) < 1e-90
        (q, _), *_ = (target for target in row.cross_entropies() if target)
        assert abs(q - sides[1] / total) < 1e-90


def test_the_judge_knows_the_simplest_case() -> None:
    """One signal: -log(g m) where it acted, -log(1 - g m) where it did not."""
    batch, want = truth.BATCHES["usual-plain-1"], truth.truth_of("usual-plain-1", "marginal")
    s, t, f = batch.reward.astype(float), batch.propensity[:, 0].astype(float), batch.feedback[:, 0]
    product_ = 1 / (1 + np.exp(-s)) / (1 + np.exp(-t))
    loss = np.select([f == 1, f == 0], [-np.log(product_), -np.log1p(-product_)], 0.0)
    np.testing.assert_allclose(want.loss, loss, rtol=1e-12, atol=1e-14)


def test_the_truth_is_worth_comparing_with() -> None:
    """Thousands of rows, and most gradients far above the tolerance: zeros could not pass."""
    for form in FORMS:
        truths = [truth.truth_of(name, form) for name in truth.ORDINARY]
        assert sum(len(x.loss) for x in truths) >= 3000
        for grads in (
            np.concatenate([x.reward_grad for x in truths]),
            np.concatenate([x.propensity_grad.ravel() for x in truths]),
        ):
            assert np.mean(np.abs(grads) > 1e-3) > 0.3
            assert np.mean((np.abs(grads) < 1e-7) & (np.abs(grads) > 1e-30)) > 0.02  # the tails are there too


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", truth.ORDINARY)
def test_float32(name: str, form: str, backend: str) -> None:
    batch, want = truth.BATCHES[name], truth.truth_of(name, form)
    got = run(batch, backend, form)
    assert_close(got["loss"], want.loss, relative=2e-6, absolute=1e-7, what="loss")
    assert_close(got["groups"], want.groups, relative=1e-5, absolute=1e-7, what="groups")
    for what, grad in (("ds", want.reward_grad), ("dt", want.propensity_grad)):
        assert_close(got[what], grad, relative=1e-5, absolute=1e-7, what=what)
        # float64 autograd leaves g - q as a difference: the reference is right to 1e-14, not to 1e-4 of 1e-30.
        if backend == "reference":
            assert_close(got[what], grad, relative=1e-6, absolute=1e-14, what=what)
        elif batch.all_positive:
            assert_tails(got[what], grad, what)
    assert got["total"].item() == pytest.approx(want.loss.sum(), rel=1e-6)


@pytest.mark.parametrize("name", truth.HUGE)
def test_huge_logits_stay_finite(name: str, backend: str) -> None:
    """To 1e4 all is finite, and true up to what float32 loses where such logits cancel in a sum."""
    batch, want, got = (
        truth.BATCHES[name],
        truth.truth_of(name, "marginal"),
        run(truth.BATCHES[name], backend),
    )
    for value in got.values():
        assert torch.isfinite(value).all()
    cancelled = 1e-7 * (np.abs(batch.reward) + np.abs(batch.propensity).sum(1))
    assert_close(got["loss"], want.loss, relative=2e-6, absolute=cancelled, what="loss")
    assert_close(got["ds"], want.reward_grad, relative=1e-5, absolute=cancelled, what="ds")
    assert_close(got["dt"], want.propensity_grad, relative=1e-5, absolute=cancelled[:, None], what="dt")


@pytest.mark.parametrize("size", [90.0, 200.0, 1e4])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_probabilities_that_underflow_together(k: int, size: float, backend: str) -> None:
    """Silence where reward and one propensity are large alike: 1 - g m is 2 exp(-size), and the posterior one half."""
    s = torch.full((5,), size, requires_grad=True)
    t = torch.full((5, k), -size)
    t[:, -1] = size
    t.requires_grad_()
    loss = irm_fast.implicit_rm_loss(s, t, torch.zeros(5, k, dtype=torch.int8), reduction="none", backend=backend)
    ds, dt = torch.autograd.grad(loss.sum(), [s, t])
    half = np.full(5, 0.5)
    assert_close(loss, np.full(5, size - np.log(2)), relative=2e-6, absolute=0, what="loss")
    assert_close(ds, half, relative=1e-5, absolute=0, what="ds")
    assert_close(dt[:, -1], half, relative=1e-5, absolute=0, what="dt")
    assert (dt[:, :-1] <= 1e-35).all() and (dt >= 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["usual-plain-1", "wide-misclick-2", "usual-both-3", "wide-both-4"])
def test_half_precision_is_float32_rounded_once(name: str, dtype: torch.dtype, form: str, backend: str) -> None:
    batch = truth.BATCHES[name]
    half = run(batch, backend, form, dtype)
    fields = ("reward", "propensity", "other_reward", "other_propensity")
    rounded: dict[str, Any] = {field: torch.tensor(getattr(batch, field)).to(dtype).float().numpy() for field in fields}
    full = run(replace(batch, **rounded), backend, form)
    assert half["loss"].dtype == half["total"].dtype == torch.float32
    assert torch.equal(half["loss"], full["loss"])
    assert torch.equal(half["total"], full["total"])
    for what in ("ds", "dt", "groups"):
        assert half[what].dtype == dtype
        assert torch.equal(half[what], full[what].to(dtype)), what


def test_each_gradient_has_the_dtype_of_its_logits(backend: str) -> None:
    batch = truth.BATCHES["usual-both-3"]
    s = torch.tensor(batch.reward).bfloat16().requires_grad_()
    t = torch.tensor(batch.propensity).requires_grad_()
    kwargs: dict[str, Any] = {"polarity": batch.polarity, "misclick_rate": batch.misclick, "backend": backend}
    loss, groups = irm_fast.implicit_rm_loss(s, t, torch.tensor(batch.feedback), return_groups=True, **kwargs)
    ds, dt = torch.autograd.grad(loss, [s, t])
    assert (ds.dtype, dt.dtype, groups.dtype, loss.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
        torch.float32,
    )
