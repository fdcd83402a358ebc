"""Function transforms: `torch.func.grad` gives what autograd gives; `vmap` and second derivatives are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import irm_fast
from irm_fast import baselines
from tests.losses.loss_cases import make

N, K, H = 12, 2, 24


def cases(backend: str) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Each loss as a function of its differentiable inputs, and the inputs."""
    s, t, feedback = make(N, K)
    generator = torch.Generator().manual_seed(0)
    hidden, heads = torch.randn(N, H, generator=generator), torch.randn(K + 1, H, generator=generator)
    weights = torch.rand(2, N, generator=generator)

    def linear(hidden: Tensor, heads: Tensor, reduction: Any) -> Tensor:
        return irm_fast.linear_implicit_rm_loss(
            hidden, heads[0], feedback, propensity_weight=heads[1:], reduction=reduction, backend=backend
        ).sum()

    return {
        "implicit_rm_loss": (lambda s, t: irm_fast.implicit_rm_loss(s, t, feedback, backend=backend), (s, t)),
        "linear_implicit_rm_loss": (lambda h, w: linear(h, w, "mean"), (hidden, heads)),
        "linear_implicit_rm_loss, by row": (lambda h, w: linear(h, w, "none"), (hidden, heads)),
        "pointwise_loss": (lambda s: baselines.pointwise_loss(s, *weights, backend=backend), (s,)),
    }


NAMES = list(cases("reference"))


@pytest.mark.parametrize("name", NAMES)
def test_grad(name: str, backend: str) -> None:
    loss, inputs = cases(backend)[name]
    leaves = [x.clone().requires_grad_() for x in inputs]
    want = torch.autograd.grad(loss(*leaves), leaves)
    got = grad(loss, argnums=tuple(range(len(inputs))))(*inputs)
    for one, other in zip(got, want, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_refused_by_name(name: str, backend: str) -> None:
    loss, inputs = cases(backend)[name]
    public = name.partition(",")[0]
    batched = [torch.stack([x, x]) for x in inputs]
    for call in (loss, grad(loss)):
        with pytest.raises(RuntimeError, match=rf"{public} does not support torch\.func\.vmap.*irm_fast\.reference"):
            vmap(call)(*batched)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_refused(name: str, backend: str) -> None:
    loss, inputs = cases(backend)[name]
    first, *rest = inputs
    with pytest.raises(RuntimeError, match="differentiated twice"):
        grad(lambda x: grad(loss)(x, *rest).square().sum())(first)
    leaf = first.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="differentiated twice"):
        grad(loss)(leaf, *rest).square().sum().backward()
