"""Every baseline against its definition, written out in float64, and against what it claims to be unbiased for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from irm_fast.losses import baselines
from irm_fast.losses.nuisances import imputed_preference, popularity_propensity
from tests.losses.loss_cases import assert_same

RATE = 0.31


class Case(NamedTuple):
    """N rows: reward logits s, propensity logits t, feedback f (1, 0 or -1), and constants.

    The constants are propensities m, imputed preferences r, the rows o that were observed, row weights w, the class
    prior pi, and the two flip rates h.
    """

    s: Tensor
    t: Tensor
    f: Tensor
    m: Tensor
    r: Tensor
    o: Tensor
    w: Tensor
    pi: float = 0.45
    h: tuple[float, float] = (0.08, 0.15)


def make(n: int = 500, *, missing: bool = True, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    s, t = (1.5 * torch.randn(n, generator=generator) for _ in range(2))
    u = torch.rand(4, n, generator=generator)
    f = torch.where(missing & (u[0] < 0.1), -1, (u[0] < 0.4).long()).to(torch.int8)
    return Case(s, t, f, 0.02 + 0.9 * u[1], u[2], (u[3] < 0.6).to(torch.int8), 2 * torch.rand(n, generator=generator))


def in_double(case: Case) -> Case:
    return Case(*(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in case))


# --- the formulas of the literature, a row at a time, in float64 ------------------------------------------------


def losses(s: Tensor) -> tuple[Tensor, Tensor]:
    return softplus(-s), softplus(s)


def naive(c: Case) -> Tensor:
    l1, l0 = losses(c.s)
    return torch.where(c.f == 1, l1, l0)


def ips(c: Case) -> Tensor:
    (l1, l0), m, f = losses(c.s), c.m.clamp(min=0.05), (c.f == 1).double()
    return f / m * l1 + (1 - f / m) * l0


def doubly_robust(c: Case) -> Tensor:
    (l1, l0), m = losses(c.s), c.m.clamp(min=0.05)
    imputed = c.r * l1 + (1 - c.r) * l0
    return torch.where(c.f == 1, (l1 - imputed) / m, 0.0) + imputed


def causalrm(c: Case) -> Tensor:
    (l1, l0), m, (h10, h01) = losses(c.s), c.m.clamp(min=0.05), c.h
    d = 1 - h10 - h01
    upper, lower = ((1 - h10) * l1 - h01 * l0) / d, ((1 - h01) * l0 - h10 * l1) / d
    return c.o * torch.where(c.f == 1, upper, lower) / m


def posterior(c: Case) -> Tensor:
    """PA + PP of the four groups, held constant."""
    g, m = torch.sigmoid(c.s.detach()), torch.sigmoid(c.t.detach())
    return torch.where(c.f == 1, 1.0, g * (1 - m) / (1 - g * m))


def sar_em(c: Case) -> Tensor:
    q, (l1, l0), m = posterior(c), losses(c.s), torch.sigmoid(c.t)
    return q * l1 + (1 - q) * l0 + q * -torch.where(c.f == 1, m.log(), (1 - m).log())


def recrec(c: Case) -> Tensor:
    q, g, m = posterior(c), torch.sigmoid(c.s.detach()), torch.sigmoid(c.t.detach())
    p = torch.where(c.f == 1, 1.0, (1 - g) * m / (1 - g * m))
    pair = q * softplus(-c.s) + (1 - q) * softplus(c.s) + p * softplus(-c.t) + (1 - p) * softplus(c.t)
    product = m * torch.sigmoid(c.s)
    return pair - torch.where(c.f == 1, product.log(), (1 - product).log())


def upu(c: Case) -> Tensor:
    """Of rows, so that their mean over the recorded is the risk with the rate of the batch."""
    l1, l0 = losses(c.s)
    rate = (c.w * (c.f == 1)).sum() / (c.w * (c.f >= 0)).sum()
    return c.pi * torch.where(c.f == 1, (l1 - l0) / rate, 0.0) + l0


Run = Callable[[Case, dict[str, Any]], Tensor]
ROWWISE: dict[str, tuple[Callable[[Case], Tensor], Run]] = {
    "naive": (naive, lambda c, more: baselines.naive_loss(c.s, c.f, **more)),
    "ips": (ips, lambda c, more: baselines.ips_loss(c.s, c.m, c.f, **more)),
    "upu": (upu, lambda c, more: baselines.upu_loss(c.s, c.f, class_prior=c.pi, **more)),
    "doubly_robust": (
        doubly_robust,
        lambda c, more: baselines.doubly_robust_loss(c.s, c.m, c.f, imputed_preference=c.r, **more),
    ),
    "causalrm": (
        causalrm,
        lambda c, more: baselines.causalrm_loss(c.s, c.m, c.f, observed=c.o, flip_rates=c.h, **more),
    ),
    "sar_em": (sar_em, lambda c, more: baselines.sar_em_loss(c.s, c.t, c.f, **more)),
    "recrec": (recrec, lambda c, more: baselines.recrec_loss(c.s, c.t, c.f, **more)),
}
LEARNED = ("sar_em", "recrec")  # with a propensity logit


def differentiated(loss: Callable[[Case], Tensor], case: Case, name: str) -> tuple[Tensor, ...]:
    """The loss and the gradients of its sum, in s and, where there is one, t."""
    case = case._replace(s=case.s.detach().requires_grad_(), t=case.t.detach().requires_grad_())
    value = loss(case)
    leaves = [case.s, case.t] if name in LEARNED else [case.s]
    return value.detach(), *torch.autograd.grad(value.sum(), leaves)


@pytest.mark.parametrize("name", ROWWISE)
def test_the_definition(name: str, backend: str) -> None:
    definition, run = ROWWISE[name]
    case = make()
    truth = in_double(case)
    want = differentiated(lambda c: (definition(c) * c.w).masked_fill(c.f == -1, 0.0), truth, name)
    assert all(gradient.abs().median() > 0.01 for gradient in want[1:])  # far above the tolerance
    got = differentiated(lambda c: run(c, {"weight": c.w, "reduction": "none", "backend": backend}), case, name)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=5e-6, atol=2e-6)
    mean = run(case, {"weight": case.w, "backend": backend})
    torch.testing.assert_close(mean.double(), want[0].mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        run(case, {"weight": case.w, "backend": backend, "normalizer": 7.0}).double(),
        want[0].sum() / 7,
        rtol=1e-5,
        atol=0,
    )


@pytest.mark.parametrize("name", ROWWISE)
def test_float64_is_exact(name: str) -> None:
    definition, run = ROWWISE[name]
    case = in_double(make(missing=False))._replace(w=torch.ones(500).double())
    got = differentiated(lambda c: run(c, {"reduction": "none"}), case, name)
    want = differentiated(definition, case, name)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


WRONG = {
    "naive": {"f": lambda c: 1 - c.f},
    "ips": {"m": lambda c: c.m * 1.02},
    "upu": {"pi": lambda c: c.pi * 1.02},
    "doubly_robust": {"m": lambda c: c.m * 1.02, "r": lambda c: c.r * 0.98},
    "causalrm": {"m": lambda c: c.m * 1.02, "h": lambda c: (c.h[0] * 1.02, c.h[1] * 0.98), "o": lambda c: 1 - c.o},
    "sar_em": {"t": lambda c: c.t + 0.02},
    "recrec": {"t": lambda c: c.t + 0.02},
}


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, found in WRONG.items() for what in found])
def test_a_slightly_wrong_weight_shows(name: str, what: str) -> None:
    """Two percent off in a nuisance is a hundred times what the comparison with the definition lets pass."""
    definition, run = ROWWISE[name]
    case = make(missing=False)._replace(w=torch.ones(500))
    right = differentiated(definition, in_double(case), name)
    wrong = case._replace(**{what: WRONG[name][what](case)})
    got = differentiated(lambda c: run(c, {"reduction": "none"}), wrong, name)
    assert all((a - b).abs().mean() > 5e-4 for a, b in zip(got[1:], right[1:], strict=True))


def test_a_lagged_posterior_is_the_one_that_counts() -> None:
    case = make(missing=False)
    old = make(seed=9)
    for name, loss in (("sar_em", baselines.sar_em_loss), ("recrec", baselines.recrec_loss)):
        lagged = in_double(case)
        with_old = in_double(case._replace(s=old.s, t=old.t))
        q = posterior(with_old)
        s, t = (x.clone().requires_grad_() for x in lagged[:2])
        value = loss(s, t, case.f, stratification=(old.s, old.t), reduction="sum")
        ds, dt = torch.autograd.grad(value, [s, t])
        g, m = torch.sigmoid(s.detach()), torch.sigmoid(t.detach())
        old_m = torch.sigmoid(old.t.double())
        if name == "sar_em":
            want = g - q, q * (m - (case.f == 1).double())
        else:
            old_g, acted = torch.sigmoid(old.s.double()), case.f == 1
            p = torch.where(acted, 1.0, (1 - old_g) * old_m / (1 - old_g * old_m))
            product = g * old_m
            want = g - q + torch.where(acted, -(1 - g), product * (1 - g) / (1 - product)), m - p
        assert_same((ds.float(), dt.float()), tuple(x.float() for x in want))


@pytest.mark.parametrize("name", ROWWISE)
def test_a_missing_row_contributes_nothing(name: str) -> None:
    run = ROWWISE[name][1]
    case = make()
    recorded = Case(*(x[case.f >= 0] if isinstance(x, Tensor) else x for x in case))
    got, want = run(case, {"reduction": "sum"}), run(recorded, {"reduction": "sum"})
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [*ROWWISE, "nnpu"])
@pytest.mark.parametrize("lagged", [False, True])
def test_rows_that_do_not_count_may_hold_anything(name: str, lagged: bool) -> None:
    """Missing rows, rows of weight 0, and for CausalRM those that nobody saw: NaN in all else, and nothing changes."""
    case, more = make(), {}
    out = torch.zeros(500, dtype=torch.bool)
    out[::5] = True
    weight = torch.where(out & (torch.arange(500) % 2 == 0), 0.0, case.w)
    feedback = torch.where(out & (torch.arange(500) % 2 == 1), -1, case.f).to(torch.int8)
    broken = [torch.where(out, torch.nan, x) for x in (case.s, case.t, case.m, case.r)]
    if lagged and name in LEARNED:
        more = {"stratification": (broken[0] + 0.3, broken[1] - 0.2)}
    clean = {key: tuple(x.nan_to_num(nan=0.0) for x in pair) for key, pair in more.items()}

    def gradient(s: Tensor, t: Tensor, m: Tensor, r: Tensor, options: dict) -> tuple[Tensor, ...]:
        s, t = s.clone().requires_grad_(), t.clone().requires_grad_()
        c = case._replace(s=s, t=t, m=m, r=r, f=feedback)
        if name == "nnpu":
            loss = baselines.nnpu_loss(s, feedback, class_prior=c.pi, weight=weight)
        else:
            loss = ROWWISE[name][1](c, {"weight": weight, "reduction": "sum"} | options)
        return loss, *torch.autograd.grad(loss, [s, t] if name in LEARNED else [s])

    got, want = gradient(*broken, more), gradient(case.s, case.t, case.m, case.r, clean)
    torch.testing.assert_close(got, want)
    assert want[1].abs().max() > 1e-4 and all((x[out] == 0).all() for x in got[1:])


def test_unobserved_rows_of_causalrm_need_no_propensity() -> None:
    case = make()
    m = torch.where(case.o == 0, torch.nan, case.m)
    arguments = {"observed": case.o, "flip_rates": case.h}
    got = baselines.causalrm_loss(case.s, m, case.f, **arguments)
    torch.testing.assert_close(got, baselines.causalrm_loss(case.s, case.m, case.f, **arguments))


@pytest.mark.parametrize("name", ROWWISE)
def test_impossible_feedback_is_never_a_plausible_number(name: str) -> None:
    case = make()
    for code, dtype in ((2, torch.int8), (-2, torch.int64), (255, torch.uint8)):
        feedback = case.f.clamp(min=0).to(dtype)
        feedback[3] = code
        if name == "recrec":  # the kernel looks
            with pytest.raises(ValueError, match=r"feedback|weight"):
                ROWWISE[name][1](case._replace(f=feedback), {})
        else:
            assert ROWWISE[name][1](case._replace(f=feedback), {}).isnan()


# --- what they are unbiased for ------------------------------------------------------------------------------


def labelled(s: Tensor, g: Tensor) -> Tensor:
    """Expectation over r* of the loss with labels."""
    return g * softplus(-s) + (1 - g) * softplus(s)


def expectation(run: Callable[[Tensor], Tensor], chance: Tensor) -> Tensor:
    """Over an outcome of chance (N,), of row losses."""
    one = torch.ones_like(chance, dtype=torch.int8)
    return chance * run(one) + (1 - chance) * run(1 - one)


def world() -> tuple[Tensor, Tensor, Tensor]:
    """s, and true g and m, in float64."""
    case = in_double(make())
    return case.s, torch.sigmoid(case.t), case.m.clamp(min=0.05)


def test_ips_is_unbiased_given_propensities() -> None:
    s, g, m = world()
    got = expectation(lambda f: baselines.ips_loss(s, m, f, reduction="none"), g * m)
    torch.testing.assert_close(got, labelled(s, g))
    biased = expectation(lambda f: baselines.naive_loss(s, f, reduction="none"), g * m)
    torch.testing.assert_close(biased, labelled(s, g * m))
    assert (biased - labelled(s, g)).abs().median() > 0.05


def test_upu_is_unbiased_where_the_propensity_is_constant() -> None:
    s, g, _ = world()
    prior, c = float(g.mean()), 0.3
    options = {"class_prior": prior, "action_rate": c * prior, "reduction": "none"}
    got = expectation(lambda f: baselines.upu_loss(s, f, **options), g * c)
    torch.testing.assert_close(got, labelled(s, g))
    f = make(missing=False).f
    torch.testing.assert_close(baselines.upu_loss(s, f, **options), baselines.ips_loss(s, c, f, reduction="none"))


def test_doubly_robust_is_what_its_docstring_says() -> None:
    s, g, m = world()
    r = torch.rand(len(s), generator=torch.Generator().manual_seed(1)).double()
    got = expectation(lambda f: baselines.doubly_robust_loss(s, m, f, imputed_preference=r, reduction="none"), g * m)
    torch.testing.assert_close(got, g * softplus(-s) + (1 - g) * labelled(s, r))


def test_causalrm_is_unbiased_given_exposure_and_rates() -> None:
    s, g, m = world()
    h10, h01 = make().h
    seen = torch.ones(len(s), dtype=torch.int8)

    def given(observed: Tensor) -> Tensor:
        def loss(f: Tensor) -> Tensor:
            return baselines.causalrm_loss(s, m, f, observed=observed, flip_rates=make().h, reduction="none")

        return expectation(loss, g * (1 - h01) + (1 - g) * h10)

    torch.testing.assert_close(m * given(seen) + (1 - m) * given(1 - seen), labelled(s, g))


def test_posteriors_make_sar_em_and_recrec_unbiased_for_the_reward() -> None:
    """At the truth the gradient in s vanishes in expectation, as that of the labelled loss does."""
    s, g, m = world()
    s, t = torch.logit(g), torch.logit(m)
    for loss in (baselines.sar_em_loss, baselines.recrec_loss):

        def slope(f: Tensor, loss: Callable = loss) -> Tensor:
            leaf = s.clone().requires_grad_()
            return torch.autograd.grad(loss(leaf, t, f, reduction="sum"), leaf)[0]

        assert expectation(slope, g * m).abs().max() < 1e-12
        off = m * 0.5
        assert expectation(slope, g * off).abs().median() > 0.01


# --- nnPU ----------------------------------------------------------------------------------------------------


HIGH = 0.7  # far above the rate of action: easily overfitted


def risks(s: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """pi mean_P l1, and the bracket."""
    l1, l0 = losses(s)
    return HIGH * l1[f == 1].mean(), l0.mean() - HIGH * l0[f == 1].mean()


@pytest.mark.parametrize("overfitted", [False, True])
@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 1.0), (0.05, 0.3), (10.0, 1.0)])
def test_nnpu_follows_the_rule(overfitted: bool, beta: float, gamma: float, backend: str) -> None:
    case = make(missing=False)
    s = (case.s + overfitted * (8.0 * case.f - 4)).requires_grad_()
    s64 = s.detach().double().requires_grad_()
    positive, bracket = risks(s64, case.f)
    assert (bracket < -0.1) == overfitted
    step = -gamma * bracket if bracket < -beta else positive + bracket
    got = baselines.nnpu_loss(s, case.f, class_prior=HIGH, beta=beta, gamma=gamma, backend=backend)
    torch.testing.assert_close(got.double(), positive + bracket.clamp(min=0), rtol=1e-5, atol=1e-6)
    want, ours = torch.autograd.grad(step, s64)[0], torch.autograd.grad(got, s)[0]
    assert want.abs().max() > 1e-4
    torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-9)


def test_nnpu_of_rows_with_weights_and_missing_ones_over_a_normalizer() -> None:
    """The rule looks at means over recorded rows: missing ones beside them do not change what is a violation."""
    case = make()
    s = case.s + 8.0 * (case.f == 1) - 4
    recorded = case.f >= 0
    for beta in (0.0, 0.5):
        leaf, part = s.clone().requires_grad_(), s[recorded].clone().requires_grad_()
        options = {"class_prior": HIGH, "beta": beta, "gamma": 0.5}
        whole = baselines.nnpu_loss(leaf, case.f, weight=case.w, normalizer=100, **options)
        alone = baselines.nnpu_loss(part, case.f[recorded], weight=case.w[recorded], normalizer=100, **options)
        torch.testing.assert_close(whole, alone)
        ds, want = torch.autograd.grad(whole, leaf)[0], torch.autograd.grad(alone, part)[0]
        torch.testing.assert_close(ds[recorded], want)
        assert want.abs().max() > 1e-4 and (ds[~recorded] == 0).all()


@pytest.mark.parametrize("what", ["class_prior", "action_rate"])
def test_a_slightly_wrong_prior_shows_in_nnpu(what: str) -> None:
    case = make(missing=False)
    right = {"class_prior": HIGH, "action_rate": 0.4}

    def slope(**options) -> Tensor:
        s = case.s.clone().requires_grad_()
        return torch.autograd.grad(baselines.nnpu_loss(s, case.f, **options), s)[0]

    assert (slope(**right) - slope(**right | {what: right[what] * 1.02})).abs().mean() * 500 > 5e-4


def test_nnpu_with_a_given_rate_is_upu_where_the_bracket_is_positive() -> None:
    case = make(missing=False)
    options = {"class_prior": 0.45, "action_rate": RATE, "weight": case.w}
    assert risks(case.s, case.f)[1] > 0
    torch.testing.assert_close(
        baselines.nnpu_loss(case.s, case.f, **options), baselines.upu_loss(case.s, case.f, **options)
    )


@pytest.mark.parametrize("loss", [baselines.upu_loss, baselines.nnpu_loss])
def test_a_batch_without_actions_is_all_unlabelled(loss: Callable) -> None:
    s, silent = make().s, torch.zeros(500, dtype=torch.int8)
    torch.testing.assert_close(loss(s, silent, class_prior=0.45), softplus(s).mean())


# --- arguments -----------------------------------------------------------------------------------------------


def test_small_propensities_are_clipped() -> None:
    case = make(missing=False)
    tiny = torch.full_like(case.m, 1e-6)
    for least in (0.05, 0.2):
        got = baselines.ips_loss(case.s, tiny, case.f, min_propensity=least)
        torch.testing.assert_close(got, baselines.ips_loss(case.s, least, case.f))


def test_what_is_wrong_is_named() -> None:
    case = make()
    with pytest.raises(ValueError, match=r"squeeze\(-1\)"):
        baselines.naive_loss(case.s[:, None], case.f)
    with pytest.raises(TypeError, match="feedback must be bool, integer"):
        baselines.naive_loss(case.s, case.f.to(torch.complex64))
    with pytest.raises(ValueError, match="feedback must have shape"):
        baselines.ips_loss(case.s, 0.5, case.f[:, None])
    with pytest.raises(ValueError, match=r"propensity must be a number or have shape \(500,\), got shape \(500, 1\)"):
        baselines.ips_loss(case.s, case.m[:, None], case.f)
    for wrong in (0.0, -0.2, 20, float("nan")):
        with pytest.raises(ValueError, match="propensity must be a probability, got"):
            baselines.ips_loss(case.s, wrong, case.f)
    with pytest.raises(ValueError, match="class_prior must be a probability, got 45"):
        baselines.upu_loss(case.s, case.f, class_prior=45)
    with pytest.raises(ValueError, match=r"class_prior must be a number, got shape \(500,\)"):
        baselines.upu_loss(case.s, case.f, class_prior=case.m)
    with pytest.raises(ValueError, match=r"min_propensity must lie in \(0, 1\], got 0"):
        baselines.ips_loss(case.s, case.m, case.f, min_propensity=0)
    with pytest.raises(ValueError, match="beta must be 0 or more"):
        baselines.nnpu_loss(case.s, case.f, class_prior=0.5, beta=-1)
    with pytest.raises(ValueError, match="over no rows"):
        baselines.nnpu_loss(case.s[:0], case.f[:0], class_prior=0.5)
    with pytest.raises(TypeError, match=r"reward_logits must be a torch\.Tensor"):
        baselines.recrec_loss([1.0], case.t, case.f)
    with pytest.raises(ValueError, match="two rates with a sum below 1"):
        baselines.causalrm_loss(case.s, case.m, case.f, observed=case.o, flip_rates=(0.6, 0.4))
    with pytest.raises(ValueError, match="observed must have shape"):
        baselines.causalrm_loss(case.s, case.m, case.f, observed=case.o[1:], flip_rates=make().h)
    with pytest.raises(ValueError, match="propensity_logits must have shape"):
        baselines.sar_em_loss(case.s, case.t[:, None], case.f)


def test_estimates_from_the_log_go_into_the_losses() -> None:
    case = make(missing=False)
    m = popularity_propensity(case.f.numpy(), np.arange(500) % 7)
    r = imputed_preference(torch.sigmoid(case.s).numpy(), m)
    got = baselines.doubly_robust_loss(case.s, m, case.f, imputed_preference=r)
    tensors = torch.from_numpy(m).float(), torch.from_numpy(r).float()
    want = baselines.doubly_robust_loss(case.s, tensors[0], case.f, imputed_preference=tensors[1])
    torch.testing.assert_close(got, want)


def test_nothing_is_learned_through_the_weights() -> None:
    case = make(missing=False)
    m = case.m.clone().requires_grad_()
    s = case.s.clone().requires_grad_()
    baselines.ips_loss(s, m, case.f).backward()
    assert m.grad is None and s.grad is not None


@pytest.mark.parametrize("name", ROWWISE)
def test_compiled(name: str) -> None:
    run = ROWWISE[name][1]
    case = make()
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, t: run(case._replace(s=s, t=t), {}), fullgraph=True, backend="aot_eager")
    s, t = case.s.clone().requires_grad_(), case.t.clone().requires_grad_()
    leaves = [s, t] if name in LEARNED else [s]
    assert_same(
        torch.autograd.grad(compiled(s, t), leaves), torch.autograd.grad(run(case._replace(s=s, t=t), {}), leaves)
    )
