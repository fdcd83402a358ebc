"""The propensity designs: what the chance that a pleased user acts may depend on, for each signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True)
class RewardSpec:
    """What a reward model explains and how: all that rebuilds it beside its weights."""

    design: str
    signals: tuple[str, ...] = ()
    polarity: tuple[int, ...] = ()
    misclick_rate: tuple[float, ...] = ()
    feature_names: tuple[str, ...] = ()
    max_length: int = 1024

    @property
    def columns(self) -> int:
        """Columns of the propensity logits: one for each signal, or one that is always missing."""
        return max(1, len(self.signals))


class ConstantPropensity(nn.Module):
    """One propensity for each signal, the same for every response."""

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(spec.columns))

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        return self.bias.expand(len(hidden), -1)


class HiddenPropensity(nn.Module):
    """Linear in the pooled hidden state; starts constant."""

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(spec.columns, hidden_size))
        self.bias = nn.Parameter(torch.zeros(spec.columns))

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        return linear(hidden, self.weight, self.bias)


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
        if features is None:
            raise ValueError("features: got none; a model of the 'features' design needs those of the log")
        return linear((features - self.mean) / self.std, self.weight, self.bias)


class KnownPropensity(nn.Module):
    """The log's own propensities, as from randomised exposure; nothing is learned."""

    def __init__(self, spec: RewardSpec, hidden_size: int) -> None:
        super().__init__()

    def forward(self, hidden: Tensor, propensity: Tensor | None, features: Tensor | None) -> Tensor:
        if propensity is None:
            raise ValueError("propensity: got none; a model of the 'known' design needs those of the log")
        # A propensity of 1 would have an infinite logit; NaN stands where the feedback is missing.
        return torch.logit(propensity.double().clamp(max=1 - 1e-12)).float().nan_to_num(0.0)


PROPENSITIES: dict[str, Any] = {
    "constant": ConstantPropensity,
    "hidden": HiddenPropensity,
    "features": FeaturePropensity,
    "known": KnownPropensity,
}

_ONE_SIGNAL = "One signal reveals only the product of preference and propensity: "


def identification_note(spec: RewardSpec, labelled: bool) -> str:
    """What the reward of this design rests on, and what must be believed (arXiv:2603.23184 and beyond).

    labelled: whether the log holds explicit preferences too.
    """
    if not spec.signals:
        return "Explicit preferences only: identified if the choice of rows to label does not depend on them."
    if spec.design == "known":
        note = "Identified if the log's propensities are right, as under randomised exposure."
    elif len(spec.signals) == 1 and spec.design == "constant":
        note = (
            f"{_ONE_SIGNAL}with a propensity taken as constant the ranking tends to the naive classifier's, "
            "and the scale rests on the sigmoid's shape. Neither can be tested in this log."
        )
    elif len(spec.signals) == 1 and spec.design == "hidden":
        note = (
            f"NOT IDENTIFIED. {_ONE_SIGNAL}any split of it into the two fits the log equally well, and both "
            "may use the same hidden state. The learned reward can rank worse than the naive classifier's."
        )
    elif len(spec.signals) == 1:
        note = (
            f"{_ONE_SIGNAL}identified up to scale only if the propensity depends on these features, the "
            "preference does not, and the propensity depends on nothing else of the response."
        )
    elif len(set(spec.polarity)) == 2:
        note = (
            "Signals of both polarities give definite positives and definite negatives; the scale rests on "
            "propensities that are right. Assumes signals independent of each other given the response."
        )
    else:
        note = (
            "Several signals of one polarity identify the reward if they are independent of each other given "
            "the response. One signal that appears only after another, or is logged twice, destroys this; "
            "shared activity of users lowers the mean. Little of it can be tested in this log."
        )
    anchor = " Explicit preferences anchor scale and ranking, if the choice of rows is independent of them."
    return note + (anchor if labelled else "")
