"""Optimisers for data that stay in memory: L-BFGS over all rows, AdamW in shuffled batches; and priors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)
REWARD_SDS = (1.0, 2.0, 4.0, 8.0)  # tried as prior deviations of a linear reward's logit between responses


@dataclass(frozen=True)
class Training:
    """How networks are trained: AdamW in shuffled batches, until the held-out loss rises `patience` times in a row."""

    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    max_epochs: int = 60
    patience: int = 6


def prior_shares(spread: Tensor) -> dict[str, Tensor]:
    """How the prior variance of a logit is spread over the features: (D,) of mean 1, evenly or by their raw variances.

    spread: (D,) deviations of the features before they were standardised, infinite where constant.
    """
    variance = torch.where(torch.isfinite(spread), spread, spread.new_zeros(())) ** 2
    raw = variance * len(variance) / variance.sum().clamp(min=1e-30)
    return {"even": torch.ones_like(variance), "raw": raw.clamp(min=1e-6)}


def train_network(
    network: Net,
    loss: Callable[[Net, Tensor], Tensor],
    rows: Tensor,
    held_out: Tensor,
    training: Training,
    generator: torch.Generator,
    *,
    judge: Callable[[Net], float] | None = None,
    before_epoch: Callable[[], None] | None = None,
) -> None:
    """Minimise `loss(network, rows)`, a mean over row numbers, and keep the weights that are best on `held_out`.

    The data are gathered from tensors in memory, a batch at a time: no loader, no collation.  judge: what is smallest
    at the best weights, instead of the loss of the held-out rows.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )

    def judged() -> float:
        return _held_out_loss(network, loss, held_out) if judge is None else judge(network)

    best, state, worse = judged(), copy.deepcopy(network.state_dict()), 0
    for _ in range(training.max_epochs):
        if before_epoch is not None:
            before_epoch()
        one_epoch(network, loss, rows, optimizer, training.batch_size, generator)
        now = judged()
        if now < best:
            best, state, worse = now, copy.deepcopy(network.state_dict()), 0
        else:
            worse += 1
        if worse >= training.patience:
            break
    network.load_state_dict(state)


def one_epoch(
    network: nn.Module,
    loss: Callable,
    rows: Tensor,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """One pass over the rows in a new random order."""
    order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    for batch in order.split(batch_size):
        optimizer.zero_grad(set_to_none=True)
        loss(network, batch).backward()
        optimizer.step()


def rows_where(mask: np.ndarray, device: torch.device) -> Tensor:
    """Numbers of the rows that a mask (N,) selects."""
    return torch.from_numpy(np.flatnonzero(mask)).to(device)


@torch.no_grad()
def _held_out_loss(network: Net, loss: Callable[[Net, Tensor], Tensor], rows: Tensor) -> float:
    return float(loss(network, rows)) if len(rows) else float("inf")


def fit_map(parameters: Sequence[Tensor], loss: Callable[[], Tensor], iterations: int = 200) -> None:
    """Minimise `loss()` over the parameters, in place, by L-BFGS over all rows at once."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    for parameter in parameters:
        parameter.requires_grad_(False)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto": the accelerator, if there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator() or torch.device("cpu")  # type: ignore[return-value]
