"""The reference: differentiable float64 PyTorch, the truth, and the theorem that the method rests on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from irm_fast.kernels.reference import definition as reference
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import irm_fast
from tests import truth

COMBINATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "polarity": {"polarity": [1, -1, 1], "misclick_rate": [0.2, 0.1, 0.0]},
    "misclick": {"misclick_rate": 0.3},
    "labels": {"preference": torch.tensor([1, 0, -1, -1, 1, 0]), "misclick_rate": 0.1},
}
FEEDBACK = torch.tensor([[0, 0, 0], [0, -1, 0], [1, 0, -1], [1, 0, 1], [-1, -1, -1], [0, 1, 0]])


def logits(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6,), (6, 3)))
    return s.requires_grad_(), t.requires_grad_()


@pytest.mark.parametrize("name", COMBINATIONS)
def test_gradcheck(name: str) -> None:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return reference.implicit_rm_loss(s, t, FEEDBACK, **COMBINATIONS[name])

    assert torch.autograd.gradcheck(loss, logits())
    assert torch.autograd.gradgradcheck(loss, logits())


@pytest.mark.parametrize("name", COMBINATIONS)
def test_gradcheck_stratified(name: str) -> None:
    teacher_s, teacher_t = logits(1)
    teacher = (teacher_s.detach(), teacher_t.detach())

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return reference.implicit_rm_loss(s, t, FEEDBACK, stratification=teacher, **COMBINATIONS[name])

    assert torch.autograd.gradcheck(loss, logits())
    assert torch.autograd.gradgradcheck(loss, logits())


@pytest.mark.parametrize("name", COMBINATIONS)
def test_gradcheck_of_the_public_loss(name: str) -> None:
    """float64 inputs go to the reference: gradients, reduction and weights, against differences."""
    weight = torch.linspace(0, 2, 6, dtype=torch.float64)

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return irm_fast.implicit_rm_loss(s, t, FEEDBACK, weight=weight, **COMBINATIONS[name])

    assert torch.autograd.gradcheck(loss, logits())


@pytest.mark.parametrize("form", ["marginal", "separate", "current"])
@pytest.mark.parametrize("name", truth.ORDINARY)
def test_float64_accuracy(name: str, form: str) -> None:
    """The definition of right is right: 1e-11 relative, where float32 asks for 2e-6."""
    batch, want = truth.BATCHES[name], truth.truth_of(name, form)
    s, t, s2, t2 = (
        torch.tensor(x).double() for x in (batch.reward, batch.propensity, batch.other_reward, batch.other_propensity)
    )
    arguments: dict[str, Any] = {
        "preference": None if batch.preference is None else torch.tensor(batch.preference),
        "polarity": batch.polarity,
        "misclick_rate": batch.misclick,
    }
    separate = {"marginal": None, "separate": (s2, t2), "current": (s.clone(), t.clone())}[form]
    s.requires_grad_()
    t.requires_grad_()
    weight = torch.ones(len(s)) if batch.weight is None else torch.tensor(batch.weight)
    feedback = torch.tensor(batch.feedback)
    loss = weight * reference.implicit_rm_loss(s, t, feedback, stratification=separate, **arguments)
    assert loss.dtype == torch.float64
    ds, dt = torch.autograd.grad(loss.sum(), [s, t])
    groups = reference.stratify(*(separate or (s, t)), feedback, **arguments)
    for got, expected in (
        (loss, want.loss),
        (ds, want.reward_grad),
        (dt, want.propensity_grad),
        (groups, want.groups),
    ):
        np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-11, atol=1e-13)


def test_contradictory_evidence() -> None:
    s, t = torch.zeros(2), torch.zeros(2, 2)
    feedback = torch.tensor([[1, 1], [1, 0]])
    loss = reference.implicit_rm_loss(s, t, feedback, polarity=[1, -1])
    assert loss[0] == float("inf") and torch.isfinite(loss[1])
    groups = reference.stratify(s, t, feedback, polarity=[1, -1])
    assert torch.isnan(groups[0]).all() and torch.isfinite(groups[1]).all()


@pytest.mark.parametrize("misclick", [None, [0.0, 0.2]], ids=["one signal", "two, misclicks"])
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_unbiased_under_true_posteriors(misclick: list[float] | None, backend: str) -> None:
    """E[CE(q, s)] over logs is the loss that full labels would give; the naive loss is not.

    Each simulated row is compared with the exact expectation given its own (x, y), so that the confidence
    interval holds the randomness of the log alone. The judged model is wrong on purpose: unbiasedness holds
    at any s.
    """
    if backend == "cpu" and irm_fast.backends()["cpu"] != "available":
        pytest.skip(irm_fast.backends()["cpu"])
    rng = np.random.default_rng(7)
    n, k = 40_000, 1 if misclick is None else 2
    true_s, true_t = rng.normal(0.5, 1.5, n), rng.normal(-0.5, 1.5, (n, k))
    model_s, model_t = 0.5 * true_s + rng.normal(0, 1, n), 0.5 * true_t + rng.normal(0, 1, (n, k))
    g, m = 1 / (1 + np.exp(-true_s)), 1 / (1 + np.exp(-true_t))
    preferred = rng.random(n) < g
    active = rng.random((n, k)) < m
    polarity = [1, -1][:k]
    own_side = preferred[:, None] == (np.array(polarity) == 1)
    slips = rng.random((n, k)) < np.array(misclick or [0.0])
    f = torch.tensor(active & (own_side | slips))
    g_, m_ = torch.tensor(g), torch.tensor(m)
    s_, t_ = torch.tensor(model_s).float(), torch.tensor(model_t).float()
    teacher = torch.tensor(true_s).float(), torch.tensor(true_t).float()

    rows, groups = irm_fast.implicit_rm_loss(
        s_, t_, f,
        polarity=polarity, misclick_rate=misclick, stratification=teacher,
        reduction="none", return_groups=True, backend=backend,
    )  # fmt: skip
    pa, _, pp, _ = groups.double().unbind(-1)
    q = (pa + pp)[:, 0]
    s64, t64 = s_.double(), t_.double()
    exact = cross_entropy(s64, g_, reduction="none")
    exact_active = cross_entropy(t64, m_, reduction="none").sum(1)

    def z(difference: Tensor) -> float:
        return abs(difference.mean() / (difference.std() / n**0.5)).item()

    assert z(cross_entropy(s64, q, reduction="none") - exact) < 4
    assert z(rows.double() - exact - exact_active) < 4
    naive = cross_entropy(s64, f[:, 0].double(), reduction="none")
    assert z(naive - exact) > 20
    # NA and PP interchanged: the same numbers under other names are biased too.
    interchanged = (groups[..., 0] + groups[..., 1]).double()[:, 0]
    assert z(cross_entropy(s64, interchanged, reduction="none") - exact) > 20
