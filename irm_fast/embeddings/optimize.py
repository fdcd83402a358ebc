"""Optimisers for data in memory: L-BFGS over all rows, and AdamW in shuffled batches; and priors of linear heads."""

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
    """How networks are trained: with AdamW in shuffled batches, until the held-out loss no longer improves.

    Attributes:
        batch_size: Rows per gradient step.
        learning_rate: The constant step size of AdamW.
        weight_decay: The decoupled weight decay of AdamW.
        max_epochs: The largest number of passes over the rows.
        patience: Training stops after this many passes in a row without a new lowest held-out loss.
    """

    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    max_epochs: int = 60
    patience: int = 6


def prior_shares(spread: Tensor) -> dict[str, Tensor]:
    """Return two ways of dividing the prior variance of a logit among D features: evenly, or by their raw variances.

    Args:
        spread: Standard deviations of the features before they were standardised, of shape (D,); infinite for
            constants.

    Returns:
        Relative prior variances of shape (D,), with a mean of 1, under the names "even" and "raw".
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
    """Train a network in place, and keep the weights with the lowest held-out loss.

    Batches are gathered from tensors in memory, without a data loader or collation.

    Args:
        network: The network.
        loss: Called with the network and row numbers (n,); returns the mean loss of these rows.
        rows: The numbers (int64) of the rows to train on.
        held_out: The numbers (int64) of the rows by which the weights are chosen; not used with `judge`.
        training: Batch size, learning rate, weight decay and stopping rule.
        generator: Decides the order of the rows; a generator on the CPU.
        judge: Called with the network; returns the number to minimise in the choice of the weights. None means the loss
            of the held-out rows.
        before_epoch: Called before every pass over the rows. None calls nothing.
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
    """Make one pass over the rows in a new random order, with one optimiser step per batch.

    Args:
        network: The network to train in place.
        loss: Called with the network and row numbers (n,); returns the mean loss of these rows.
        rows: The numbers (int64) of the rows to train on.
        optimizer: The optimiser of the network's parameters.
        batch_size: Rows per step.
        generator: Decides the order of the rows; a generator on the CPU.
    """
    order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    for batch in order.split(batch_size):
        optimizer.zero_grad(set_to_none=True)
        loss(network, batch).backward()
        optimizer.step()


def rows_where(mask: np.ndarray, device: torch.device) -> Tensor:
    """Return the numbers (int64) of the rows that a mask selects.

    Args:
        mask: A bool of each row, of shape (N,).
        device: The device of the result.
    """
    return torch.from_numpy(np.flatnonzero(mask)).to(device)


@torch.no_grad()
def _held_out_loss(network: Net, loss: Callable[[Net, Tensor], Tensor], rows: Tensor) -> float:
    """Return the loss of these rows, infinite if there are none."""
    return float(loss(network, rows)) if len(rows) else float("inf")


def fit_map(
    parameters: Sequence[Tensor], loss: Callable[[], Tensor], iterations: int = 200, tolerance: float = 1e-8
) -> None:
    """Minimise a loss over the parameters, in place, by L-BFGS over all rows at once.

    Args:
        parameters: Leaf tensors, which start from their present values.
        loss: Computes the loss, with its penalties, from the parameters as they are.
        iterations: The largest number of L-BFGS iterations.
        tolerance: A change of the loss, or of every parameter, that is small enough to stop.
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=tolerance,
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
    """Return the torch device of a name.

    Args:
        name: A torch device such as "cpu" or "cuda:1"; "auto" is the accelerator if there is one, else the CPU.
    """
    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator() or torch.device("cpu")  # type: ignore[return-value]
