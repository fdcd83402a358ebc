"""The parts of a fitted model: scale of the embeddings, reward, propensities, and the networks in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


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


NONE = torch.empty(0)


@dataclass
class Reward:
    """Reward logits (n,) of standardised embeddings: x @ weight + bias + mean of the networks' outputs.

    held_out: (N,) logit of each training row by the part that was not fitted to it, losses: (N,) of these, weighted.
    each: (F, N) logits of all rows by each fold's part. Empty in a model that is kept.
    """

    weight: Tensor
    bias: Tensor
    networks: tuple[Network, ...]
    held_out: Tensor = NONE
    each: Tensor = NONE
    losses: Tensor = NONE

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        out = x @ self.weight + self.bias
        return out + torch.stack([net(x).squeeze(1) for net in self.networks]).mean(0) if self.networks else out


@dataclass
class Propensities:
    """Propensity logits of K signals: x @ weight.T + z @ feature_weight.T + bias + mean of the networks' outputs.

    weight: (K, D).  feature_weight: (K, F).  bias: (K,).  designs: K of constant, hidden, features, known.
    networks: of (n, D) to (n, K); none where all is linear.  A known propensity has no logit here: its column is 0.
    factor: (K,) multiplies the propensities; below 1 where users share an activity.
    """

    designs: tuple[str, ...]
    weight: Tensor
    feature_weight: Tensor
    bias: Tensor
    networks: tuple[Network, ...] = ()
    factor: Tensor | None = None

    @torch.no_grad()
    def logits(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        out = x @ self.weight.T + self.bias
        if z is not None:
            out = out + z @ self.feature_weight.T
        if self.networks:
            out = out + torch.stack([network(x) for network in self.networks]).mean(0) * self.hidden
        if self.factor is not None:
            m = torch.sigmoid(out) * self.factor
            out = torch.where(self.factor == 1, out, torch.log(m) - torch.log1p(-m))
        return out

    @property
    def hidden(self) -> Tensor:
        """(K,) 1 where the design reads the embedding."""
        return torch.tensor([float(design == "hidden") for design in self.designs], device=self.bias.device)
