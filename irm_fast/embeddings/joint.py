"""Joint likelihood of propensities and a linear reward, for signals that no other evidence proves often enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import REWARD_SDS, fit_map, rows_where
from irm_fast.embeddings.parts import Propensities, Reward
from irm_fast.embeddings.standardised import Rows, Standardised, as_standardised
from irm_fast.embeddings.two_step import READS

BIAS_SD = 2.0  # prior deviation of a propensity's logit in the joint likelihood, which may favour a propensity of 1
SKETCH_SD = 2.0  # prior deviation of the reward logit in `sketch`


def start_level(objective: Objective) -> Tensor:
    """Return starting values (K,): the propensity logits with which half of the responses would be preferred.

    Args:
        objective: The feedback of the rows.
    """
    rate = (objective.feedback == 1).sum(0) / (objective.feedback >= 0).sum(0).clamp(min=1)
    return torch.logit((2 * rate).clamp(0.02, 0.9))


@dataclass(frozen=True)
class _Joint:
    """The joint likelihood of N rows, with embedding width D, F propensity features and K signals.

    Its parameters are the weights (D,) and the bias () of the reward, and the weights (K, D), the feature weights
    (K, F) and the biases (K,) of the propensities.

    Attributes:
        x: The standardised embeddings, of shape (N, D).
        features: Standardised propensity features of shape (N, F).
        objective: The implicit loss of the rows.
        designs: The K designs; None leaves the propensity of a signal as it is in `fixed`.
        fixed: Propensity logits of shape (N, K), read for the signals without a design.
        sd: Prior standard deviation of a propensity logit between responses.
    """

    x: Standardised
    features: Tensor
    objective: Objective
    designs: Sequence[str | None]
    fixed: Tensor
    sd: float

    @cached_property
    def learned(self) -> Tensor:
        """Whether a signal has a design, of shape (K,)."""
        return torch.tensor([design is not None for design in self.designs], device=self.x.device)

    @cached_property
    def reads(self) -> list[Tensor]:
        """1 for the signals whose propensities read the embedding, and the features, else 0: two of shape (K, 1)."""
        return [
            torch.tensor([[float(number in READS[design or "known"])] for design in self.designs], device=self.x.device)
            for number in (0, 1)
        ]

    def loss(self, parameters: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Return the mean loss of some rows."""
        reward, reward_bias, weight, slope, bias = parameters

        def of_block(some: Rows, x: Tensor) -> Tensor:
            assert isinstance(some, Tensor)
            more, given = (values.index_select(0, some) for values in (self.features, self.fixed))
            logits = x @ (weight * self.reads[0]).T + more @ (slope * self.reads[1]).T + bias
            propensity = torch.where(self.learned, logits, given)
            return self.objective.share_of_mean(x @ reward + reward_bias, propensity, some, len(rows))

        return self.x.loss(of_block, parameters, rows)

    def fitted(self, reward_sd: float, rows: Tensor, begin: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the parameters fitted to some rows, from those of an earlier fit if there is one."""
        signals, width, count = len(self.designs), self.x.width, self.features.shape[1]
        shapes = ((width,), (), (signals, width), (signals, count))
        zero = [*(self.x.zeros(*shape) for shape in shapes), start_level(self.objective)]
        parameters = [value.clone() for value in begin or zero]
        deviations = (reward_sd, None, self.sd, self.sd, BIAS_SD)

        def penalised() -> Tensor:
            penalty = [
                (values**2).sum() * (values.shape[-1] if values is not parameters[4] else 1) / deviation**2
                for values, deviation in zip(parameters, deviations, strict=True)
                if deviation is not None
            ]
            return self.loss(parameters, rows) + sum(penalty) / (2 * len(rows))

        fit_map(parameters, penalised)
        return parameters

    def propensities(self, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights (K, D), feature weights (K, F) and biases (K,) of the propensities, 0 where not learned."""
        _, _, weight, slope, bias = parameters
        return weight * self.reads[0], slope * self.reads[1], bias * self.learned


def sketch(
    x: Standardised, z: Tensor | None, objective: Objective, designs: Sequence[str], *, sd: float
) -> tuple[Reward, Propensities]:
    """Fit a linear reward and propensities at once to all rows, a tenth of the work of a fit that holds folds out.

    Args:
        x: Standardised embeddings of shape (N, D).
        z: Standardised propensity features of shape (N, F), or None.
        objective: The implicit loss of the rows.
        designs: The K designs, none of them "known".
        sd: Prior standard deviation of a propensity logit between responses.
    """
    features = x.zeros(len(x), 0) if z is None else z
    joint = _Joint(x, features, objective, designs, x.zeros(len(x), len(designs)), sd)
    parameters = joint.fitted(SKETCH_SD, torch.arange(len(x), device=x.device))
    return Reward(parameters[0], parameters[1], ()), Propensities(tuple(designs), *joint.propensities(parameters))


def fit_joint(
    x: Tensor | Standardised,
    z: Tensor | None,
    objective: Objective,
    designs: Sequence[str | None],
    fixed: Tensor,
    folds: np.ndarray,
    *,
    sd: float,
) -> tuple[Propensities, list[Tensor]]:
    """Fit propensities together with a linear reward by penalised maximum likelihood.

    No better estimate is available where nothing proves a preference. With a single signal, the scale of a constant
    propensity then rests on the shape of the sigmoid, and a propensity that varies freely is not identified.

    Args:
        x: Standardised embeddings of shape (N, D).
        z: Standardised propensity features of shape (N, F), or None.
        objective: The implicit loss of the rows.
        designs: The K designs; None leaves the propensity of a signal as it is in `fixed`.
        fixed: Propensity logits of shape (N, K), read for the signals without a design.
        folds: Fold numbers from 0, of shape (N,); fold 0 selects the prior of the reward.
        sd: Prior standard deviation of a propensity logit between responses.

    Returns:
        The propensities, the means over fits that leave one fold out; and the `weight`, `feature_weight` and `bias` of
        these fits, each with the folds as first dimension. Signals without a design have the logit 0 and the design
        "known".
    """
    x, device = as_standardised(x), x.device
    joint = _Joint(x, x.zeros(len(x), 0) if z is None else z, objective, designs, fixed, sd)
    part, held_out = rows_where(folds != 0, device), rows_where(folds == 0, device)
    with_loss = [(float(joint.loss(joint.fitted(reward_sd, part), held_out)), reward_sd) for reward_sd in REWARD_SDS]
    reward_sd = min(with_loss)[1]
    whole = joint.fitted(reward_sd, rows_where(folds >= 0, device))
    # From the whole fit each fold's likelihood reaches the same of its maxima
    apart = [joint.fitted(reward_sd, rows_where(folds != fold, device), whole) for fold in range(int(folds.max()) + 1)]

    by_fold = [torch.stack(values) for values in zip(*map(joint.propensities, apart), strict=True)]
    return Propensities.mean([design or "known" for design in designs], by_fold), by_fold
