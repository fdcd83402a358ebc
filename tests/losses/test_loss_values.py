"""Groups, and values that are not ordinary: NaN, infinities, contradictions, impossible codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import irm_fast
from tests.losses.loss_cases import INF, NAN, assert_same, evaluate, make, options

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
