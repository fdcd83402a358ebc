"""What the loss promises beside accuracy: reductions, shapes, memory, arguments that are refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import irm_fast
from tests.losses.loss_cases import BLOCK_EDGES, INF, NAN, assert_same, evaluate, make

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


# --- arguments that are refused ----------------------------------------------------------------------------

S, T, F = torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int8)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, of prototypes and of what it will give up
    NESTED, QUANTISED = torch.nested.nested_tensor([S, S]), torch.quantize_per_tensor(S, 0.1, 0, torch.qint8)
REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "integer rewards": (TypeError, "reward_logits", {"reward_logits": S.long()}),
    "integer propensities": (TypeError, "propensity_logits", {"propensity_logits": T.int()}),
    "boolean rewards": (TypeError, "reward_logits", {"reward_logits": S.bool()}),
    "complex rewards": (TypeError, "reward_logits", {"reward_logits": S.to(torch.complex64)}),
    "complex feedback": (TypeError, "feedback", {"feedback": F.to(torch.complex64)}),
    "complex preference": (TypeError, "preference", {"preference": S.to(torch.complex64)}),
    "feedback of one dimension too few": (
        ValueError,
        r"feedback must have shape \(4, 1\), got \(4,\); use feedback.unsqueeze\(-1\)",
        {"propensity_logits": T[:, :1], "feedback": F[:, 0]},
    ),
    "constants of other K": (ValueError, r"\(4, 2\).*\(2,\) or \(\) for constants", {"propensity_logits": T[0, :1]}),
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
    "misclick that float32 takes for 0": (ValueError, "misclick_rate", {"misclick_rate": 1e-45}),
    "misclick that float32 takes for 1": (ValueError, "misclick_rate", {"misclick_rate": 1 - 1e-9}),
    "misclick beyond floats": (ValueError, "misclick_rate must be .* 1329 bits", {"misclick_rate": 10**400}),
    "normalizer whose inverse is infinite": (ValueError, "normalizer must be finite", {"normalizer": 1e-310}),
    "nested": (TypeError, "reward_logits must be an ordinary dense", {"reward_logits": NESTED}),
    "quantised": (TypeError, "reward_logits must be float32.*qint8", {"reward_logits": QUANTISED}),
    "normalizer beyond floats": (ValueError, "normalizer must be .* 1329 bits", {"normalizer": 10**400}),
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


def test_tensors_without_values_of_their_own_are_refused() -> None:
    """Those of a mesh of processes, and those without data, each with what to do instead."""
    s, t, f = make(8, 1)
    with pytest.raises(TypeError, match="the tensors are meta tensors, which have no values: make them on a device"):
        irm_fast.implicit_rm_loss(s.to("meta"), t.to("meta"), f.to("meta"))

    class DTensor(Tensor):
        """Of the name by which the real ones are known."""

    with pytest.raises(TypeError, match=r"got a DTensor: use propensity_logits.to_local\(\) or .full_tensor\(\)"):
        irm_fast.implicit_rm_loss(s, t.as_subclass(DTensor), f)
    with pytest.raises(TypeError, match="the tensors are meta tensors"), torch.device("meta"):
        hidden, weight, feedback = torch.zeros(8, 4), torch.zeros(4), torch.zeros(8, dtype=torch.int8)
        irm_fast.linear_implicit_rm_loss(hidden, weight, feedback, propensity_weight=torch.zeros(1, 4))
