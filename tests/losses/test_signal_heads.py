"""`SignalHeads`: the logits and the loss of the public functions, a start at the log's rates, scalars that learn."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import irm_fast
from irm_fast.losses import SCALAR_LEARNING_RATE
from tests.losses.loss_cases import NAN

N, H = 60, 8


def trained(design: Any, k: int = 2) -> irm_fast.SignalHeads:
    """Heads whose parameters are not 0."""
    heads = irm_fast.SignalHeads(H, k, design)
    with torch.no_grad():
        for i, parameter in enumerate(heads.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) / 2)
    return heads


def rows(k: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(N, H, generator=generator), torch.randint(-1, 2, (N, k), generator=generator)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("design", ["constant", "hidden"])
def test_logits_and_loss_agree(design: str, k: int, backend: str) -> None:
    heads, (hidden, feedback) = trained(design, k), rows(k)
    options: dict[str, Any] = {"polarity": [1, -1][:k], "misclick_rate": 0.1, "backend": backend}
    logits = heads(hidden)
    assert logits.reward_logits.shape == (N,) and logits.propensity_logits.shape == (N, k)
    want = irm_fast.implicit_rm_loss(*logits, feedback, **options)
    got = heads.loss(hidden, feedback, **options)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    for one, other in zip(*(torch.autograd.grad(x, [*heads.parameters()]) for x in (got, want)), strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    by_hand = hidden @ heads.reward_weight + heads.reward_bias
    torch.testing.assert_close(logits.reward_logits, by_hand)
    slope = 0 if heads.propensity_weight is None else hidden @ heads.propensity_weight.T
    torch.testing.assert_close(logits.propensity_logits, (slope + heads.propensity_bias).expand(N, k))


def test_heads_beside_the_reward_head_of_another_model() -> None:
    heads = irm_fast.SignalHeads(None, 2, rates=[0.1, 0.3])
    with torch.no_grad():
        heads.reward_bias.fill_(0.25)
    assert [name for name, _ in heads.named_parameters()] == ["reward_bias", "propensity_bias"]
    reward = torch.randn(5)
    for given in (reward, reward[:, None]):
        logits = heads(given)
        torch.testing.assert_close(logits.reward_logits, reward + 0.25)
        torch.testing.assert_close(logits.propensity_logits, heads.propensity_bias.expand(5, 2))
    for wrong in (torch.zeros(5, 2), torch.zeros(5, 1, 1)):
        with pytest.raises(ValueError, match="reward_logits must have shape"):
            heads(wrong)
    with pytest.raises(ValueError, match="no reward head"):
        heads.loss(reward, torch.zeros(5, 2, dtype=torch.int8))
    assert "hidden_size=None" in repr(heads)


@pytest.mark.parametrize("design", ["constant", "hidden"])
def test_logits_are_float32_under_autocast_and_for_low_precision(design: str) -> None:
    heads, (hidden, feedback) = trained(design), rows()
    want, low = heads(hidden.bfloat16().float()), hidden.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got, loss = heads(low), heads.loss(low, feedback)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    torch.testing.assert_close(loss, heads.loss(low.float(), feedback))
    assert heads(hidden.double()).reward_logits.dtype == torch.float64


@pytest.mark.parametrize("design", ["constant", "hidden"])
def test_heads_start_at_the_rates_of_the_log(design: Any) -> None:
    feedback = np.array([[1, 0], [0, NAN], [0, 1], [0, 0], [-1, 0], [0, 0]])
    heads = irm_fast.SignalHeads(H, ["copy", "share"], design).start_at(feedback)
    logits = heads(torch.randn(5, H))
    predicted = logits.reward_logits.sigmoid()[:, None] * logits.propensity_logits.sigmoid()
    torch.testing.assert_close(predicted, torch.full((5, 2), 0.2))
    assert "copy" in repr(heads)
    for same in (
        irm_fast.SignalHeads(H, 2, design, rates=[0.2, 0.2]),
        irm_fast.SignalHeads(H, 2, design, rates=torch.tensor([0.2, 0.2])),
        irm_fast.SignalHeads(H, 2, design).start_at(torch.tensor(feedback)),
    ):
        torch.testing.assert_close(same.propensity_bias, heads.propensity_bias)
    one = irm_fast.SignalHeads(H, 1, rates=0.3).propensity_bias
    torch.testing.assert_close(one.sigmoid(), torch.tensor([0.6]))
    few_and_many = irm_fast.SignalHeads(H, 2).start_at(torch.tensor([[0, 1]] * 3)).propensity_bias
    assert few_and_many.isfinite().all() and few_and_many[0] < -4 and few_and_many[1] > 2


def test_the_products_model_starts_where_the_heads_do(tiny_model: str) -> None:
    from irm_fast.data.signals import RewardSpec
    from irm_fast.models.reward_model import ImplicitRewardModel

    rates = np.array([0.15, 0.3])
    model = ImplicitRewardModel.from_backbone(tiny_model, RewardSpec("constant", ("a", "b"), (1, 1), (0.0, 0.0)))
    model.start_at(rates)
    assert torch.equal(model.propensity_design.bias, irm_fast.SignalHeads(H, 2, rates=rates).propensity_bias)


@pytest.mark.parametrize("design", ["constant", "hidden"])
def test_parameter_groups(design: Any) -> None:
    """Every parameter is in one group: scalars at their own rate without decay, the others at the backbone's."""
    heads = irm_fast.SignalHeads(H, 2, design)
    body = nn.Sequential(nn.Linear(3, H), nn.LayerNorm(H))
    body[1].bias.requires_grad_(False)
    for model in (None, body, nn.ModuleList([body, heads])):
        weights, scalars = heads.parameter_groups(1e-5, model)
        assert (weights["lr"], scalars["lr"], scalars["weight_decay"]) == (1e-5, SCALAR_LEARNING_RATE, 0.0)
        assert {id(p) for p in scalars["params"]} == {id(heads.reward_bias), id(heads.propensity_bias)}
        wanted = [p for p in itertools.chain(heads.parameters(), body.parameters() if model else ()) if p.requires_grad]
        found = [id(p) for p in weights["params"] + scalars["params"]]
        assert sorted(found) == sorted(map(id, wanted))
        torch.optim.AdamW([weights, scalars])
    assert heads.parameter_groups(1e-5, scalar_lr=0.5)[1]["lr"] == 0.5
    heads.requires_grad_(False)
    assert [*heads.parameter_groups(1e-5)] == []


def made_log(n: int = 16_000) -> tuple[Tensor, Tensor]:
    """Features, and feedback of constant propensities 0.15 and 0.30; the mean preference is 0.41.

    It depends on the features so little that a body at any stage of its training leaves the propensities identified.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 16, generator=generator)
    pleased = torch.rand(n, generator=generator) < (0.5 * x[:, 0] - 0.37).sigmoid()
    acts = torch.rand(n, 2, generator=generator) < torch.tensor([0.15, 0.30])
    return x, (pleased[:, None] & acts).long()


@pytest.mark.parametrize(("lr", "own_rate"), [(1e-5, True), (1e-4, True), (3e-4, True), (3e-4, False)])
def test_constant_propensities_learn_beside_a_backbone(lr: float, own_rate: bool) -> None:
    """At the backbone's learning rate they would stay where they start."""
    x, feedback = made_log()
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(16, 256), nn.Tanh())
    heads = irm_fast.SignalHeads(256, 2).start_at(feedback)
    start = heads.propensity_bias.detach().sigmoid()
    model = nn.ModuleList([body, heads])
    optimizer = torch.optim.AdamW(heads.parameter_groups(lr, model) if own_rate else model.parameters(), lr=lr)
    steps = [some for _ in range(3) for some in torch.randperm(len(x)).split(256)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(steps))
    for some in steps:
        optimizer.zero_grad()
        heads.loss(body(x[some]), feedback[some]).backward()
        optimizer.step()
        schedule.step()
    found = heads.propensity_bias.detach().sigmoid()
    if own_rate:
        assert (found - torch.tensor([0.15, 0.30])).abs().max() < 0.03
    else:
        assert (found - start).abs().max() < 0.02


@pytest.mark.parametrize("design", ["constant", "hidden"])
def test_heads_compile_whole(design: Any) -> None:
    heads, (hidden, feedback) = trained(design), rows()

    def step(hidden: Tensor, feedback: Tensor) -> Tensor:
        return irm_fast.implicit_rm_loss(*heads(hidden), feedback) + heads.loss(hidden, feedback)

    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=graphs)
    for n in (N, 40, 31):
        some, codes = hidden[:n].clone(), feedback[:n].clone()
        want, got = step(some, codes), compiled(some, codes)
        torch.testing.assert_close(got, want)
        for one, other in zip(*(torch.autograd.grad(x, [*heads.parameters()]) for x in (got, want)), strict=True):
            torch.testing.assert_close(one, other)
    assert graphs.frame_count <= 2  # one for the first size, one for all sizes


REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "a name alone": (TypeError, "signals: got 'copy'; expected their number, or a sequence", {"signals": "copy"}),
    "no signals": (ValueError, "signals: got 0; expected 1 to 16", {"signals": 0}),
    "too many": (ValueError, "signals: got 17; expected 1 to 16", {"signals": list("abcdefghijklmnopq")}),
    "a design": (ValueError, "propensity_design: got 'features'; expected one of", {"propensity_design": "features"}),
    "no width": (ValueError, "hidden_size: got None", {"hidden_size": None, "propensity_design": "hidden"}),
    "too few rates": (ValueError, "rates: got 1 of them; expected one for each of 2", {"rates": 0.5}),
    "too high": (ValueError, r"rates: got \[0.5, 1.5\]; expected numbers from 0 to 1", {"rates": [0.5, 1.5]}),
    "NaN": (ValueError, r"rates: got \[0.5, nan\]", {"rates": [0.5, NAN]}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    error, message, changed = REFUSED[case]
    with pytest.raises(error, match=message):
        irm_fast.SignalHeads(**{"hidden_size": H, "signals": 2, **changed})


def test_refused_feedback_and_states() -> None:
    heads = irm_fast.SignalHeads(H, ["copy", "share"])
    with pytest.raises(ValueError, match="no row records signal 'share'"):
        heads.start_at(torch.tensor([[1, -1], [0, -1]]))
    with pytest.raises(TypeError, match="meta tensors, which have no values"):
        heads.start_at(torch.zeros(3, 2, device="meta"))
    with pytest.raises(ValueError, match="row 1 is not"):
        heads.start_at([[1, 0], [0, -100]])
    with pytest.raises(ValueError, match=r"feedback: got 1 signal\(s\); expected those of the heads, 2"):
        heads.start_at([1, 0])
    with pytest.raises(ValueError, match=r"hidden must have shape \(N, 8\), one pooled state a row, got \(2, 3, 8\)"):
        heads(torch.zeros(2, 3, H))
    with pytest.raises(ValueError, match=r"hidden must have shape \(N, 8\).*got \(2, 9\)"):
        heads(torch.zeros(2, H + 1))


def test_heads_and_the_loss_function_need_torch_alone() -> None:
    code = """
import sys
sys.modules |= dict.fromkeys(("transformers", "accelerate", "sklearn", "scipy", "pyarrow", "datasets"))
import irm_fast, torch
heads = irm_fast.SignalHeads(4, 2, rates=[0.1, 0.2])
labels = torch.tensor([[1, 0], [0, -1]])
loss = irm_fast.hf.compute_loss_func()(heads(torch.ones(2, 4))._asdict(), labels, 4)
loss.backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
