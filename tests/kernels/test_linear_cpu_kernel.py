"""The C++ kernels of the linear loss, called directly, against float64 heads and the reference loss.

Errors are bounded by what float32 itself costs: twice the error of the same heads in eager float32, with the loss and
its gradient in float64 even there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from irm_fast.kernels.reference import definition as reference
from torch import Tensor

import irm_fast
from irm_fast.losses.checks import signal_constants
from tests.losses.loss_cases import INF, NAN, options

if irm_fast.backends()["cpu"] != "available":
    pytest.skip(irm_fast.backends()["cpu"], allow_module_level=True)

from irm_fast.kernels.batch import Batch
from irm_fast.kernels.cpu.linear_implicit_rm import linear_hidden_grad, linear_implicit_rm_forward

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1), (2, 3, 2), (7, 17, 1), (65, 64, 3), (33, 1000, 4), (257, 1024, 1), (130, 1024, 16), (9, 20000, 1)]
CPU = torch.device("cpu")


def make(n: int, width: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    feedback = (torch.rand(n, k) < 0.4).to(torch.int8)
    return {
        "hidden": torch.randn(n, width).to(dtype),
        "heads": torch.randn(k + 1, width) * 1.5 / width**0.5,
        "bias": torch.randn(k + 1),
        "propensity": None,
        "feedback": feedback.masked_fill(torch.rand(n, k) < 0.15, -1),
    }


def every_option(n: int, k: int) -> dict[str, Any]:
    keep = torch.rand(n) < 0.8
    return {
        "polarity": (options(4)["polarity"] * 4)[:k],
        "misclick_rate": (options(4)["misclick_rate"] * 4)[:k],
        "preference": torch.randint(-1, 2, (n,)),
        "stratification": (torch.randn(n).to(torch.bfloat16), torch.randn(k, n).T),
        "weight": torch.rand(n) * keep,
        "scale": 0.37,
    }


def run(case: dict[str, Any], **settings: Any) -> tuple[Tensor, ...]:
    tensors = {**case, **{name: settings.pop(name) for name in case if name in settings}}
    feedback = tensors.pop("feedback")
    constants = signal_constants(settings.pop("polarity", None), settings.pop("misclick_rate", None), feedback.shape[1])
    posterior = settings.pop("stratification", None) or (None, None)
    need = (settings.pop("need_logit_grads", True), settings.pop("need_weight_grad", True))
    defaults = {"preference": None, "weight": None, "scale": 1.0, "per_row": True, "need_groups": True}
    batch = Batch(
        feedback=feedback,
        reward_strat=posterior[0],
        propensity_strat=posterior[1],
        polarity=constants[0],
        misclick_rate=constants[1],
        backend=None,
        **{**defaults, **settings},
    )
    loss, grad_logits, grad_parameters, groups = linear_implicit_rm_forward(**tensors, batch=batch, need=need)
    if grad_parameters is not None:
        heads = tensors["heads"]
        if grad_logits is not None:
            torch.testing.assert_close(grad_parameters[heads.numel() :], grad_logits.sum(0), equal_nan=True)
        grad_parameters = grad_parameters[: heads.numel()].view(heads.shape)
    return loss, grad_logits, grad_parameters, groups


def truth(
    case: dict[str, Any], dtype: torch.dtype = torch.float64, *, weight: Tensor | None = None, scale=1.0, **settings
) -> tuple[Tensor, ...]:
    """What `run` returns, by matrix products in `dtype` and autograd."""
    hidden, heads = case["hidden"].to(dtype), case["heads"].to(dtype, copy=True).requires_grad_()
    weight = torch.ones(len(hidden)) if weight is None else weight
    hidden = torch.where(weight[:, None] == 0, hidden.nan_to_num(0, 0, 0), hidden)
    logits = hidden @ heads.T + case["bias"].to(dtype)
    if case["propensity"] is not None:
        logits = torch.cat([logits, case["propensity"].to(dtype)], 1)
    logits.retain_grad()
    rows = reference.implicit_rm_loss(logits[:, 0], logits[:, 1:], case["feedback"], **settings) * weight * scale
    rows.sum().backward()
    s, t = settings.pop("stratification", None) or (logits[:, 0].detach(), logits[:, 1:].detach())
    return rows.detach(), logits.grad, heads.grad, reference.stratify(s, t, case["feedback"], **settings)


def assert_close(got: Tensor, want: Tensor, eager: Tensor) -> None:
    assert got.shape == want.shape and got.dtype == torch.float32 and got.is_contiguous()
    if want.numel():
        largest = want.abs().max()
        tolerance = 2 * (eager - want).abs().max() + 2e-6 * largest
        assert tolerance < 1e-3 * largest, "the case shows nothing"
        assert (got - want).abs().max() <= tolerance


def check(case: dict[str, Any], **settings: Any) -> None:
    got, want, eager = run(case, **settings), truth(case, **settings), truth(case, torch.float32, **settings)
    for results in zip(got, want, eager, strict=True):
        assert_close(*results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "width", "k"), SHAPES)
def test_loss_and_gradients(n: int, width: int, k: int, dtype: torch.dtype) -> None:
    check(make(n, width, k, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 3, 16])
def test_every_option_at_once(k: int, dtype: torch.dtype) -> None:
    check(make(200, 70, k, dtype), **every_option(200, k))


@pytest.mark.parametrize("name", ["preference", "stratification", "weight", "scale"])
def test_one_option(name: str) -> None:
    check(make(200, 70, 2), misclick_rate=0.1, **{name: every_option(200, 2)[name]})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [False, True])
def test_given_propensities(dtype: torch.dtype, constant: bool) -> None:
    case = make(300, 50, 3)
    case["heads"], case["bias"] = case["heads"][:1], case["bias"][:1]
    logits = torch.randn(3).expand(300, 3) if constant else torch.randn(3, 300).T
    check({**case, "propensity": logits.to(dtype).expand(300, 3) if not constant else logits}, **every_option(300, 3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_feedback_of_any_width_and_stride(dtype: torch.dtype) -> None:
    case = make(150, 20, 3)
    signed = dtype not in (torch.bool, torch.uint8)
    feedback = (case["feedback"] if signed else case["feedback"].clamp(0)).to(dtype)
    for strided in (feedback.T.contiguous().T, feedback.repeat(1, 2)[:, :3], feedback[:1].expand(150, 3)):
        check({**case, "feedback": strided}, preference=torch.randint(-1, 2, (300,))[::2], misclick_rate=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_states_with_any_row_stride(dtype: torch.dtype) -> None:
    case = make(70, 40, 2, dtype)
    want = run(case)
    packed = torch.full((280, 83), NAN, dtype=dtype)
    packed[::4, 3:43] = case["hidden"]
    for got, expected in zip(run({**case, "hidden": packed[::4, 3:43]}), want, strict=True):
        assert torch.equal(got, expected)
    check({**case, "hidden": case["hidden"][:1].expand(70, 40)})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_row_of_weight_zero_reaches_nothing(bad: float, dtype: torch.dtype) -> None:
    case, settings = make(150, 100, 2, dtype), every_option(150, 2)
    case["hidden"][settings["weight"] == 0] = bad
    got, want = run(case, **settings), truth(case, **settings)
    assert (settings["weight"] == 0).sum() > 10 and not got[0][settings["weight"] == 0].any()
    for results in zip(got[:3], want, truth(case, torch.float32, **settings), strict=False):
        assert_close(*results)


def test_a_broken_row_that_counts_shows() -> None:
    case = make(100, 40, 2)
    case["hidden"][5] = NAN
    loss, grad_logits, grad_heads, _ = run(case)
    assert loss.isnan().nonzero().tolist() == [[5]] and grad_logits[5, 0].isnan() and grad_heads.isnan().all()
    case = make(100, 40, 2)
    case["feedback"][5] = 1
    loss, grad_logits, grad_heads, _ = run(case, polarity=[1, -1])  # both sides, and no misclick allowed
    assert loss[5] == INF and grad_logits[5].isnan().all() and grad_heads.isnan().all()


def test_no_rows() -> None:
    loss, grad_logits, grad_heads, groups = run(make(0, 30, 2), per_row=False)
    assert loss == 0 and grad_logits.shape == (0, 3) and groups.shape == (0, 2, 4)
    assert torch.equal(grad_heads, torch.zeros(3, 30))
    assert linear_hidden_grad(grad_logits, torch.ones(()), torch.ones(3, 30), torch.bfloat16).shape == (0, 30)


def test_only_what_is_needed() -> None:
    case = make(500, 130, 2)
    want = run(case)
    for needs in [(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)]:
        names = ("need_logit_grads", "need_weight_grad", "need_groups")
        loss, *rest = run(case, **dict(zip(names, needs, strict=True)))
        assert torch.equal(loss, want[0])
        for needed, got, expected in zip(needs, rest, want[1:], strict=True):
            assert torch.equal(got, expected) if needed else got is None
    total = run(case, per_row=False)[0]
    assert total.shape == () and total.item() == pytest.approx(want[0].double().sum().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"feedback": torch.full((40, 2), 2)}, "feedback"),
        ({"preference": torch.full((40,), 256)}, "preference"),
        ({"weight": torch.full((40,), -1.0)}, "weight"),
        ({"weight": torch.full((40,), NAN)}, "weight"),
    ],
)
def test_impossible_values(settings: dict[str, Tensor], text: str) -> None:
    case = make(40, 20, 2)
    case["feedback"] = settings.pop("feedback", case["feedback"])
    with pytest.raises(ValueError, match=text):
        run(case, **settings)


def test_the_same_bits_for_any_number_of_threads() -> None:
    case, upstream = make(9001, 301, 2), torch.rand(9001)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 8, 1):
            torch.set_num_threads(n)
            got = run(case, per_row=False)
            results.append((*got, linear_hidden_grad(got[1], upstream, case["heads"], torch.float32)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


# --- the gradient of the hidden states -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "width", "k"), SHAPES)
def test_hidden_grad(n: int, width: int, k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    grad_logits, heads = torch.randn(n, k + 1), torch.randn(k + 1, width)
    unit = torch.finfo(dtype).eps / 2
    for upstream in (torch.tensor(0.3), torch.rand(n), torch.tensor(0.3).expand(n)):
        for m in (k + 1, 1):  # all heads; the reward head alone
            got = linear_hidden_grad(grad_logits, upstream, heads[:m], dtype)
            factors = grad_logits[:, :m].double() * (upstream[:, None] if upstream.dim() else upstream)
            want = factors @ heads[:m].double()
            magnitude = factors.abs() @ heads[:m].double().abs()  # of the terms: what float32 sums are relative to
            assert got.shape == (n, width) and got.dtype == dtype and got.is_contiguous()
            assert ((got - want).abs() <= unit * want.abs() + (m + 2) * 2**-24 * magnitude + 2**-25).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_as_torch_does(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1 << 17,), dtype=torch.int32)
    exact = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)  # every 16-bit number, and the middles between
    exact = torch.cat([exact.view(torch.bfloat16).float(), exact.view(torch.float16).float()])
    middles = (exact.view(torch.int32)[:, None] + torch.tensor([-1, 0, 1, 4095, 4096, 4097, 32767, 32768, 32769])).int()
    heads = torch.cat([bits, middles.flatten(), torch.arange(7, dtype=torch.int32)]).view(torch.float32)[None]
    got = linear_hidden_grad(torch.ones(3, 1), torch.ones(()), heads, dtype)
    assert heads.isnan().sum() > 100 and heads.isinf().any()
    torch.testing.assert_close(got, heads.to(dtype).expand(3, -1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [5, 64])
def test_widening_of_every_16_bit_number(dtype: torch.dtype, width: int) -> None:
    column = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    case = make(1 << 16, width, 1)
    case |= {"hidden": torch.zeros(1 << 16, width, dtype=dtype), "heads": torch.ones(1, width), "bias": torch.zeros(1)}
    case["hidden"][:, 3] = column
    propensity = torch.zeros(()).expand(1 << 16, 1)
    got = run({**case, "propensity": propensity})[0]
    want = irm_fast.implicit_rm_loss(column.float(), propensity, case["feedback"], reduction="none", backend="cpu")
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
