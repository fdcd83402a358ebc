"""What the linear loss promises beside accuracy: layouts, work that is skipped, autograd."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import irm_fast
from irm_fast.losses import linear as linear_ops
from irm_fast.losses.dispatch import choose_backend
from tests.losses.loss_cases import NAN
from tests.losses.test_linear_loss import (
    BF16,
    F16,
    F32,
    F64,
    PARAMETERS,
    PROPENSITIES,
    check,
    evaluate,
    every_option,
    make,
)

# --- shapes and layouts --------------------------------------------------------------------------------------------


def in_a_larger_one(x: Tensor) -> Tensor:
    """Every third row and the middle columns of a tensor full of NaN."""
    packed = x.new_full((3 * len(x), x.shape[1] + 5), NAN)
    return packed[2::3, 3:-2].copy_(x)


def transposed(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def every_second_column(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 1)[:, ::2]


def misaligned(x: Tensor) -> Tensor:
    return x.new_zeros(x.numel() + 1)[1:].view_as(x).copy_(x)


@pytest.mark.parametrize("layout", [in_a_larger_one, transposed, every_second_column, misaligned])
@pytest.mark.parametrize(("h", "dtype"), [(1, F32), (33, F32), (33, BF16), (64, F16)])
def test_hidden_states_in_any_layout(h: int, dtype: torch.dtype, layout: Callable, backend: str) -> None:
    case = make(40, h, 2, dtype)
    for reduction in ("sum", "none"):
        want = evaluate(case, reduction=reduction, backend=backend)
        got = evaluate({**case, "hidden": layout(case["hidden"])}, reduction=reduction, backend=backend)
        if reduction == "none" and h == 1:
            # The weights' gradient is then a product by BLAS, whose order may hang on the stride of a vector.
            for name in ("reward_weight", "propensity_weight"):
                torch.testing.assert_close(got[1][name], want[1][name], rtol=1e-6, atol=1e-6)
                got[1][name] = want[1][name]
        assert_identical(got, want)
        assert got[1]["hidden"].is_contiguous()


@pytest.mark.parametrize("given", PROPENSITIES)
def test_everything_else_in_any_layout(given: str, backend: str) -> None:
    case, options = make(40, 16, 3, given=given), every_option(40, 3)
    want = evaluate(case, reduction="none", backend=backend, **options)

    def spread(x: Tensor) -> Tensor:  # every stride is odd
        wide = x.new_zeros([2 * n + 1 for n in x.shape])
        return wide[tuple(slice(1, None, 2) for _ in x.shape)].copy_(x)

    case = {name: x if name == "hidden" else spread(x) for name, x in case.items()}
    options |= {name: spread(options[name]) for name in ("preference", "weight")}
    options["stratification"] = tuple(spread(x.float()) for x in options["stratification"])
    assert_identical(evaluate(case, reduction="none", backend=backend, **options), want)


def assert_identical(got: tuple[Tensor, dict], want: tuple[Tensor, dict]) -> None:
    assert torch.equal(got[0], want[0])
    for name, x in want[1].items():
        assert torch.equal(got[1][name], x), name


def test_last_tokens_of_packed_states(backend: str) -> None:
    """The gradient reaches the rows that were read, and no others."""
    case = make(30, 16, 2, BF16)
    packed = torch.zeros(150, 16, dtype=BF16)
    packed[4::5] = case["hidden"]
    packed.requires_grad_()
    loss = irm_fast.linear_implicit_rm_loss(**{**case, "hidden": packed[4::5]}, backend=backend)
    (grad,) = torch.autograd.grad(loss, packed)
    assert torch.equal(grad[4::5], evaluate(case, backend=backend)[1]["hidden"])
    assert grad.any(1).sum() == 30


def test_one_hidden_state_for_all_rows(backend: str) -> None:
    case = make(50, 16, 2)
    check({**case, "hidden": case["hidden"][:1].expand(50, 16)}, backend=backend)


@pytest.mark.parametrize("given", PROPENSITIES)
def test_one_signal_in_one_dimension(given: str, backend: str) -> None:
    case = make(50, 16, 1, given=given)
    flat = {**case, "feedback": case["feedback"][:, 0]}
    if given == "logits":
        flat["propensity_logits"] = case["propensity_logits"][:, 0]
    s, t = torch.linspace(-2, 2, 50), torch.linspace(1, -3, 50)
    options: dict[str, Any] = {"return_groups": True, "backend": backend}
    want, want_groups = irm_fast.linear_implicit_rm_loss(**case, stratification=(s, t[:, None]), **options)
    loss, groups = irm_fast.linear_implicit_rm_loss(**flat, stratification=(s, t), **options)
    assert torch.equal(loss, want) and torch.equal(groups, want_groups[:, 0]) and groups.shape == (50, 4)
    (_, grads), (_, want_grads) = evaluate(flat, backend=backend), evaluate(case, backend=backend)
    for name, x in want_grads.items():
        assert torch.equal(grads[name], x.reshape(flat[name].shape)), name


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_feedback_dtypes(dtype: torch.dtype, backend: str) -> None:
    case = make(50, 16, 2)
    if dtype in (torch.bool, torch.uint8):
        case["feedback"] = case["feedback"].clamp(0)
    want = evaluate(case, backend=backend)
    assert_identical(evaluate({**case, "feedback": case["feedback"].to(dtype)}, backend=backend), want)


@pytest.mark.parametrize("given", PROPENSITIES)
def test_biases_may_be_left_out(given: str, backend: str) -> None:
    case = make(50, 16, 2, given=given)
    biases = [name for name in case if name.endswith("bias")]
    zeros = {name: torch.zeros_like(case[name]) for name in biases}
    _, want = evaluate({**case, **zeros}, backend=backend)
    for name in biases:
        del case[name], want[name]
    check(case, backend=backend)
    for name, x in evaluate(case, backend=backend)[1].items():
        assert torch.equal(x, want[name])


@pytest.mark.parametrize("given", PROPENSITIES)
def test_no_rows(given: str, backend: str) -> None:
    for k, flat in ((1, True), (1, False), (3, False)):
        case = make(0, 16, k, BF16, given=given)
        if flat:
            names = ("feedback", "propensity_logits") if given == "logits" else ("feedback",)
            case |= {name: case[name][:, 0] for name in names}
        for reduction in ("sum", "none"):
            loss, grads = evaluate(case, reduction=reduction, backend=backend)
            assert loss.shape == ((0,) if reduction == "none" else ()) and not loss.any()
            for name, x in grads.items():
                assert x.shape == case[name].shape and x.dtype == BF16 and not x.any(), name
        _, groups = irm_fast.linear_implicit_rm_loss(**case, normalizer=4, return_groups=True, backend=backend)
        assert groups.shape == (*case["feedback"].shape, 4)
        with pytest.raises(ValueError, match="N=0"):
            irm_fast.linear_implicit_rm_loss(**case, backend=backend)


def test_rows_without_a_signal(backend: str) -> None:
    case = make(20, 16, 2)
    case["feedback"][:] = -1
    loss, grads = evaluate(case, backend=backend)
    assert loss.abs() <= 1e-7 and not grads["propensity_weight"].any() and grads["reward_weight"].abs().max() <= 1e-7
    check(make(20, 16, 2), preference=torch.arange(20) % 2, misclick_rate=0.25, backend=backend)


# --- what is computed ----------------------------------------------------------------------------------------------

Calls = list[tuple]
NEEDED: dict[str, tuple[tuple[str, ...], str, Calls]] = {
    "nothing": ((), "mean", [("forward", False, False)]),
    "hidden": (("hidden",), "mean", [("forward", True, False), ("hidden",)]),
    "reward head": (("reward_weight",), "mean", [("forward", False, True)]),
    "propensity heads": (("propensity_weight",), "mean", [("forward", False, True)]),
    "biases": (("reward_bias", "propensity_bias"), "mean", [("forward", False, True)]),
    "given logits": (("propensity_logits",), "mean", [("forward", True, False)]),
    "frozen backbone": (("reward_weight", "reward_bias"), "sum", [("forward", False, True)]),
    "frozen heads": (("hidden", "propensity_logits"), "sum", [("forward", True, False), ("hidden",)]),
    "all": (PARAMETERS[:-1], "mean", [("forward", True, True), ("hidden",)]),
    "hidden, by row": (("hidden",), "none", [("forward", True, False), ("hidden",)]),
    "biases, by row": (("reward_bias", "propensity_bias"), "none", [("forward", True, False), ("weight",)]),
    "reward head, by row": (("reward_weight",), "none", [("forward", True, False), ("weight",)]),
    "all, by row": (PARAMETERS[:-1], "none", [("forward", True, False), ("hidden",), ("weight",)]),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the backend is asked for: forward with its needs for logit and weight gradients, and gradients by name."""
    seen: Calls = []

    def choose_spy(*args: Any) -> Any:
        module = choose_backend(*args)

        def forward(*args: Any) -> Any:
            *_, batch, need = args
            seen.append(("forward", *need))
            assert not batch.need_groups
            return module.linear_implicit_rm_forward(*args)

        def gradient(name: str) -> Callable:
            return lambda *args: (seen.append((name,)), getattr(module, f"linear_{name}_grad")(*args))[1]

        return SimpleNamespace(
            linear_implicit_rm_forward=forward,
            linear_hidden_grad=gradient("hidden"),
            linear_weight_grad=gradient("weight"),
        )

    monkeypatch.setattr(linear_ops, "choose_backend", choose_spy)
    return seen


@pytest.mark.parametrize("what", NEEDED)
def test_only_what_is_needed(what: str, backend: str, calls: Calls) -> None:
    names, reduction, expected = NEEDED[what]
    case = make(30, 16, 2, given="logits" if "propensity_logits" in names else "heads")
    want_loss, want = evaluate(case, reduction=reduction, backend=backend)
    calls.clear()
    leaves = {name: case[name].detach().requires_grad_(name in names) for name in PARAMETERS if name in case}
    loss = irm_fast.linear_implicit_rm_loss(**{**case, **leaves}, reduction=reduction, backend=backend)
    assert loss.requires_grad == bool(names) and torch.equal(loss, want_loss)
    if names:
        loss.sum().backward()
    assert calls == expected
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, want[name]) if name in names else leaf.grad is None, name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Callable, backend: str, calls: Calls) -> None:
    case = make(30, 16, 2)
    want, _ = evaluate(case, backend=backend)
    calls.clear()
    case = {name: x.requires_grad_() if name in PARAMETERS else x for name, x in case.items()}
    with mode():
        loss = irm_fast.linear_implicit_rm_loss(**case, backend=backend)
    assert calls == [("forward", False, False)] and torch.equal(loss, want) and not loss.requires_grad


# --- autograd ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("given", PROPENSITIES)
def test_a_second_backward_gives_the_same(given: str, reduction: str, backend: str) -> None:
    """Also after the first gradients were changed in place, as clipping does: they are not what is kept."""
    case = make(40, 16, 2, given=given)
    leaves = {name: case[name].requires_grad_() for name in PARAMETERS if name in case}
    loss = irm_fast.linear_implicit_rm_loss(**case, reduction=reduction, backend=backend).sum()
    first = torch.autograd.grad(loss, [*leaves.values()], retain_graph=True)
    want = [x.clone() for x in first]
    for x in first:
        x.mul_(100)
    loss.backward(retain_graph=True)
    assert all(torch.equal(leaf.grad, x) for leaf, x in zip(leaves.values(), want, strict=True))
    loss.backward()
    assert all(torch.equal(leaf.grad, 2 * x) for leaf, x in zip(leaves.values(), want, strict=True))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name", ["hidden", "reward_weight", "propensity_bias"])
def test_double_backward_is_an_error(name: str, reduction: str, backend: str) -> None:
    case = make(20, 16, 2)
    case[name].requires_grad_()
    loss = irm_fast.linear_implicit_rm_loss(**case, reduction=reduction, backend=backend).sum()
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(loss, case[name], create_graph=True)


def test_what_double_backward_recommends_exists() -> None:
    with pytest.raises(RuntimeError) as raised:
        linear_ops.linear_implicit_rm.refuse_second_derivative()
    for name in re.findall(r"irm_fast[\w.]+", str(raised.value)):
        assert pkgutil.resolve_name(name)


def test_hidden_states_are_not_kept(backend: str) -> None:
    """Who has the loss may write over them, and over the heads, before backward."""
    case = make(40, 16, 2)
    _, want = evaluate(case, -2.5, backend=backend)
    leaves = {name: case[name].requires_grad_() for name in want}
    loss = irm_fast.linear_implicit_rm_loss(**case, backend=backend) * -2.5
    with torch.no_grad():
        for x in leaves.values():
            x.fill_(NAN)
    for got, name in zip(torch.autograd.grad(loss, [*leaves.values()]), want, strict=True):
        assert torch.equal(got, want[name]), name


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inputs_are_never_written(reduction: str, backend: str) -> None:
    for given in PROPENSITIES:
        case, options = make(50, 16, 3, given=given), every_option(50, 3)
        inputs = [*case.values(), options["preference"], options["weight"], *options["stratification"]]
        before, versions = [x.clone() for x in inputs], [x._version for x in inputs]
        evaluate(case, reduction=reduction, backend=backend, check_values=True, **options)
        assert all(map(torch.equal, inputs, before)) and versions == [x._version for x in inputs]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_same_input_gives_the_same_bits(reduction: str, backend: str) -> None:
    case = make(5000 if backend == "cpu" else 150, 48, 2, BF16)
    want = evaluate(case, reduction=reduction, backend=backend)
    for _ in range(20):
        assert_identical(evaluate(case, reduction=reduction, backend=backend), want)


def test_no_gradient_reaches_stratification_or_groups(backend: str) -> None:
    case, (s, t) = make(20, 16, 2), every_option(20, 2)["stratification"]
    s, t = s.requires_grad_(), t.requires_grad_()
    case["hidden"].requires_grad_()
    loss, groups = irm_fast.linear_implicit_rm_loss(**case, stratification=(s, t), return_groups=True, backend=backend)
    assert torch.autograd.grad(loss, (s, t), allow_unused=True) == (None, None) and not groups.requires_grad


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_changes_nothing(reduction: str, backend: str) -> None:
    case = make(50, 48, 2)
    want = evaluate(case, reduction=reduction, backend=backend)
    with torch.autocast("cpu", BF16):
        assert_identical(evaluate(case, reduction=reduction, backend=backend), want)


@pytest.mark.parametrize("dtype", [F64, BF16], ids=str)
def test_torchs_default_dtype_changes_nothing(dtype: torch.dtype, backend: str) -> None:
    case = make(50, 48, 2)
    del case["propensity_bias"]
    want = [evaluate(case, reduction=reduction, backend=backend) for reduction in ("mean", "none")]
    torch.set_default_dtype(dtype)
    try:
        got = [evaluate(case, reduction=reduction, backend=backend) for reduction in ("mean", "none")]
    finally:
        torch.set_default_dtype(F32)
    assert_identical(got[0], want[0])
    assert_identical(got[1], want[1])
