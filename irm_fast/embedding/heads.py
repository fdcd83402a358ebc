"""Heads on frozen embeddings, and how they are fitted to data that stay in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.embedding.observed import Observed
from irm_fast.functional import Reduction, implicit_rm_loss
from irm_fast.linear import linear_implicit_rm_loss

Net = TypeVar("Net", bound=nn.Module)
REWARD_SDS = (1.0, 2.0, 4.0, 8.0)  # tried as prior deviations of a linear reward's logit between responses


@dataclass(frozen=True)
class Evidence:
    """What N rows say about the preference, on the device of the embeddings.

    feedback: (N, K) int8.  preference: (N,) int8 or None.  weight: (N,) float32.  polarity, misclick_rate: K each.
    """

    feedback: Tensor
    preference: Tensor | None
    weight: Tensor
    polarity: tuple[int, ...]
    misclick_rate: tuple[float, ...]

    @cached_property
    def plain(self) -> bool:
        """Whether every row counts alike and all signals are what the loss takes for granted: fewer checks."""
        alike = bool((self.weight == 1).all())
        return alike and set(self.polarity) == {1} and not any(self.misclick_rate)

    @classmethod
    def of(cls, seen: Observed, device: torch.device) -> Evidence:
        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        preference = None if seen.preference is None else tensor(seen.preference)
        return cls(tensor(seen.feedback), preference, tensor(seen.weight), seen.polarity, seen.misclick_rate)

    def loss(self, reward: Tensor, propensity: Tensor, rows: Tensor, reduction: Reduction = "mean") -> Tensor:
        """`implicit_rm_loss` of the logits (n,) and (n, K) of some of the rows."""
        return implicit_rm_loss(
            reward,
            propensity,
            self.feedback.index_select(0, rows),  # copies whole rows: several times faster than feedback[rows]
            preference=None if self.preference is None else self.preference.index_select(0, rows),
            weight=None if self.plain else self.weight.index_select(0, rows),
            polarity=None if self.plain else self.polarity,
            misclick_rate=None if self.plain else self.misclick_rate,
            reduction=reduction,
        )

    def linear_loss(self, x: Tensor, weight: Tensor, bias: Tensor, propensity: Tensor, counted: Tensor) -> Tensor:
        """Mean loss of a linear reward over the rows of which `counted` (N,) is 1, in one pass over x (N, D)."""
        return linear_implicit_rm_loss(
            x,
            weight,
            self.feedback,
            reward_bias=bias,
            propensity_logits=propensity,
            preference=self.preference,
            weight=self.weight * counted,
            polarity=self.polarity,
            misclick_rate=self.misclick_rate,
            normalizer=counted.sum(),
        )


@dataclass(frozen=True)
class Training:
    """How networks are trained: AdamW in shuffled batches, until the held-out loss rises `patience` times in a row."""

    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    max_epochs: int = 60
    patience: int = 6


class Network(nn.Module):
    """Hidden layers with ReLU, (n, D) to (n, O)."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    def zero_output(self) -> Network:
        """The network with a last layer of zeros: training departs from whatever it is added to."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)
        return self


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


@dataclass(frozen=True)
class Scaler:
    """Features less their mean over their deviation; a constant feature becomes 0.  mean, scale: (D,) float32."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: np.ndarray, device: torch.device) -> Scaler:
        mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        # A column that is constant but for rounding has no scale of its own.
        constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
        scale = np.where(constant, np.inf, deviation)
        return cls(*(torch.from_numpy(values.astype(np.float32)).to(device) for values in (mean, scale)))

    def __call__(self, x: np.ndarray) -> Tensor:
        return (torch.as_tensor(x, dtype=torch.float32, device=self.mean.device) - self.mean) / self.scale
