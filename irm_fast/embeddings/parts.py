"""The components of a fitted model: the scaler of the embeddings, the reward, the propensities, and their networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.embeddings.declared import followers

WIDE = 1024  # numbers of an inner loop


class Network(nn.Module):
    """A multilayer perceptron with ReLU.

    Args:
        inputs: The number D of inputs.
        hidden: The widths of the hidden layers.
        outputs: The number O of outputs.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (n, O).

        Args:
            x: Inputs (float32) of shape (n, D).
        """
        out: Tensor = self.layers(x)
        return out

    def zero_output(self) -> Network:
        """Set the last layer to zero in place and return the network, so that training starts from an output of 0."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)
        return self


@dataclass(frozen=True)
class Scaler:
    """Standardises features: subtracts the mean and divides by the standard deviation. Constant features become 0.

    Attributes:
        mean: The means (float32) of shape (D,).
        scale: The standard deviations (float32) of shape (D,), infinite for constant features.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: np.ndarray, device: torch.device) -> Scaler:
        """Compute the means and standard deviations of features.

        Args:
            x: Features of shape (N, D).
            device: The device of the scaler and of what it returns.
        """
        return cls.with_moments(x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64), device)

    @classmethod
    def with_moments(cls, mean: np.ndarray, deviation: np.ndarray, device: torch.device) -> Scaler:
        """Return what standardises features of these means and standard deviations.

        Args:
            mean: The means (float64) of shape (D,).
            deviation: The standard deviations (float64) of shape (D,).
            device: As of `of`.
        """
        # A column that is constant but for rounding has no scale of its own.
        constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
        scale = np.where(constant, np.inf, deviation)
        return cls(*(torch.from_numpy(values.astype(np.float32)).to(device) for values in (mean, scale)))

    def __call__(self, x: np.ndarray | Tensor) -> Tensor:
        """Return the standardised features (float32) of shape (n, D).

        Args:
            x: Features of shape (n, D).
        """
        return (torch.as_tensor(x, dtype=torch.float32, device=self.mean.device) - self.mean).div_(self.scale)

    def into(self, out: Tensor, x: Tensor) -> Tensor:
        """Write the standardised features into a tensor, and return it: the same numbers, without a new tensor.

        Args:
            out: The tensor (float32), contiguous, of shape (n, D); it may be `x` itself.
            x: Features (float32) of shape (n, D), on the device of the scaler.
        """
        count, width = x.shape
        several = max(1, WIDE // width)  # rows taken as one: a long inner loop is twice as fast as a short one
        whole = count - count % several if x.is_contiguous() else 0
        if whole:
            parts = (part[:whole].view(-1, several * width) for part in (x, out))
            mean, scale = self.mean.repeat(several), self.scale.repeat(several)
            torch.sub(next(parts), mean, out=(wide := next(parts)))
            wide.div_(scale)
        torch.sub(x[whole:], self.mean, out=out[whole:])
        out[whole:].div_(self.scale)
        return out


NONE = torch.empty(0)


class LinearStart(NamedTuple):
    """What a fit of a linear reward has found.

    Attributes:
        sd: The prior deviation of the logit between responses.
        share: The name of the `optimize.prior_shares`.
        fits: For each fold the weights, in units of their prior deviations, of shape (D,), and the bias of shape ().
    """

    sd: float
    share: str
    fits: Sequence[tuple[Tensor, Tensor]]


@dataclass
class Reward:
    """A reward of standardised embeddings x: x @ weight + bias + the mean of the networks' outputs.

    The attributes from `held_out` on are those of the N training rows and of the fit; they are empty in a model that is
    kept.

    Attributes:
        weight: Weights of shape (D,).
        bias: The bias, of shape ().
        networks: Networks from (n, D) to (n, 1), one for each fold; none in a linear reward.
        factor: `uncertainty.covariance_factor` of the weights and the bias, of shape (D + 1, R); None in a reward of
            networks, and in a model of an earlier version.
        held_out: The reward logit of each row from the fold model that did not see it, of shape (N,).
        each: Reward logits of all rows from each fold model, of shape (folds, N).
        losses: The loss of each row at its held-out logit, times its weight, of shape (N,).
        start: Where another fit of a linear reward to the same rows may start; None if the reward is a network.
        precision: Prior precisions of the weights and of the bias, on the scale of a sum of losses, of shape (D + 1,).
    """

    weight: Tensor
    bias: Tensor
    networks: tuple[Network, ...]
    factor: Tensor | None = None
    held_out: Tensor = NONE
    each: Tensor = NONE
    losses: Tensor = NONE
    start: LinearStart | None = None
    precision: Tensor = NONE

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return reward logits of shape (n,).

        Args:
            x: Standardised embeddings of shape (n, D).
        """
        out = x @ self.weight + self.bias
        return out + torch.stack([net(x).squeeze(1) for net in self.networks]).mean(0) if self.networks else out

    def mean_preference(self) -> float:
        """Return the mean of P(preferred) over the training rows, each by the fold model that did not see it."""
        return float(torch.sigmoid(self.held_out).mean())

    def known_factor(self) -> Tensor:
        """Return `factor`, or raise ValueError if there is none."""
        if self.networks:
            raise ValueError(
                "intervals: the reward is a network, of which none are computed; expected a linear reward: fit with "
                "hidden_layers=()"
            )
        if self.factor is None:
            raise ValueError("intervals: the model was saved by a version that computed none; fit it again")
        return self.factor


@dataclass
class Propensities:
    """Propensities of K signals: logits x @ weight.T + z @ feature_weight.T + bias + the mean of the networks' outputs.

    Here x are standardised embeddings and z standardised propensity features. Known propensities are not included:
    their logits are 0 here.

    Attributes:
        designs: For each signal "constant", "hidden", "features" or "known".
        weight: Weights of the embeddings, of shape (K, D).
        feature_weight: Weights of the features, of shape (K, F).
        bias: Biases of shape (K,).
        networks: Networks from (n, D) to (n, K), one for each fold, read for the design "hidden"; none if all is
            linear.
        factor: Factors of the propensities, of shape (K,), below 1 where users share an activity: in models of earlier
            versions. None means 1.
        after: For each signal the number of the signal that it follows, -1 if it follows none; () if none does.
        order: What an action of that signal adds to the logit, of shape (K,); None means 0.
    """

    designs: tuple[str, ...]
    weight: Tensor
    feature_weight: Tensor
    bias: Tensor
    networks: tuple[Network, ...] = ()
    factor: Tensor | None = None
    after: tuple[int, ...] = ()
    order: Tensor | None = None

    @classmethod
    def mean(cls, designs: Sequence[str], by_fold: Sequence[Tensor]) -> Propensities:
        """Return linear propensities whose weight, feature weight and bias are the means over the first dimension."""
        weight, feature_weight, bias = (values.mean(0) for values in by_fold)
        return cls(tuple(designs), weight, feature_weight, bias)

    @torch.no_grad()
    def logits(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return propensity logits of shape (n, K), 0 for the design "known".

        Args:
            x: Standardised embeddings of shape (n, D).
            z: Standardised features of shape (n, F). None leaves their terms out.
        """
        out = x @ self.weight.T + self.bias
        if z is not None:
            out = out + z @ self.feature_weight.T
        if self.networks:
            out = out + torch.stack([network(x) for network in self.networks]).mean(0) * self.hidden
        if self.factor is not None:
            m = torch.sigmoid(out) * self.factor
            out = torch.where(self.factor == 1, out, torch.log(m) - torch.log1p(-m))
        return out

    def whatever_came_before(self, logits: Tensor) -> Tensor:
        """Return the logits (n, K) of signals that may follow another, whether or not that one acts.

        Args:
            logits: Logits of shape (n, K), where the signal before a follower is silent.
        """
        if self.order is None:
            return logits
        out = logits.clone()
        for follower, first in followers(self.after):
            own, before = logits[:, follower], torch.sigmoid(logits[:, first])
            acts = (1 - before) * torch.sigmoid(own) + before * torch.sigmoid(own + self.order[follower])
            out[:, follower] = torch.logit(acts)
        return out

    @property
    def hidden(self) -> Tensor:
        """1 for signals of the design "hidden", which reads the embedding, else 0 (float32), of shape (K,)."""
        return torch.tensor([float(design == "hidden") for design in self.designs], device=self.bias.device)
