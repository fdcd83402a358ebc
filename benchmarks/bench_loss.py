"""Times one training step of the loss (forward and gradients) against what people would write otherwise.

    pytest benchmarks/ --benchmark-only

Providers: `ours` (the backend of the device), `eager` (the same formula in PyTorch operations), `compile` (that formula
under torch.compile), `copy` (the memory floor: moving the same bytes once). Compare within one run only. Every
provider's loss and gradients are checked against the float64 reference before it is timed; one that fails is not timed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import irm_fast
from irm_fast import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (1024, 2**17, 2**20)


def eager_loss(s: Tensor, t: Tensor, feedback: Tensor) -> Tensor:
    """-log(g e^A + (1-g) e^C) as one would write it: K signals, none missing, no misclicks."""
    acted = feedback == 1
    preferred = logsigmoid(s) + torch.where(acted, logsigmoid(t), logsigmoid(-t)).sum(-1)
    other = torch.where(acted.any(-1), -torch.inf, logsigmoid(-s))
    return -torch.logaddexp(preferred, other).mean()


def make_batch(n: int, n_signals: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(n, generator=generator)
    t = torch.randn(n, n_signals, generator=generator) - 1
    preferred = torch.rand(n, 1, generator=generator) < s.sigmoid()[:, None]
    feedback = preferred & (torch.rand(n, n_signals, generator=generator) < t.sigmoid())
    return (
        s.to(DEVICE).requires_grad_(),
        t.to(DEVICE).requires_grad_(),
        feedback.to(DEVICE, torch.int8),
    )


def training_step(loss_fn: Callable, s: Tensor, t: Tensor, feedback: Tensor) -> tuple[Tensor, ...]:
    loss = loss_fn(s, t, feedback)
    result = (loss.detach(), *torch.autograd.grad(loss, (s, t)))
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result


def check(results: tuple[Tensor, ...], s: Tensor, t: Tensor, feedback: Tensor) -> None:
    loss = reference.implicit_rm_loss(s, t, feedback).mean()
    expected = (loss.detach(), *torch.autograd.grad(loss, (s, t)))
    for ours, truth in zip(results, expected, strict=True):
        torch.testing.assert_close(ours.double(), truth.double(), rtol=1e-4, atol=1e-6 / len(s))


@pytest.mark.parametrize("n_signals", (1, 4), ids="K={}".format)
@pytest.mark.parametrize("n", SIZES, ids="N={}".format)
@pytest.mark.parametrize("provider", ("ours", "eager", "compile", "copy"))
def test_training_step(benchmark, provider: str, n: int, n_signals: int):
    benchmark.group = f"loss and gradients, N={n}, K={n_signals}, float32, {DEVICE}"
    s, t, feedback = make_batch(n, n_signals)
    if provider == "copy":
        # Read both logits and the feedback, write both gradients: as many bytes as a copy of the logits, roughly.
        source = torch.empty(4 * n * (n_signals + 1) + n * n_signals // 2, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        step = lambda: target.copy_(source)  # noqa: E731
    else:
        loss_fn = {
            "ours": irm_fast.implicit_rm_loss,
            "eager": eager_loss,
            "compile": torch.compile(eager_loss, dynamic=False),
        }[provider]
        step = lambda: training_step(loss_fn, s, t, feedback)  # noqa: E731
        check(step(), s, t, feedback)
    benchmark.extra_info["rows_per_call"] = n
    benchmark.pedantic(step, rounds=200 if n <= 2**17 else 15, iterations=1, warmup_rounds=3)
