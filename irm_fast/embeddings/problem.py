"""What every step of a fit reads, and the steps of which a fit is made: propensities, and a reward given them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import Training
from irm_fast.embeddings.parts import LinearStart, Reward
from irm_fast.embeddings.propensity_step import (
    FoundPropensities,
    fit_propensities,
    held_out_logits,
    refit_propensities,
    training_logits,
)
from irm_fast.embeddings.reward_step import PropensityLogits, calibrated, fit_reward
from irm_fast.embeddings.standardised import Standardised


class Split(NamedTuple):
    """A split of what the log shows into propensities and reward.

    Attributes:
        found: The propensities.
        logits: Their logits, known ones included.
        reward: The reward given these.
    """

    found: FoundPropensities
    logits: PropensityLogits
    reward: Reward


@dataclass(frozen=True)
class Problem:
    """N rows with embedding width D, F propensity features and K signals, and how to fit to them.

    Attributes:
        embeddings: The standardised embeddings, of shape (N, D).
        spread: Their standard deviations before that, of shape (D,).
        features: Standardised propensity features of shape (N, F), or None.
        objective: The implicit loss of the rows.
        known: Logits of known propensities of shape (N, K), 0 elsewhere.
        folds: Fold numbers from 0, of shape (N,).
        propensity_sds: Prior deviations of propensity logits between responses, to choose from.
        training: How networks are trained.
        generator: Decides the order of rows in the training of networks.
    """

    embeddings: Standardised
    spread: Tensor
    features: Tensor | None
    objective: Objective
    known: Tensor
    folds: np.ndarray
    propensity_sds: Sequence[float]
    training: Training
    generator: torch.Generator

    def fit_propensities(self, designs: Sequence[str], estimator: str) -> FoundPropensities:
        """Fit propensities of these designs, one for each signal; see `propensity_step.fit_propensities`."""
        return fit_propensities(
            self.embeddings,
            self.spread,
            self.features,
            self.objective,
            designs,
            self.known,
            self.folds,
            estimator=estimator,
            sds=self.propensity_sds,
        )

    def refit_propensities(self, found: FoundPropensities, **seen: Tensor | None) -> FoundPropensities:
        """Fit the regressions on proven rows again; `seen` as of `propensity_step.refit_propensities`."""
        return refit_propensities(found, self.embeddings, self.features, self.objective, self.folds, **seen)

    def logits(self, found: FoundPropensities) -> PropensityLogits:
        """Return the propensity logits of all signals, known ones included."""
        held_out = held_out_logits(found, self.embeddings, self.features, self.folds)
        training = training_logits(found.propensities, self.embeddings, self.features)
        order = self.order(found)
        return PropensityLogits(training + self.known + order.training, held_out + self.known + order.held_out)

    def order(self, found: FoundPropensities) -> PropensityLogits:
        """Return the part of the logits that comes from the signal that acted before."""
        if not any(first >= 0 for first in self.objective.after):
            nothing = self.known.new_zeros(1).expand(self.known.shape)
            return PropensityLogits(nothing, nothing)
        held_out = found.order[torch.from_numpy(self.folds).to(found.order.device)]
        return PropensityLogits(self.objective.followed * found.order.mean(0), self.objective.followed * held_out)

    def split(self, designs: Sequence[str], estimator: str, layers: str | Sequence[int]) -> Split:
        """Fit propensities of these designs, and a reward given these."""
        return self.with_reward(self.fit_propensities(designs, estimator), layers)

    def with_reward(
        self, found: FoundPropensities, layers: str | Sequence[int], start: LinearStart | None = None
    ) -> Split:
        """Fit a reward given these propensities."""
        logits = self.logits(found)
        return Split(found, logits, self.fit_reward(logits, layers, start))

    def fit_reward(
        self, logits: PropensityLogits, layers: str | Sequence[int], start: LinearStart | None = None
    ) -> Reward:
        """Fit a new reward given these propensities, and calibrate it; see `reward_step.fit_reward`."""
        reward = fit_reward(
            self.embeddings,
            self.spread,
            logits,
            self.objective,
            self.folds,
            layers,
            self.training,
            self.generator,
            start,
        )
        return calibrated(reward, logits, self.objective)
