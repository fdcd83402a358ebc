"""The heads on pooled hidden states: the reward, and what the chance that a pleased user acts may depend on.

Each propensity design is a module: called with pooled hidden states (N, H), it gives the propensity logits (N, K);
`heads` gives the keywords by which `linear_implicit_rm_loss` forms the same logits itself.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from irm_fast.data.signals import RewardSpec, known_logits
from irm_fast.losses.linear import linear_implicit_rm_loss


class ConstantPropensity(nn.Module):
    """One propensity for each signal, the same for every response."""

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(spec.columns))

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        return self.bias.expand(len(hidden), -1)

    def heads(self, propensity: Tensor | None, features: Tensor | None) -> dict[str, Tensor]:
        return {"propensity_logits": self.bias}


class HiddenPropensity(nn.Module):
    """Linear in the pooled hidden state; starts constant."""

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(spec.columns, hidden_size))
        self.bias = nn.Parameter(torch.zeros(spec.columns))

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        return linear(hidden, self.weight, self.bias)

    def heads(self, propensity: Tensor | None, features: Tensor | None) -> dict[str, Tensor]:
        return {"propensity_weight": self.weight, "propensity_bias": self.bias}


class FeaturePropensity(nn.Module):
    """Linear in the log's features, standardised by their mean and deviation in the training part."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__()
        count = len(spec.feature_names)
        self.weight = nn.Parameter(torch.zeros(spec.columns, count))
        self.bias = nn.Parameter(torch.zeros(spec.columns))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))

    def standardise(self, features: np.ndarray) -> None:
        """Take mean and deviation from features (N, F); a constant feature keeps a deviation of one."""
        std = features.std(axis=0, dtype=np.float64)
        self.mean.copy_(torch.from_numpy(features.mean(axis=0, dtype=np.float64)))
        self.std.copy_(torch.from_numpy(np.where(std > 0, std, 1.0)))

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        return self.heads(propensity, features)["propensity_logits"]

    def heads(self, propensity: Tensor | None, features: Tensor | None) -> dict[str, Tensor]:
        if features is None:
            raise ValueError("features: got none; a model of the 'features' design needs those of the log")
        return {"propensity_logits": linear((features - self.mean) / self.std, self.weight, self.bias)}


class KnownPropensity(nn.Module):
    """The log's own propensities, as from randomised exposure; nothing is learned."""

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__()

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        return self.heads(propensity, features)["propensity_logits"]

    def heads(self, propensity: Tensor | None, features: Tensor | None) -> dict[str, Tensor]:
        if propensity is None:
            raise ValueError("propensity: got none; a model of the 'known' design needs those of the log")
        return {"propensity_logits": known_logits(propensity)}


PROPENSITIES: dict[str, Any] = {
    "constant": ConstantPropensity,
    "hidden": HiddenPropensity,
    "features": FeaturePropensity,
    "known": KnownPropensity,
}


class Heads(nn.Module):
    """Reward head and propensity design on pooled hidden states, in float32 under any autocast.

    reward: `score` of a `*ForSequenceClassification`, linear to one output, no bias.
    """

    def __init__(self, reward: nn.Linear, spec: RewardSpec) -> None:
        super().__init__()
        self.reward = reward
        self.reward_bias = nn.Parameter(torch.zeros(1))  # not (): FSDP shards no scalars
        self.propensity = PROPENSITIES[spec.design](spec, reward.in_features)

    def forward(
        self,
        hidden: Tensor,
        propensity: Tensor | None = None,
        features: Tensor | None = None,
        feedback: Tensor | None = None,
        stratification: tuple[Tensor, Tensor] | Literal["current"] | None = None,
        **options: Any,
    ) -> Any:
        """Logits, or with `feedback` (N, K) the loss: arguments and returns as of `ImplicitRewardModel.forward`."""
        with torch.autocast(hidden.device.type, enabled=False):
            if feedback is None:
                return self.logits(hidden, propensity, features)
            if stratification == "current":
                with torch.no_grad():
                    stratification = self.logits(hidden, propensity, features)
            return linear_implicit_rm_loss(
                hidden,
                self.reward.weight.squeeze(0),
                feedback,
                reward_bias=self.reward_bias.squeeze(0),
                stratification=stratification,  # type: ignore[arg-type]
                **self.propensity.heads(propensity, features),
                **options,
            )

    def logits(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Reward logits (N,) with the bias, and propensity logits (N, K)."""
        reward = self.reward(hidden).squeeze(-1) + self.reward_bias
        return reward, self.propensity(hidden, propensity, features)
