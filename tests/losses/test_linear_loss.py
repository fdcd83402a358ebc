"""The linear loss against float64: explicit logits, the reference loss, autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from irm_fast.kernels.reference import definition as reference
from torch import Tensor
from torch.nn.functional import linear, logsigmoid

import irm_fast
from tests.losses.loss_cases import INF, NAN
from tests.losses.loss_cases import options as signal_options

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
PROPENSITIES = ("heads", "logits", "constants")
PARAMETERS = ("hidden", "reward_weight", "reward_bias", "propensity_weight", "propensity_bias", "propensity_logits")
Grads = dict[str, Tensor]


@pytest.fixture(autouse=True)
def fresh_memory_holds_nan() -> Iterator[None]:
    """torch.empty fills with NaN: an element that nobody writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make(
    n: int, h: int, k: int, dtype: torch.dtype = F32, *, given: str = "heads", head_dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Tensors of a call, logits of about unit size. `given`: propensity heads, logits or constants."""
    generator = torch.Generator().manual_seed(1000 * n + h + k)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    case = {"hidden": normal(n, h).to(dtype), "reward_weight": normal(h) / h**0.5, "reward_bias": normal()}
    if given == "heads":
        case |= {"propensity_weight": normal(k, h) / h**0.5, "propensity_bias": normal(k)}
    else:
        case["propensity_logits"] = normal(n, k) if given == "logits" else normal(k)
    case = {name: x.to(dtype if head_dtype is None or name == "hidden" else head_dtype) for name, x in case.items()}
    feedback = (normal(n, k) > 0.3).to(torch.int8).masked_fill(normal(n, k) > 1, -1)
    feedback[:1] = torch.arange(k) % 2  # the first row, maybe the only one, says something
    return case | {"feedback": feedback}


def evaluate(case: dict[str, Tensor], upstream: Tensor | float = 1.0, **options: Any) -> tuple[Tensor, Grads]:
    """Loss and the gradient of every parameter, which are views of the case's own storage."""
    leaves = {name: case[name].detach().requires_grad_() for name in PARAMETERS if name in case}
    loss = irm_fast.linear_implicit_rm_loss(**{**case, **leaves}, **options)
    upstream = torch.as_tensor(upstream).expand(loss.shape).to(loss.dtype)
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()], upstream), strict=True))


def logits_of(case: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Reward logits (N,) and propensity logits (N, K) in the dtype of the case."""
    hidden, k = case["hidden"], case["feedback"].shape[1:].numel()
    s = hidden @ case["reward_weight"] + case.get("reward_bias", 0)
    if "propensity_weight" in case:
        return s, hidden @ case["propensity_weight"].T + case.get("propensity_bias", 0)
    t = case["propensity_logits"]
    return s, t.expand(len(s), k) if t.shape == (k,) else t.reshape(len(s), k)


def truth(
    case: dict[str, Tensor],
    upstream: Tensor | float = 1.0,
    *,
    reduction: str = "mean",
    normalizer: Any = None,
    weight: Tensor | None = None,
    **evidence: Any,
) -> tuple[Tensor, Grads]:
    """What `evaluate` should return, in float64."""
    leaves = {name: case[name].detach().double().requires_grad_() for name in PARAMETERS if name in case}
    n = len(leaves["hidden"])
    weight = torch.ones(n) if weight is None else weight
    dropped = weight[:, None] == 0
    s, t = logits_of({**case, **leaves, "hidden": leaves["hidden"].masked_fill(dropped, 0.0)})
    t = t.masked_fill(dropped, 0.0)
    loss = reference.implicit_rm_loss(s, t, case["feedback"].reshape(t.shape), **evidence) * weight
    if reduction != "none":
        loss = loss.sum() / (1 if reduction == "sum" else n if normalizer is None else float(normalizer))
    upstream = torch.as_tensor(upstream).expand(loss.shape).double()
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()], upstream), strict=True))


def check(case: dict[str, Tensor], upstream: Tensor | float = 1.0, *, backend: str | None, **options: Any) -> None:
    """Everything is float32 arithmetic and one rounding away from float64."""
    loss, grads = evaluate(case, upstream, backend=backend, **options)
    want_loss, want = truth(case, upstream, **options)
    assert_close("loss", loss, want_loss, torch.promote_types(case["hidden"].dtype, F32))
    for name in want:
        assert_close(name, grads[name], want[name], case[name].dtype)


def assert_close(
    name: str, got: Tensor, want: Tensor, dtype: torch.dtype, error: float | None = None, *, above: float = 100
) -> None:
    """Within `error`, by default that of float32 sums, and one rounding to `dtype`; the largest entry is far above."""
    assert got.shape == want.shape and got.dtype == dtype, name
    largest = want.abs().max().item()
    if error is None:
        error = (1e-12 if dtype == F64 else 4e-6) * largest
    info = torch.finfo(dtype)
    tolerance = error + 0.5 * info.eps * want.abs() + 0.5 * info.smallest_normal * info.eps
    assert largest >= above * tolerance.max(), f"{name}: the case shows nothing"
    worst = ((got.double() - want).abs() / tolerance).max().item()
    assert worst <= 1, f"{name}: {worst:.2f} times the tolerance"


def every_option(n: int, k: int) -> dict[str, Any]:
    """All evidence at once; nothing contradicts, as misclicks are allowed."""
    generator = torch.Generator().manual_seed(n + k)
    values = signal_options(4)
    return {
        "polarity": (values["polarity"] * 4)[:k],
        "misclick_rate": torch.tensor(values["misclick_rate"] * 4, dtype=F64)[:k],
        "preference": torch.arange(n) % 3 - 1,
        "stratification": tuple(torch.randn(size, dtype=F64, generator=generator) for size in ((n,), (n, k))),
        "weight": torch.rand(n, generator=generator) * (torch.arange(n) % 4 > 0),
    }


# --- sizes and dtypes ----------------------------------------------------------------------------------------------

SIZES = [(1, 1, 1), (2, 3, 2), (1, 64, 16), (77, 64, 3), (101, 1000, 1), (13, 2051, 2), (65, 64, 16)]


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("given", PROPENSITIES)
@pytest.mark.parametrize(("n", "h", "k"), SIZES)
def test_loss_and_gradients(n: int, h: int, k: int, given: str, dtype: torch.dtype, backend: str) -> None:
    check(make(n, h, k, dtype, given=given, head_dtype=F32 if given == "constants" else None), backend=backend)


def test_hidden_states_too_wide_for_one_read(backend: str) -> None:
    case = make(5, 16384, 1, BF16, head_dtype=F32)
    case["hidden"][4, 16383] = 40.0  # the last column counts
    check(case, weight=torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]), backend=backend)


@pytest.mark.parametrize("head_dtype", [F32, BF16, F16, F64], ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_heads_in_another_dtype(dtype: torch.dtype, head_dtype: torch.dtype, backend: str) -> None:
    """Gradients of float64 heads are float32 sums all the same."""
    for given in ("heads",) if head_dtype == F64 else ("heads", "logits"):
        case = make(40, 33, 2, dtype, given=given, head_dtype=head_dtype)
        loss, grads = evaluate(case, backend=backend)
        want_loss, want = truth(case)
        assert_close("loss", loss, want_loss, F32)
        for name, x in want.items():
            assert_close(name, grads[name], x, case[name].dtype, 4e-6 * x.abs().max().item())


def test_heads_of_different_dtypes(backend: str) -> None:
    case = make(40, 33, 2, BF16)
    for name, dtype in (("reward_weight", F32), ("reward_bias", F16), ("propensity_bias", F32)):
        case[name] = case[name].to(dtype)
    check(case, backend=backend)


@pytest.mark.parametrize("given", PROPENSITIES)
@pytest.mark.parametrize("head_dtype", [F64, F32], ids=str)
def test_float64_goes_to_the_reference(head_dtype: torch.dtype, given: str) -> None:
    case = make(40, 33, 2, F64, given=given, head_dtype=head_dtype)
    for backend in (None, "reference"):
        check(case, torch.linspace(-1, 2, 40), reduction="none", backend=backend, **every_option(40, 2))
    for backend in ("cpu", "triton"):
        with pytest.raises(ValueError, match="float64"):
            irm_fast.linear_implicit_rm_loss(**case, backend=backend)


def eager(case: dict[str, Tensor]) -> tuple[Tensor, Grads]:
    """What one would write: stacked heads in the dtype of the hidden states, no signal missing, no misclicks."""
    leaves = {name: case[name].detach().requires_grad_() for name in PARAMETERS if name in case}
    weights = torch.cat([leaves["reward_weight"][None], leaves["propensity_weight"]])
    logits = linear(leaves["hidden"], weights, torch.cat([leaves["reward_bias"][None], leaves["propensity_bias"]]))
    s, t, acted = logits[:, 0], logits[:, 1:], case["feedback"] == 1
    preferred = logsigmoid(s) + torch.where(acted, logsigmoid(t), logsigmoid(-t)).sum(-1)
    loss = -torch.logaddexp(preferred, torch.where(acted.any(-1), -torch.inf, logsigmoid(-s))).mean()
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_at_most_twice_the_error_of_eager(k: int, dtype: torch.dtype, backend: str) -> None:
    case = make(200, 256, k, dtype)
    case["feedback"] = case["feedback"].clamp(0)
    loss, grads = evaluate(case, backend=backend)
    (want_loss, want), (eager_loss, eager_grads) = truth(case), eager(case)
    above = 40 if dtype == BF16 else 100  # its rounding alone is a 256th
    assert_close("loss", loss, want_loss, F32, 2 * (eager_loss - want_loss).abs().item(), above=above)
    for name, x in want.items():
        error = 2 * (eager_grads[name] - x).abs().max().item()
        if x.numel() == 1:  # which eager may hit by luck: terms that cancel leave some last places open
            error = max(error, 4 * torch.finfo(F32).eps * x.abs().item())
        assert_close(name, grads[name], x, dtype, error, above=above)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_constants_in_16_bit_are_rounded_once(dtype: torch.dtype, backend: str) -> None:
    """Their gradient is a sum over rows: of float32 numbers, not of rounded ones."""
    case = make(3000, 1, 2, given="constants", head_dtype=dtype)
    case["hidden"][:] = 1.0  # few different rows, whose roundings do not cancel
    check(case, normalizer=2.0**17, backend=backend)


@pytest.mark.parametrize("given", ["heads", "logits"])
def test_a_loss_scale_lifts_gradients_above_the_floor_of_float16(given: str, backend: str) -> None:
    """The upstream gradient is applied before the rounding."""
    case, scale, normalizer = make(50, 16, 2, F16, given=given), 2.0**18, 2.0**30
    _, grads = evaluate(case, scale, normalizer=normalizer, backend=backend)
    unscaled, want = (truth(case, upstream, normalizer=normalizer)[1] for upstream in (1.0, scale))
    for name, x in want.items():
        assert not unscaled[name].to(F16).any()
        assert_close(name, grads[name], x, F16)


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", PROPENSITIES)
@pytest.mark.parametrize("k", [1, 3, 16])
def test_every_option_at_once(k: int, given: str, backend: str) -> None:
    check(make(150, 20, k, given=given), backend=backend, **every_option(150, k))


@pytest.mark.parametrize("name", ["polarity", "misclick_rate", "preference", "stratification", "weight"])
def test_one_option(name: str, backend: str) -> None:
    case, options = make(90, 20, 2), every_option(90, 2)
    some = {name: options[name], "misclick_rate": options["misclick_rate"]}  # without which options contradict
    check(case, backend=backend, **some)
    assert not torch.allclose(truth(case, **some)[0], truth(case, misclick_rate=some["misclick_rate"] * 0.9)[0])


@pytest.mark.parametrize("given", PROPENSITIES)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_reductions_and_upstream_gradients(dtype: torch.dtype, given: str, backend: str) -> None:
    case, weight = make(80, 33, 2, dtype, given=given, head_dtype=F32), torch.arange(80) % 3 / 2.0
    by_row = torch.linspace(-3, 5, 80)
    for upstream in (1.0, -2.5, by_row, by_row.repeat_interleave(3)[::3]):
        check(case, upstream, reduction="none", weight=weight, backend=backend)
    for reduction in ("sum", "mean"):
        check(case, -2.5, reduction=reduction, weight=weight, backend=backend)


@pytest.mark.parametrize("normalizer", [64, 64.5, torch.tensor(64.5), torch.tensor(64), torch.tensor(64.5, dtype=F64)])
def test_normalizers(normalizer: Any, backend: str) -> None:
    check(make(30, 9, 2), 3.0, normalizer=normalizer, backend=backend)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("given", PROPENSITIES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_row_of_weight_0_reaches_nothing(reduction: str, given: str, bad: float, backend: str) -> None:
    for dtype, h in ((F32, 20), (BF16, 2100)) if given == "heads" else ((F16, 20),):
        case = make(40, h, 2, dtype, given=given, head_dtype=F32)
        weight = (torch.arange(40) % 3).float()
        upstream = torch.linspace(1, 2, 40) if reduction == "none" else 1.0
        case["hidden"][weight == 0, 3:7] = bad
        case["hidden"][9] = bad
        if given == "logits":
            case["propensity_logits"][weight == 0] = bad
        check(case, upstream, reduction=reduction, weight=weight, backend=backend)
        _, grads = evaluate(case, upstream, reduction=reduction, weight=weight, backend=backend)
        assert not grads["hidden"][weight == 0].any()


def test_a_broken_row_that_counts_shows(backend: str) -> None:
    case = make(40, 20, 2)
    clean, _ = evaluate(case, reduction="none", backend=backend)
    case["hidden"][5, 2] = NAN
    loss, grads = evaluate(case, reduction="none", backend=backend)
    assert loss.isnan().nonzero().tolist() == [[5]] and torch.equal(loss[6:], clean[6:])
    assert grads["hidden"][5].isnan().all() and grads["reward_weight"].isnan().all()
    assert grads["hidden"].isnan().any(1).sum() == 1
    assert evaluate(case, backend=backend)[1]["propensity_weight"].isnan().any()


@pytest.mark.parametrize("given", PROPENSITIES)
def test_groups(given: str, backend: str) -> None:
    case, options = make(60, 20, 3, BF16, given=given), every_option(60, 3)
    options["weight"] = torch.ones(60)
    for stratification in (options.pop("stratification"), None):
        loss, groups = irm_fast.linear_implicit_rm_loss(
            **case, **options, stratification=stratification, return_groups=True, backend=backend
        )
        alone = irm_fast.linear_implicit_rm_loss(**case, **options, stratification=stratification, backend=backend)
        evidence = {name: options[name] for name in ("polarity", "misclick_rate", "preference")}
        s, t = stratification or logits_of({n: x.double() for n, x in case.items()})
        want = reference.stratify(s, t, case["feedback"], **evidence)
        assert torch.equal(loss, alone) and groups.dtype == F32 and not groups.requires_grad
        torch.testing.assert_close(groups.double(), want, rtol=1e-5, atol=2e-6)
