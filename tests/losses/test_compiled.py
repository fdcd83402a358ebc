"""The public operations under torch.compile, and their operators by PyTorch's own checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import irm_fast
import irm_fast.losses.implicit
import irm_fast.losses.linear  # both register their operators
from tests.losses.loss_cases import make

RATES = [0.05, 0.2]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rows": {"reduction": "none"},
    "normalizer": {"normalizer": torch.tensor(7.0)},
    "misclicks": {"polarity": [1, -1], "misclick_rate": RATES},
    "everything": {"polarity": [1, -1], "misclick_rate": RATES, "preference": True, "weight": True, "teacher": True},
}


def options(case: str, n: int) -> dict[str, Any]:
    settings = dict(CASES[case])
    generator = torch.Generator().manual_seed(1)
    if settings.pop("teacher", False):
        settings["stratification"] = torch.randn(n, generator=generator), torch.randn(n, 2, generator=generator)
    if "preference" in settings:
        settings["preference"] = torch.randint(-1, 2, (n,), generator=generator)
        settings["weight"] = torch.rand(n, generator=generator)
    return settings


def loss_inputs(n: int) -> tuple[tuple[Tensor, ...], Tensor]:
    s, t, f = make(n, 2)
    return (s.requires_grad_(), t.requires_grad_()), f


def linear_inputs(n: int, width: int = 24) -> tuple[tuple[Tensor, ...], Tensor]:
    generator = torch.Generator().manual_seed(n)
    shapes = ((n, width), (width,), (), (2, width), (2,))
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes), make(n, 2)[2]


def loss(leaves: tuple[Tensor, ...], feedback: Tensor, **settings: Any) -> Tensor:
    s, t = leaves
    return irm_fast.implicit_rm_loss(s * 1.5, t - 0.5, feedback, **settings)


def linear_loss(leaves: tuple[Tensor, ...], feedback: Tensor, **settings: Any) -> Tensor:
    hidden, weight, bias, propensity_weight, propensity_bias = leaves
    return irm_fast.linear_implicit_rm_loss(
        hidden * 1.5,
        weight,
        feedback,
        reward_bias=bias,
        propensity_weight=propensity_weight,
        propensity_bias=propensity_bias,
        **settings,
    )


OPERATIONS = {"loss": (loss, loss_inputs), "linear": (linear_loss, linear_inputs)}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_whole_graph_compiles(operation: str, case: str, backend: str) -> None:
    function, inputs = OPERATIONS[operation]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves, feedback = inputs(33)
    settings = {**options(case, 33), "backend": backend}
    results = []
    for run in (function, compiled):
        value = run(leaves, feedback, **settings)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), leaves)))
    assert any(grad.abs().max() > 1e-3 for grad in results[0][1:])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_new_batch_size_does_not_compile_anew(operation: str) -> None:
    function, inputs = OPERATIONS[operation]
    counter = CompileCounterWithBackend("aot_eager")
    compiled: Callable = torch.compile(function, fullgraph=True, backend=counter)
    for n in (33, 64, 128, 1000, 7):
        leaves, feedback = inputs(n)
        compiled(leaves, feedback).backward()
    assert counter.frame_count <= 2  # one for the first size, one for all sizes


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_new_normalizer_does_not_compile_anew(operation: str) -> None:
    function, inputs = OPERATIONS[operation]
    counter = CompileCounterWithBackend("aot_eager")
    compiled: Callable = torch.compile(function, fullgraph=True, backend=counter)
    leaves, feedback = inputs(33)
    for normalizer in (40, 57, 64.5, 71.5, 90.25):
        got = compiled(leaves, feedback, normalizer=normalizer)
        torch.testing.assert_close(got, function(leaves, feedback, normalizer=normalizer))
    assert counter.frame_count <= 4  # integers and floats, each once as a constant and once as a variable


@pytest.mark.parametrize("operation", OPERATIONS)
def test_double_backward_is_an_error_when_compiled(operation: str) -> None:
    function, inputs = OPERATIONS[operation]
    leaves, feedback = inputs(20)
    value = torch.compile(function, fullgraph=True, backend="eager")(leaves, feedback)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(value, leaves, create_graph=True)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_inductor_compiles_it_and_half_precision(operation: str) -> None:
    function, inputs = OPERATIONS[operation]
    leaves, feedback = inputs(65)
    leaves = tuple(x.detach().bfloat16().requires_grad_() for x in leaves)
    value = torch.compile(function, fullgraph=True)(leaves, feedback)
    grads = torch.autograd.grad(value, leaves)
    want = function(leaves, feedback)
    torch.testing.assert_close(value, want)
    for got, expected in zip(grads, torch.autograd.grad(want, leaves), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, expected)


def test_groups_carry_no_gradient_when_compiled() -> None:
    (s, t), feedback = loss_inputs(20)
    compiled = torch.compile(irm_fast.implicit_rm_loss, fullgraph=True, backend="aot_eager")
    _, groups = compiled(s, t, feedback, return_groups=True)
    assert not groups.requires_grad
    torch.testing.assert_close(groups, irm_fast.stratify(s, t, feedback))
    stratify = torch.compile(irm_fast.stratify, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(stratify(s, t, feedback), groups)


def test_a_checkpointed_region_is_the_same() -> None:
    """Non-reentrant checkpointing packs what is saved for backward: nothing may bypass it."""
    leaves, feedback = linear_inputs(40)
    want = torch.autograd.grad(linear_loss(leaves, feedback), leaves)
    again = torch.utils.checkpoint.checkpoint(linear_loss, leaves, feedback, use_reentrant=False)
    for got, expected in zip(torch.autograd.grad(again, leaves), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


PLAIN = ([1.0, 1.0], [0.0, 0.0])


@pytest.mark.parametrize(("per_row", "scale"), [(False, 0.5), (True, None)], ids=("mean", "rows"))
def test_opcheck(per_row: bool, scale: float | None, backend: str) -> None:
    """Schema, fake tensors, registration of autograd and tracing, with inputs that require gradients."""
    rest = (None, None, None, None, *PLAIN, scale, per_row, True, backend)
    (s, t), feedback = loss_inputs(9)
    torch.library.opcheck(torch.ops.irm_fast.implicit_rm.default, (s, t, feedback, *rest, True, True))
    (hidden, *_), feedback = linear_inputs(9)
    linear = torch.ops.irm_fast.linear_implicit_rm.default
    for heads, biases in ((3, 3), (1, 3)):  # of three logits; of the reward, with constant propensities
        parameters = torch.randn(heads * 24 + biases, requires_grad=True)
        torch.library.opcheck(linear, (hidden, parameters, None, feedback, *rest, True, True, False))
    parameters = torch.randn(24 + 1, requires_grad=True)  # of the reward, where propensity logits are given
    torch.library.opcheck(linear, (hidden, parameters, t, feedback, *rest, True, True, True))


def test_opcheck_of_the_backward_operators(backend: str) -> None:
    grad_logits, heads = torch.randn(9, 3), torch.randn(3, 24)
    hidden, weight = torch.randn(9, 24), torch.rand(9)
    for upstream in (torch.tensor(2.0), torch.randn(9)):
        arguments = (grad_logits, upstream, heads, torch.bfloat16, backend)
        torch.library.opcheck(torch.ops.irm_fast.linear_hidden_grad.default, arguments)
    torch.library.opcheck(torch.ops.irm_fast.linear_weight_grad.default, (hidden, grad_logits, weight, 3, backend))
