"""Times `linear_implicit_rm_loss`, heads and loss in one read of the hidden states, against separate operations.

    pytest benchmarks/ --benchmark-only [--save-results FOLDER]

Modes: "forward" without gradients; "frozen", a training step of the heads alone; "step", one that hands the gradient of
the hidden states on as well. `ours` writes that gradient in backward, so there is no mode for half a step. Providers:
`ours`; two `nn.Linear` heads and the loss (`separate`) and one head with stacked outputs (`stacked`), each `eager` and
under torch.compile (`compile`). No library has this loss: those that fuse a linear layer with a loss (Liger-Kernel and
others) have cross-entropy and preference losses over a vocabulary. Floors: `copy`, `clone` and `read`, see
`cases.floors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from irm_fast.kernels.reference import definition as reference
from torch import Tensor
from torch.nn.functional import linear

import irm_fast
from benchmarks.cases import DEVICE, Case, Entry, contestants, draw_feedback, four_group_loss
from benchmarks.harness import clock, show


class HiddenStates(NamedTuple):
    frozen: Tensor  # (N, H)
    leaf: Tensor  # the same memory, requires grad
    feedback: Tensor  # (N, K) int8
    weight: Tensor  # (K+1, H), the reward head first; the providers' parameters hold these numbers
    bias: Tensor  # (K+1,)
    ours: tuple[Tensor, ...]  # (H,), (K, H), (), (K,)
    separate: tuple[Tensor, ...]  # (1, H), (K, H), (1,), (K,)
    stacked: tuple[Tensor, ...]  # (K+1, H), (K+1,)


@dataclass(frozen=True)
class LinearCase(Case):
    operation = "linear_implicit_rm_loss"
    modes = {  # noqa: RUF012 (a ClassVar of the base)
        "forward": ("loss",),
        "frozen": ("loss", "weights", "biases"),
        "step": ("loss", "weights", "biases", "hidden"),
    }

    def make_inputs(self, seed: int) -> HiddenStates:
        generator = torch.Generator(DEVICE).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=DEVICE)

        hidden = normal(self.n, self.hidden).to(self.dtype)
        weight = (normal(self.k + 1, self.hidden) / self.hidden**0.5).to(self.dtype)
        bias = normal(self.k + 1).to(self.dtype)
        logits = linear(hidden, weight, bias)
        return HiddenStates(
            hidden,
            hidden.detach().requires_grad_(),
            draw_feedback(logits[:, 0], logits[:, 1:], generator),
            weight,
            bias,
            ours=_leaves(weight[0], weight[1:], bias[0], bias[1:]),
            separate=_leaves(weight[:1], weight[1:], bias[:1], bias[1:]),
            stacked=_leaves(weight, bias),
        )

    def truth(self, inputs: HiddenStates) -> dict[str, Tensor]:
        leaves = [x.double().requires_grad_() for x in (inputs.weight, inputs.bias, inputs.frozen)]
        weight, bias, hidden = leaves
        logits = linear(hidden, weight, bias)
        loss = reference.implicit_rm_loss(logits[:, 0], logits[:, 1:], inputs.feedback).mean()
        results = loss.detach(), *torch.autograd.grad(loss, leaves)
        return dict(zip(self.modes["step"], results, strict=True))

    def entries(self) -> list[Entry]:
        providers: dict[str, tuple[Callable[..., Tensor], str]] = {
            "ours": (ours, "ours"),
            "separate eager": (separate_heads, "separate"),
            "separate compile": (torch.compile(separate_heads, dynamic=False), "separate"),
            "stacked eager": (stacked_head, "stacked"),
            "stacked compile": (torch.compile(stacked_head, dynamic=False), "stacked"),
        }
        runs = {"forward": _forward, "frozen": _frozen, "step": _step}
        return [Entry(who, (mode,), make(*how)) for who, how in providers.items() for mode, make in runs.items()]


def _leaves(*values: Tensor) -> tuple[Tensor, ...]:
    return tuple(value.clone().requires_grad_() for value in values)


def ours(hidden: Tensor, feedback: Tensor, *parameters: Tensor) -> Tensor:
    reward_weight, propensity_weight, reward_bias, propensity_bias = parameters
    return irm_fast.linear_implicit_rm_loss(
        hidden,
        reward_weight,
        feedback,
        reward_bias=reward_bias,
        propensity_weight=propensity_weight,
        propensity_bias=propensity_bias,
    )


def separate_heads(hidden: Tensor, feedback: Tensor, *parameters: Tensor) -> Tensor:
    reward_weight, propensity_weight, reward_bias, propensity_bias = parameters
    s = linear(hidden, reward_weight, reward_bias).squeeze(-1)
    return four_group_loss(s, linear(hidden, propensity_weight, propensity_bias), feedback)


def stacked_head(hidden: Tensor, feedback: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    logits = linear(hidden, weight, bias)
    return four_group_loss(logits[:, 0], logits[:, 1:], feedback)


Run = Callable[[HiddenStates], tuple[Tensor, ...]]


def _forward(loss_fn: Callable[..., Tensor], parameters: str) -> Run:
    def run(x: HiddenStates) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (loss_fn(x.frozen, x.feedback, *getattr(x, parameters)),)

    return run


def _frozen(loss_fn: Callable[..., Tensor], parameters: str) -> Run:
    def run(x: HiddenStates) -> tuple[Tensor, ...]:
        leaves = getattr(x, parameters)
        loss = loss_fn(x.frozen, x.feedback, *leaves)
        return loss, *torch.autograd.grad(loss, leaves)

    return run


def _step(loss_fn: Callable[..., Tensor], parameters: str) -> Run:
    def run(x: HiddenStates) -> tuple[Tensor, ...]:
        leaves = getattr(x, parameters)
        loss = loss_fn(x.leaf, x.feedback, *leaves)
        return loss, *torch.autograd.grad(loss, (*leaves, x.leaf))

    return run


if DEVICE == "cpu":
    CASES = (  # the larger ones: 128 MB of hidden states
        LinearCase(16, hidden=1024),
        LinearCase(1024, hidden=1024),
        LinearCase(32768, hidden=1024),
        LinearCase(32768, hidden=1024, k=2),
        LinearCase(32768, hidden=1024, k=4),
        LinearCase(8192, hidden=4096),
        LinearCase(4096, hidden=8192),
        LinearCase(65536, hidden=1024, dtype=torch.bfloat16),
    )
else:
    CASES = (  # 2 GB of hidden states, and half of one
        LinearCase(262144, hidden=4096, dtype=torch.bfloat16),
        LinearCase(16, hidden=4096, dtype=torch.bfloat16),
        LinearCase(4096, hidden=4096, dtype=torch.bfloat16),
        LinearCase(65536, hidden=4096, k=4, dtype=torch.bfloat16),
        LinearCase(32768, hidden=8192, dtype=torch.bfloat16),
        LinearCase(32768, hidden=4096),
        LinearCase(262144, hidden=1024, dtype=torch.bfloat16),
        LinearCase(65536, hidden=4096, k=2, dtype=torch.bfloat16),
    )


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(("case", "mode", "provider"), contestants(CASES))
def test_linear_implicit_rm_loss(benchmark: Any, case: Case, mode: str, provider: str) -> None:
    show(benchmark, case, mode, provider)
