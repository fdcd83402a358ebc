"""The weighted pointwise loss on every backend, against its definition in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import irm_fast
from irm_fast.losses.pointwise import pointwise_loss
from tests.losses.loss_cases import BLOCK_EDGES, INF, NAN, assert_same
from tests.poison import fresh_memory

HALF = (torch.bfloat16, torch.float16)


def make(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and both weights, of either sign; every seventh row has none."""
    generator = torch.Generator().manual_seed(seed)
    s, w1, w0 = (torch.randn(n, generator=generator) for _ in range(3))
    w1[::7] = w0[::7] = 0
    return (3 * s).to(dtype), w1, w0


def evaluate(s: Tensor, w1: Tensor, w0: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Row losses and the gradient of their sum, on a detached view that keeps the storage of the logits."""
    s = s.detach().requires_grad_()
    loss = pointwise_loss(s, w1, w0, **{"reduction": "none", **kwargs})
    (ds,) = torch.autograd.grad(loss.sum(), [s])
    return loss.detach(), ds


def definition(s: Tensor, w1: Tensor, w0: Tensor) -> tuple[Tensor, Tensor]:
    """What `evaluate` should give, by autograd in float64."""
    s, w1, w0 = s.detach().double().requires_grad_(), w1.double(), w0.double()
    zero = torch.zeros_like(s)
    rows = w1 * torch.logaddexp(zero, -s) + w0 * torch.logaddexp(zero, s)
    (ds,) = torch.autograd.grad(rows.sum(), [s])
    return rows.detach(), ds


def assert_right(s: Tensor, w1: Tensor, w0: Tensor, backend: str) -> None:
    """Losses and gradients within a few roundings of their two terms, which may cancel."""
    loss_size, _ = definition(s, w1.abs(), w0.abs())
    _, grad_size = definition(s, w1.abs(), -w0.abs())  # terms of one sign: their sizes add up
    sizes = loss_size, grad_size.abs()
    for got, want, size in zip(evaluate(s, w1, w0, backend=backend), definition(s, w1, w0), sizes, strict=True):
        error, allowed = (got.double() - want).abs(), 6e-7 * size + 1e-37
        assert (error <= allowed).all(), (error / allowed).max()


# --- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", (*BLOCK_EDGES, 20_001))
def test_the_definition(n: int, backend: str) -> None:
    s, w1, w0 = make(n, seed=n)
    _, ds = definition(s, w1, w0)
    assert n < 8 or ds.abs().median() > 0.1  # far above what is allowed
    assert_right(s, w1, w0, backend)


def test_the_definition_in_the_tails(backend: str) -> None:
    s = torch.cat([torch.linspace(-110, 110, 4001), torch.tensor([-1e4, 1e4, -1e30, 1e30, 0.0, -0.0, 1e-30])])
    for w1, w0 in ((1, 0), (0, 1), (2.5, -1), (-0.3, -7)):
        assert_right(s, torch.full_like(s, w1), torch.full_like(s, w0), backend)
    # The losing side has full relative accuracy for as long as float32 has numbers.
    s, one, zero = torch.linspace(0, 80, 1001), torch.ones(1001), torch.zeros(1001)
    for got, want in zip(evaluate(s, one, zero, backend=backend), definition(s, one, zero), strict=True):
        assert want.abs().min() < 1e-34
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=0)


def test_labels_give_binary_cross_entropy(backend: str) -> None:
    s, _, _ = make(200)
    y = torch.arange(200).remainder(2).float()
    want = torch.nn.functional.binary_cross_entropy_with_logits(s.double(), y.double())
    torch.testing.assert_close(pointwise_loss(s, y, 1 - y, backend=backend).double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_float32_rounded_once(dtype: torch.dtype, backend: str) -> None:
    s, w1, w0 = make(3000, dtype=dtype)
    for reduction in ("none", "sum"):
        loss, ds = evaluate(s, w1, w0, reduction=reduction, backend=backend)
        want, want_ds = evaluate(s.float(), w1, w0, reduction=reduction, backend=backend)
        assert loss.dtype == torch.float32 and ds.dtype == dtype
        assert torch.equal(loss, want) and torch.equal(ds, want_ds.to(dtype))


def test_a_loss_scale_lifts_small_gradients(backend: str) -> None:
    """float16 ends at 6e-8: rounded before the upstream gradient is applied, these would be 0."""
    s = torch.zeros(64, dtype=torch.float16, requires_grad=True)
    loss = pointwise_loss(s, torch.full((64,), 1e-7), torch.zeros(64), backend=backend)
    (ds,) = torch.autograd.grad(loss * 2.0**20, s)
    torch.testing.assert_close(ds, torch.full((64,), -0.5e-7 / 64 * 2**20).half())


@pytest.mark.parametrize("dtype", (*HALF, torch.float64), ids=str)
def test_weights_of_other_dtypes(dtype: torch.dtype, backend: str) -> None:
    s, w1, w0 = make(50)
    w1, w0 = w1.to(dtype), w0.to(dtype)
    assert_same(evaluate(s, w1, w0, backend=backend), evaluate(s, w1.float(), w0.float(), backend=backend), exact=True)


def test_float64_goes_to_the_reference() -> None:
    s, w1, w0 = (x.double() for x in make(300))
    s = 10 * s
    for got, want in zip(evaluate(s, w1, w0), definition(s, w1, w0), strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-15)
    with pytest.raises(ValueError, match="float64"):
        pointwise_loss(s, w1, w0, backend="cpu")


def test_a_row_without_weights_contributes_nothing(backend: str) -> None:
    s, w1, w0 = make(40)
    s[::7] = torch.tensor([NAN, INF, -INF, 1e38, -1e38, 0.0])
    w0[7] = -0.0
    loss, ds = evaluate(s, w1, w0, backend=backend)
    assert (loss[::7] == 0).all() and (ds[::7] == 0).all()
    assert loss.isfinite().all() and loss.abs().sum() > 1
    total = pointwise_loss(s, w1, w0, reduction="sum", backend=backend)
    torch.testing.assert_close(total, loss.sum())


def test_what_is_not_finite_shows(backend: str) -> None:
    s = torch.tensor([NAN, INF, -INF, INF, -INF, 0.0, 0.0, 0.0])
    w1 = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, NAN, INF, 1.0])
    w0 = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, -INF])
    loss, ds = evaluate(s, w1, w0, backend=backend)
    assert loss[:6].isnan().all() and ds[:6].isnan().all()
    assert not loss[6:].isfinite().any() and not ds[6:].isfinite().any()


# --- reductions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalizer", [None, 64, 64.5, torch.tensor(64)])
def test_reductions(normalizer: Any, backend: str) -> None:
    s, w1, w0 = make(9001)
    rows, ds = definition(s, w1, w0)
    divisor = 9001 if normalizer is None else float(normalizer)
    loss, grad = evaluate(s, w1, w0, reduction="sum", backend=backend)
    tolerance: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
    assert loss.shape == () and rows.sum().abs() > 1 and ds.abs().max() > 0.1
    torch.testing.assert_close(loss.double(), rows.sum(), rtol=0, atol=1e-7 * rows.abs().sum().item())
    torch.testing.assert_close(grad.double(), ds, **tolerance)
    mean, grad = evaluate(s, w1, w0, reduction="mean", normalizer=normalizer, backend=backend)
    torch.testing.assert_close(mean * divisor, loss, **tolerance)
    torch.testing.assert_close(grad.double() * divisor, ds, **tolerance)


def test_no_rows(backend: str) -> None:
    s, none = torch.zeros(0, requires_grad=True), torch.zeros(0)
    total = pointwise_loss(s, none, none, reduction="sum", backend=backend)
    assert total.item() == 0 and total.shape == ()
    assert torch.autograd.grad(total, s)[0].shape == (0,)
    assert pointwise_loss(s, none, none, reduction="none", backend=backend).shape == (0,)
    assert pointwise_loss(s, none, none, normalizer=4, backend=backend).item() == 0
    with pytest.raises(ValueError, match="no rows"):
        pointwise_loss(s, none, none, backend=backend)


# --- memory, bits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", (1, 2, 3, 5))
@pytest.mark.parametrize("start", (0, 1))
def test_any_memory_layout(start: int, step: int, dtype: torch.dtype, backend: str) -> None:
    def place(x: Tensor) -> Tensor:
        return x.new_full((start + step * len(x),), NAN)[start::step].copy_(x)

    s, w1, w0 = make(333, dtype=dtype)
    got = evaluate(place(s), place(w1), place(w0), backend=backend)
    assert_same(got, evaluate(s, w1, w0, backend=backend), exact=True)


def test_expanded_inputs(backend: str) -> None:
    s, w1, w0 = torch.tensor([0.3]), torch.tensor([2.0]), torch.tensor([-0.5])
    want = tuple(x.expand(300) for x in definition(s, w1, w0))
    got = evaluate(s.expand(300), w1.expand(300), w0.expand(300), backend=backend)
    assert_same(tuple(x.double() for x in got), want)


def test_outputs_are_written_whole(backend: str) -> None:
    """Fresh memory is filled with NaN: an element that is never written shows."""

    def compute() -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for n in (1, 300, 9001):
            s, w1, w0 = make(n)
            for reduction in ("none", "sum"):
                results += evaluate(s, w1, w0, reduction=reduction, backend=backend)
                results.append(pointwise_loss(s, w1, w0, reduction=reduction, backend=backend))
        return tuple(results)

    with fresh_memory(filled=False):
        want = compute()
    got = compute()  # on memory that is filled, as in every test here
    assert_same(got, want, exact=True)
    assert all(torch.isfinite(x).all() for x in got)


def test_the_same_input_gives_the_same_bits(backend: str) -> None:
    s, w1, w0 = make(20_001)
    first = evaluate(s, w1, w0, reduction="sum", backend=backend)
    for _ in range(30):
        assert_same(evaluate(s, w1, w0, reduction="sum", backend=backend), first, exact=True)


def test_threads_do_not_change_the_bits() -> None:
    if irm_fast.backends()["cpu"] != "available":
        pytest.skip(irm_fast.backends()["cpu"])
    s, w1, w0 = make(300_001)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            results.append(evaluate(s, w1, w0, reduction="sum", backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same(other, results[0], exact=True)
