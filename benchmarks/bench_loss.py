"""Times `implicit_rm_loss` against what people would write otherwise.

    pytest benchmarks/ --benchmark-only [--save-results FOLDER]

Modes: "forward" without gradients; "forward+grad", until the gradients exist: for `ours` that is the forward pass, for
the others it takes backward; "step", loss and backward through autograd. Providers: `ours`; `eager`, the same formula
in PyTorch operations; `compile`, that formula under torch.compile. No library has this loss: the binary cross-entropies
that they fuse are another function. Floors: `copy`, `clone` and `read`, see `cases.floors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from irm_fast.kernels.reference import definition as reference
from torch import Tensor

import irm_fast
from benchmarks.cases import DEVICE, Case, Entry, contestants, draw_feedback, forward, four_group_loss, step
from benchmarks.harness import clock, show


class Logits(NamedTuple):
    reward: Tensor  # (N,), requires grad
    propensity: Tensor  # (N, K), requires grad
    feedback: Tensor  # (N, K) int8


@dataclass(frozen=True)
class LossCase(Case):
    operation = "implicit_rm_loss"
    modes = {  # noqa: RUF012 (a ClassVar of the base)
        "forward": ("loss",),
        "forward+grad": ("loss",),
        "step": ("loss", "reward logits", "propensity logits"),
    }

    def make_inputs(self, seed: int) -> Logits:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        s = torch.randn(self.n, generator=generator, device=DEVICE).to(self.dtype)
        t = (torch.randn(self.n, self.k, generator=generator, device=DEVICE) - 1).to(self.dtype)
        return Logits(s.requires_grad_(), t.requires_grad_(), draw_feedback(s.detach(), t.detach(), generator))

    def truth(self, inputs: Logits) -> dict[str, Tensor]:
        s, t = (x.detach().double().requires_grad_() for x in inputs[:2])
        loss = reference.implicit_rm_loss(s, t, inputs.feedback).mean()
        results = loss.detach(), *torch.autograd.grad(loss, (s, t))
        return dict(zip(self.modes["step"], results, strict=True))

    def entries(self) -> list[Entry]:
        compiled = torch.compile(four_group_loss, dynamic=False)
        ours = irm_fast.implicit_rm_loss
        return [
            Entry("ours", ("forward",), forward(ours)),
            Entry("ours", ("forward+grad",), lambda x: (ours(*x),)),
            Entry("ours", ("step",), step(ours, 2)),
            Entry("eager", ("forward",), forward(four_group_loss)),
            Entry("eager", ("forward+grad", "step"), step(four_group_loss, 2)),
            Entry("compile", ("forward",), forward(compiled)),
            Entry("compile", ("forward+grad", "step"), step(compiled, 2)),
        ]


MIDDLE, LARGE = (2**20, 2**23) if DEVICE == "cpu" else (2**22, 2**24)
CASES = (
    *(LossCase(n) for n in (16, 1024, 4096, 2**16, 2**20, LARGE)),
    LossCase(1024, k=4),
    LossCase(MIDDLE, k=2),
    LossCase(MIDDLE, k=4),
    LossCase(MIDDLE, dtype=torch.bfloat16),
)


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(("case", "mode", "provider"), contestants(CASES))
def test_implicit_rm_loss(benchmark: Any, case: Case, mode: str, provider: str) -> None:
    show(benchmark, case, mode, provider)
