"""The heads on pooled hidden states: the reward, and the propensity of every signal.

A propensity design says what the propensity, the probability that a pleased user acts, may depend on. Each design is a
module that gives the propensity logits, and the keywords by which `linear_implicit_rm_loss` forms the same logits.
Where propensities are fitted first (the estimator "two-step"), those of any design come with the rows.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from irm_fast.data.signals import RewardSpec, known_logits
from irm_fast.losses.linear import linear_implicit_rm_loss


class Logits(NamedTuple):
    """The output of the heads for N rows and K signals, float32."""

    reward: Tensor  # (N,) reward logits, with the bias
    propensity: Tensor  # (N, K) propensity logits


class PropensityDesign(nn.Module):
    """The base of the propensity designs.

    Args:
        spec: The signals and features of the model.
        hidden_size: The width H of the hidden states.

    Attributes:
        state_maps: Names of the parameters that are linear maps of the hidden state: they learn at the backbone's rate,
            the others, a few scalars, at the rate of the heads.
    """

    state_maps: frozenset[str] = frozenset()

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__()

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        """Propensity logits (N, K).

        Args:
            hidden: Pooled hidden states, (N, H) float32.
            propensity: The propensities of the log, (N, K) probabilities; read by the `known` design alone.
            features: The features of the log, (N, F) float32; read by the `features` design alone.

        Raises:
            ValueError: The design reads something that is not given.
        """
        raise NotImplementedError

    def loss_keywords(self, propensity: Tensor | None, features: Tensor | None) -> dict[str, Tensor]:
        """The keywords of `linear_implicit_rm_loss` by which it forms the same propensity logits.

        Args:
            propensity: As of `forward`.
            features: As of `forward`.

        Raises:
            ValueError: The design reads something that is not given.
        """
        raise NotImplementedError


class ConstantPropensity(PropensityDesign):
    """One propensity for each signal, the same for every response."""

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__(spec, hidden_size)
        self.bias = nn.Parameter(torch.zeros(spec.columns))

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        return self.bias.expand(len(hidden), -1)

    def loss_keywords(self, propensity: Tensor | None, features: Tensor | None) -> dict[str, Tensor]:
        return {"propensity_logits": self.bias}


class HiddenPropensity(PropensityDesign):
    """Propensity logits that are linear in the pooled hidden state; they start constant."""

    state_maps = frozenset({"weight"})

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__(spec, hidden_size)
        self.weight = nn.Parameter(torch.zeros(spec.columns, hidden_size))
        self.bias = nn.Parameter(torch.zeros(spec.columns))

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        return linear(hidden, self.weight, self.bias)

    def loss_keywords(self, propensity: Tensor | None, features: Tensor | None) -> dict[str, Tensor]:
        return {"propensity_weight": self.weight, "propensity_bias": self.bias}


class FeaturePropensity(PropensityDesign):
    """Propensity logits that are linear in the features of the log.

    Attributes:
        mean: The mean of each feature in the training part, (F,).
        std: The standard deviation of each feature in the training part, (F,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__(spec, hidden_size)
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
        return self.loss_keywords(propensity, features)["propensity_logits"]

    def loss_keywords(self, propensity: Tensor | None, features: Tensor | None) -> dict[str, Tensor]:
        if features is None:
            raise ValueError("features: got none; a model of the 'features' design needs those of the log")
        return {"propensity_logits": linear((features - self.mean) / self.std, self.weight, self.bias)}


class KnownPropensity(PropensityDesign):
    """The log's own propensities, as randomised exposure gives them; nothing is learned."""

    lacking = "got none; a model of the 'known' design needs those of the log"

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        return self.loss_keywords(propensity, features)["propensity_logits"]

    def loss_keywords(self, propensity: Tensor | None, features: Tensor | None) -> dict[str, Tensor]:
        if propensity is None:
            raise ValueError(f"propensity: {self.lacking}")
        return {"propensity_logits": known_logits(propensity)}


class FirstPropensity(KnownPropensity):
    """Propensities that were fitted before the reward, on states of the untrained model: they come with the rows."""

    lacking = (
        "got none; this model's were fitted on states of the model that it was trained from, which make those of "
        "other rows: expected the log that evaluation.propensities.with_propensities returns"
    )


PROPENSITY_DESIGNS: dict[str, type[PropensityDesign]] = {
    "constant": ConstantPropensity,
    "hidden": HiddenPropensity,
    "features": FeaturePropensity,
    "known": KnownPropensity,
}


class Heads(nn.Module):
    """The reward head and the propensity design, computed in float32 under any autocast.

    Args:
        reward: `score` of a `*ForSequenceClassification`: linear, with one output and no bias.
        spec: The signals of the model and its propensity design.
    """

    propensity_design: PropensityDesign

    def __init__(self, reward: nn.Linear, spec: RewardSpec) -> None:
        super().__init__()
        self.reward = reward
        self.reward_bias = nn.Parameter(torch.zeros(1))  # not (): FSDP shards no scalars
        kind = FirstPropensity if spec.estimator == "two-step" else PROPENSITY_DESIGNS[spec.design]
        self.propensity_design = kind(spec, reward.in_features)

    def logits(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Logits:
        """Reward and propensity logits; arguments as of `PropensityDesign.forward`."""
        with torch.autocast(hidden.device.type, enabled=False):
            reward = self.reward(hidden).squeeze(-1) + self.reward_bias
            return Logits(reward, self.propensity_design(hidden, propensity, features))

    def loss(
        self,
        hidden: Tensor,
        feedback: Tensor,
        *,
        propensity: Tensor | None,
        features: Tensor | None,
        stratification: tuple[Tensor, Tensor] | Literal["current"] | None,
        **options: Any,
    ) -> Tensor:
        """The implicit loss, float32 ().

        Args:
            hidden: Pooled hidden states, (N, H) float32.
            feedback: Feedback (1, 0, -1), (N, K).
            propensity: As of `PropensityDesign.forward`.
            features: As of `PropensityDesign.forward`.
            stratification: As of `ImplicitRewardModel.loss`.
            options: Further keywords of `linear_implicit_rm_loss`.
        """
        if stratification == "current":
            with torch.no_grad():
                stratification = self.logits(hidden, propensity, features)
        with torch.autocast(hidden.device.type, enabled=False):
            keywords: dict[str, Any] = {**self.propensity_design.loss_keywords(propensity, features), **options}
            loss: Tensor = linear_implicit_rm_loss(
                hidden,
                self.reward.weight.squeeze(0),
                feedback,
                reward_bias=self.reward_bias.squeeze(0),
                stratification=stratification,
                **keywords,
            )
        return loss

    def pair_loss(self, hidden: Tensor, margin: Tensor) -> Tensor:
        """The sum over P pairs of the Bradley-Terry loss of the reward, float32 ().

        The logit that the chosen response is preferred is the difference of the rewards: exactly so given that just one
        of the two responses pleases. The margin is subtracted from it.

        Args:
            hidden: Pooled hidden states, (2P, H) float32: chosen, rejected, chosen, ...
            margin: The margin of each pair, (P,) float32.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            chosen, rejected = self.reward(hidden).reshape(-1, 2).unbind(1)
            return softplus(margin - (chosen - rejected)).sum()
