"""Times `pointwise_loss` against what people would write otherwise.

    pytest benchmarks/ --benchmark-only [--save-results FOLDER]

The weights are those of inverse propensities, click / m and 1 - click / m, so that many are below zero. Modes and
floors are those of bench_loss.py. Providers: `ours`; `eager`, the formula with PyTorch's softplus; `compile`, that
formula under torch.compile; `bce`, PyTorch's binary cross-entropy with logits, which takes one weight, as a target: it
is this loss where, as here, the two add up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from irm_fast.kernels.reference import definition as reference
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from benchmarks.cases import DEVICE, Case, Entry, contestants, forward, step
from benchmarks.harness import clock, show
from irm_fast.losses.pointwise import pointwise_loss


class Rows(NamedTuple):
    reward: Tensor  # (N,), requires grad
    positive_weight: Tensor  # (N,) float32
    negative_weight: Tensor  # (N,) float32


def written_out(s: Tensor, w1: Tensor, w0: Tensor) -> Tensor:
    """The mean loss as one would write it in PyTorch."""
    s = s.float()
    return (w1 * softplus(-s) + w0 * softplus(s)).mean()


def cross_entropy(s: Tensor, w1: Tensor, _: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(s.float(), w1)


@dataclass(frozen=True)
class PointwiseCase(Case):
    operation = "pointwise_loss"
    modes = {  # noqa: RUF012 (a ClassVar of the base)
        "forward": ("loss",),
        "forward+grad": ("loss",),
        "step": ("loss", "reward logits"),
    }

    def __str__(self) -> str:
        return f"N={self.n} {str(self.dtype).removeprefix('torch.')}"

    def make_inputs(self, seed: int) -> Rows:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        s = torch.randn(self.n, generator=generator, device=DEVICE)
        propensity = 0.2 + 0.6 * torch.rand(self.n, generator=generator, device=DEVICE)
        click = torch.rand(self.n, generator=generator, device=DEVICE) < s.sigmoid() * propensity
        corrected = click / propensity
        return Rows(s.to(self.dtype).requires_grad_(), corrected, 1 - corrected)

    def truth(self, inputs: Rows) -> dict[str, Tensor]:
        s = inputs.reward.detach().double().requires_grad_()
        loss = reference.pointwise_loss(s, *inputs[1:]).mean()
        return dict(zip(self.modes["step"], (loss.detach(), *torch.autograd.grad(loss, [s])), strict=True))

    def entries(self) -> list[Entry]:
        compiled = torch.compile(written_out, dynamic=False)
        return [
            Entry("ours", ("forward",), forward(pointwise_loss)),
            Entry("ours", ("forward+grad",), lambda x: (pointwise_loss(*x),)),
            Entry("ours", ("step",), step(pointwise_loss, 1)),
            Entry("eager", ("forward",), forward(written_out)),
            Entry("eager", ("forward+grad", "step"), step(written_out, 1)),
            Entry("compile", ("forward",), forward(compiled)),
            Entry("compile", ("forward+grad", "step"), step(compiled, 1)),
            Entry("bce", ("forward",), forward(cross_entropy)),
            Entry("bce", ("forward+grad", "step"), step(cross_entropy, 1)),
        ]

    def traffic(self, mode: str) -> tuple[int, int]:
        """Read: logits and both weights. Written: the gradient, but in "forward"."""
        logits = self.n * self.dtype.itemsize
        return logits + 2 * self.n * torch.float32.itemsize, 0 if mode == "forward" else logits


CASES = tuple(PointwiseCase(n) for n in (16, 1024, 2**16, 2**20, 2**23))


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(("case", "mode", "provider"), contestants(CASES))
def test_pointwise_loss(benchmark: Any, case: Case, mode: str, provider: str) -> None:
    show(benchmark, case, mode, provider)
