"""Inputs and comparisons that the tests of the loss share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import irm_fast

NAN, INF = float("nan"), float("inf")
BLOCK_EDGES = (1, 2, 7, 8, 9, 31, 255, 256, 257, 1023, 1024, 1025, 4097)


def make(n: int, k: int, seed: int = 0, *, missing: float = 0.15) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N,), (N, K) and int8 feedback (N, K) of which nothing contradicts while polarities are +1."""
    rng = np.random.default_rng(seed)
    s, t = rng.normal(0, 2, n), rng.normal(0, 2, (n, k))
    f = np.where(rng.random((n, k)) < missing, -1, rng.random((n, k)) < 0.4)
    return torch.tensor(s).float(), torch.tensor(t).float(), torch.tensor(f, dtype=torch.int8)


def evaluate(s: Tensor, t: Tensor, feedback: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Row losses and the gradients of their sum, on detached views that keep the storage of the inputs."""
    s, t = s.detach().requires_grad_(), t.detach().requires_grad_()
    loss = irm_fast.implicit_rm_loss(s, t, feedback, **{"reduction": "none", **kwargs})
    ds, dt = torch.autograd.grad(loss.sum(), [s, t])
    return loss.detach(), ds, dt


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...], *, exact: bool = False) -> None:
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-6, "atol": 1e-7}
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, **tolerance)


def options(k: int) -> dict[str, Any]:
    """Every option at once; no contradiction can arise where all misclick rates are positive."""
    return {"polarity": [1, -1, 1, -1][:k], "misclick_rate": [0.05, 0.2, 0.5, 0.01][:k]}
