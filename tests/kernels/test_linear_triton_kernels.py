"""The Triton kernels of the linear loss, called directly, against float64 PyTorch on the same hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from irm_fast.kernels.batch import Batch
from irm_fast.kernels.reference import definition as reference
from irm_fast.kernels.triton import linear_implicit_rm, linear_tiles
from torch import Tensor

from irm_fast.losses.checks import signal_constants
from tests.losses.loss_cases import INF, NAN, make, options

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["tensor cores", "one read", "two reads"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each form of the kernel in turn; tensor cores serve bfloat16 alone."""
    if request.param != "tensor cores":
        monkeypatch.setattr(linear_tiles, "has_tensor_cores", lambda: False)
    if request.param == "two reads":
        monkeypatch.setattr(linear_tiles, "ONE_READ_LIMIT", 0)
    return str(request.param)


@pytest.fixture(autouse=True)
def outputs_full_of_nan() -> Iterator[None]:
    """torch.empty fills with NaN: an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def case(n: int, h: int, k: int, dtype: torch.dtype = torch.float32, *, heads: bool = True, seed: int = 0) -> dict:
    """Arguments of the forward pass without options; logits of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    m = k + 1 if heads else 1
    _, t, feedback = make(n, k, seed)
    return {
        "hidden": torch.randn(n, h, generator=generator).to(dtype),
        "heads": torch.randn(m, h, generator=generator) / h**0.5,
        "bias": torch.randn(m, generator=generator),
        "propensity": None if heads else t,
        "feedback": feedback,
    }


def forward(c: dict, **given: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    polarity, rate = given.pop("polarity", None), given.pop("misclick_rate", None)
    need = (given.pop("need_logit_grads", True), given.pop("need_weight_grad", True))
    case = dict(c)
    feedback = case.pop("feedback")
    constants = signal_constants(polarity, rate, feedback.shape[1])
    posterior = given.pop("stratification", None) or (None, None)
    options: dict[str, Any] = {"preference": None, "weight": None, "scale": 1.0, "per_row": True, "need_groups": False}
    batch = Batch(
        feedback=feedback,
        reward_strat=posterior[0],
        propensity_strat=posterior[1],
        polarity=constants[0],
        misclick_rate=constants[1],
        backend=None,
        **{**options, **given},
    )
    loss, grad_logits, grad_parameters, groups = linear_implicit_rm.linear_implicit_rm_forward(
        **case, batch=batch, need=need
    )
    return loss, grad_logits, heads_of(grad_parameters, grad_logits, c["heads"]), groups


def heads_of(grad_parameters: Tensor | None, grad_logits: Tensor | None, heads: Tensor) -> Tensor | None:
    """The gradient of the heads, after a look at what follows it: the sums of the gradients of the logits."""
    if grad_parameters is None:
        return None
    if grad_logits is not None:
        want = grad_logits.double().sum(0)
        slack = 1e-6 * grad_logits.double().abs().sum(0) + 1e-12
        bad = (grad_parameters[heads.numel() :].double() - want).abs() > slack
        assert not bad.any()
    return grad_parameters[: heads.numel()].view(heads.shape)


def truth(
    c: dict, *, weight: Tensor | None = None, scale: float = 1.0, **evidence: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Row losses, gradients of the logits and of the heads, in float64 by autograd."""
    weight = torch.ones(len(c["hidden"])) if weight is None else weight
    hidden = c["hidden"].double().masked_fill(weight[:, None] == 0, 0.0)
    heads = c["heads"].double().requires_grad_()
    logits = hidden @ heads.T + c["bias"].double()
    if c["propensity"] is not None:
        logits = torch.cat([logits, c["propensity"].double()], 1)
    logits.retain_grad()
    rows = reference.implicit_rm_loss(logits[:, 0], logits[:, 1:], c["feedback"], **evidence)
    loss = (rows * weight * scale).masked_fill(weight == 0, 0.0)
    loss.sum().backward()
    return loss.detach(), logits.grad, heads.grad


def assert_right(c: dict, **given: Any) -> None:
    """Loss, both gradients and the sum of the loss against the truth; every row by itself."""
    got, want = forward(c, **given), truth(c, **given)
    for a, b, what in zip(got[:3], want, ("loss", "grad_logits", "grad_heads"), strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape and a.is_contiguous()
        size = b.abs().max().clamp(min=1e-6) if b.numel() else 1.0
        torch.testing.assert_close(a.double() / size, b / size, rtol=2e-5, atol=2e-6, msg=lambda m, w=what: f"{w}: {m}")
    if len(c["hidden"]) > 1:  # else a gradient of zero would pass
        assert want[1].abs().max() > 0.01 * given.get("scale", 1.0) and want[2].abs().max() > 0.001
    total = forward(c, **given, per_row=False)[0]
    assert total.shape == ()
    torch.testing.assert_close(total.double(), want[0].sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("n, h, k", [(0, 8, 1), (1, 1, 1), (37, 48, 1), (301, 33, 3), (70, 7, 16), (1030, 16, 2)])
def test_sizes_and_dtypes(n: int, h: int, k: int, heads: bool, dtype: torch.dtype) -> None:
    assert_right(case(n, h, k, dtype, heads=heads))


def test_wide_hidden_states() -> None:
    """Several pieces of H in every kernel."""
    c = case(19, 2100, 1, torch.bfloat16)
    assert_right(c)
    assert_hidden_grad(c, torch.randn(19))


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("stratified", [False, True])
def test_every_option_at_once(heads: bool, stratified: bool) -> None:
    n, k = 203, 3
    c = case(n, 40, k, heads=heads)
    s, t, _ = make(n, k, seed=1)
    assert_right(
        c,
        preference=torch.arange(n) % 3 - 1,
        weight=(torch.arange(n) % 4).float(),
        stratification=(s, t) if stratified else None,
        scale=0.25,
        **options(k),
    )


def test_rows_of_weight_0_contribute_nothing_whatever_they_hold() -> None:
    n = 150
    c, weight = case(n, 24, 2), (torch.arange(n) % 3 != 0).float()
    want = forward(c, weight=weight, per_row=False)
    for bad in (NAN, INF):
        c["hidden"][weight == 0] = bad
        got = forward(c, weight=weight, per_row=False)
        assert all(torch.equal(a, b) for a, b in zip(got[:3], want[:3], strict=True))
    assert (got[1][weight == 0] == 0).all()


def test_a_hidden_state_that_is_not_finite_is_not_hidden() -> None:
    c = case(40, 24, 2)
    clean = forward(c)
    c["hidden"][7, 3] = NAN
    loss, grad_logits, grad_heads, _ = forward(c)
    others = torch.arange(40) != 7
    assert loss[7].isnan() and grad_logits[7][[True, *(c["feedback"][7] != -1).tolist()]].isnan().all()
    assert grad_heads.isnan().any()
    assert torch.equal(loss[others], clean[0][others]) and torch.equal(grad_logits[others], clean[1][others])


def test_groups() -> None:
    c = case(90, 20, 3)
    _, _, _, groups = forward(c, need_groups=True, **options(3))
    logits = c["hidden"].double() @ c["heads"].double().T + c["bias"].double()
    want = reference.stratify(logits[:, 0], logits[:, 1:], c["feedback"], **options(3))
    torch.testing.assert_close(groups.double(), want, rtol=1e-5, atol=2e-6)


def test_strides() -> None:
    """Rows out of packed states, constant propensities, transposed and wide feedback, offsets of one element."""
    n, h, k = 60, 33, 3
    packed = case(4 * n, h + 5, k, torch.bfloat16)
    c = case(n, h, k, torch.bfloat16, heads=False)
    c["hidden"] = packed["hidden"][1::4, 3 : h + 3]
    c["propensity"] = torch.tensor([0.3, -0.7, 1.1]).expand(n, k)
    c["feedback"] = packed["feedback"][:n].T.contiguous().long().T
    assert_right(c)
    c["propensity"] = torch.randn(k, 2 * n, generator=torch.Generator().manual_seed(3)).to(torch.float16)[:, ::2].T
    c["feedback"] = c["feedback"] == 1
    assert_right(c)


def test_only_what_is_needed() -> None:
    c = case(50, 24, 2)
    loss, grad_logits, grad_heads, _ = forward(c)
    for logits in (True, False):
        for heads in (True, False):
            got = forward(c, need_logit_grads=logits, need_weight_grad=heads)
            assert torch.equal(got[0], loss) and got[3] is None
            assert torch.equal(got[1], grad_logits) if logits else got[1] is None
            assert torch.equal(got[2], grad_heads) if heads else got[2] is None


def test_the_same_input_gives_the_same_bits() -> None:
    c = case(700, 31, 2, torch.bfloat16)
    first = forward(c, per_row=False)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(forward(c, per_row=False)[:3], first[:3], strict=True))


def test_rows_do_not_depend_on_their_neighbours() -> None:
    c = case(700, 31, 2, torch.bfloat16)
    loss, grad_logits, _, _ = forward(c)
    part = forward({**c, "hidden": c["hidden"][123:456], "feedback": c["feedback"][123:456]})
    assert torch.equal(part[0], loss[123:456]) and torch.equal(part[1], grad_logits[123:456])


def assert_hidden_grad(c: dict, upstream: Tensor) -> None:
    grad_logits = forward(c)[1]
    n_heads, n, dtype = len(c["heads"]), len(c["hidden"]), c["hidden"].dtype
    got = linear_implicit_rm.linear_hidden_grad(grad_logits, upstream, c["heads"], dtype)
    assert got.dtype == dtype and got.shape == c["hidden"].shape and got.is_contiguous()
    scaled = grad_logits[:, :n_heads].double() * upstream.double().expand(n)[:, None]
    want = scaled @ c["heads"].double()
    terms = scaled.abs() @ c["heads"].double().abs()
    slack = (n_heads + 1) * 6e-8 * terms + 0.51 * torch.finfo(dtype).eps * want.abs()  # a float32 sum, one rounding
    if dtype == torch.float16:
        slack += 3.1e-8  # half of its smallest number
    assert ((got.double() - want).abs() <= slack).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("n, h, k", [(0, 8, 1), (1, 1, 1), (301, 33, 3), (65, 130, 16)])
def test_hidden_gradient(n: int, h: int, k: int, heads: bool, dtype: torch.dtype, form: str) -> None:
    if form != "one read":
        pytest.skip("one form only")
    c = case(n, h, k, dtype, heads=heads)
    for upstream in (torch.tensor(1.5), torch.linspace(-2, 2, n), torch.tensor(-0.5).expand(n), torch.ones(2 * n)[::2]):
        assert_hidden_grad(c, upstream)
