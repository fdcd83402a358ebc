"""The weighted pointwise loss under autograd and torch.compile, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from irm_fast.losses.pointwise import pointwise_loss
from tests.losses.loss_cases import assert_same
from tests.losses.test_pointwise import evaluate, make


def test_upstream_gradients_need_not_be_uniform(backend: str) -> None:
    s, w1, w0 = make(300)
    _, ds = evaluate(s, w1, w0, backend=backend)
    s.requires_grad_()
    upstream = torch.linspace(-3, 5, 300)
    loss = pointwise_loss(s, w1, w0, reduction="none", backend=backend)
    assert_same(torch.autograd.grad(loss, [s], upstream), (ds * upstream,))
    total = pointwise_loss(s, w1, w0, reduction="sum", backend=backend)
    assert_same(torch.autograd.grad(total * -2.5, [s]), (ds * -2.5,))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_second_backward_gives_the_same(reduction: Any, backend: str) -> None:
    s, w1, w0 = make(50)
    inputs = [x.clone() for x in (s, w1, w0)]
    loss = pointwise_loss(s.requires_grad_(), w1, w0, reduction=reduction, backend=backend).sum() * 3
    first = torch.autograd.grad(loss, [s], retain_graph=True)[0].clone()
    assert first.abs().max() > 1e-3 and torch.equal(torch.autograd.grad(loss, [s])[0], first)
    assert all(map(torch.equal, (s, w1, w0), inputs))


@pytest.mark.parametrize("compiled", (False, True))
def test_double_backward_is_an_error(compiled: bool, backend: str) -> None:
    s, w1, w0 = make(20)
    torch._dynamo.reset()
    loss = torch.compile(pointwise_loss, fullgraph=True, backend="eager") if compiled else pointwise_loss
    value = loss(s.requires_grad_(), w1, w0, backend=backend)
    with pytest.raises(RuntimeError, match=r"pointwise_loss .* twice .*; irm_fast\.reference\.pointwise_loss can$"):
        torch.autograd.grad(value, s, create_graph=True)


def test_gradcheck() -> None:
    s, w1, w0 = (x.double() for x in make(15))
    for reduction in ("none", "sum", "mean"):
        assert torch.autograd.gradcheck(lambda x: pointwise_loss(x, w1, w0, reduction=reduction), s.requires_grad_())  # noqa: B023


def test_without_gradients(backend: str) -> None:
    s, w1, w0 = make(30)
    want = pointwise_loss(s, w1, w0, backend=backend)
    with torch.no_grad():
        got = pointwise_loss(s.requires_grad_(), w1, w0, backend=backend)
    assert torch.equal(got, want) and not got.requires_grad and not want.requires_grad


@pytest.mark.parametrize("how", ("aot_eager", "inductor"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    "options", ({}, {"reduction": "none"}, {"normalizer": 7.5}), ids=("mean", "rows", "normalizer")
)
def test_the_whole_graph_compiles(options: dict[str, Any], dtype: torch.dtype, how: str, backend: str) -> None:
    def run(s: Tensor, w1: Tensor, w0: Tensor) -> Tensor:
        return pointwise_loss(s * 1.5, w1, 1 - w0, backend=backend, **options)

    torch._dynamo.reset()
    s, w1, w0 = make(33, dtype=dtype)
    s.requires_grad_()
    want, got = run(s, w1, w0), torch.compile(run, fullgraph=True, backend=how)(s, w1, w0)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(loss.sum(), s)[0] for loss in (want, got)]
    assert grads[0].abs().max() > 1e-2
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("per_row", (False, True))
@pytest.mark.parametrize("scale", (None, 0.5))
def test_opcheck(per_row: bool, scale: float | None, backend: str) -> None:
    s, w1, w0 = make(9)
    for need_grad in (True, False):
        arguments = (s.requires_grad_(need_grad), w1, w0, scale, per_row, backend, need_grad)
        torch.library.opcheck(torch.ops.irm_fast.pointwise.default, arguments)


FOUR = torch.ones(4)
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a column": ({"reward_logits": torch.ones(4, 1)}, ValueError, r"reward_logits.*\(4, 1\); use .*squeeze\(-1\)"),
    "integer logits": ({"reward_logits": FOUR.int()}, TypeError, "reward_logits must be float32"),
    "a list": ({"reward_logits": [1.0] * 4}, TypeError, r"reward_logits must be a torch\.Tensor, got list"),
    "a number": ({"positive_weight": 1.0}, TypeError, r"positive_weight must be a torch\.Tensor, got float"),
    "integers": ({"negative_weight": FOUR.int()}, TypeError, "negative_weight must be float32"),
    "one for all": ({"positive_weight": torch.tensor(1.0)}, ValueError, r"positive_weight must have shape \(4,\)"),
    "one too few": ({"negative_weight": FOUR[:3]}, ValueError, r"negative_weight must have shape \(4,\), got \(3,\)"),
    "elsewhere": ({"positive_weight": FOUR.to("meta")}, ValueError, "positive_weight is on meta"),
    "a parameter": ({"negative_weight": FOUR.clone().requires_grad_()}, ValueError, "negative_weight must not require"),
    "no reduction": ({"reduction": "max"}, ValueError, "reduction must be one of"),
    "two of them": ({"reduction": "sum", "normalizer": 2}, ValueError, "normalizer replaces N"),
    "normalizer 0": ({"normalizer": 0}, ValueError, "normalizer must be finite and above 0"),
    "no backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    changed, error, message = REFUSED[name]
    arguments = {"reward_logits": FOUR, "positive_weight": FOUR, "negative_weight": FOUR, **changed}
    with pytest.raises(error, match=message):
        pointwise_loss(**arguments)
