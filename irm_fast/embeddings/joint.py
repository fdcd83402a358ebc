"""Propensities that nothing proves: learned together with a reward, by the likelihood of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import REWARD_SDS, fit_map, rows_where
from irm_fast.embeddings.parts import Propensities
from irm_fast.embeddings.two_step import READS

BIAS_SD = 2.0  # prior deviation of a propensity's logit in the joint likelihood, which may favour a propensity of 1


def start_level(objective: Objective) -> Tensor:
    """(K,) logit of the propensity under which half of the responses please."""
    rate = (objective.feedback == 1).sum(0) / (objective.feedback >= 0).sum(0).clamp(min=1)
    return torch.logit((2 * rate).clamp(0.02, 0.9))


def fit_joint(
    x: Tensor,
    z: Tensor | None,
    objective: Objective,
    designs: Sequence[str | None],
    fixed: Tensor,
    folds: np.ndarray,
    *,
    sd: float,
) -> Propensities:
    """Propensities of the signals with a design, together with a linear reward, by penalised maximum likelihood.

    fixed: (N, K) logits of the other signals.  folds: (N,); the prior of the reward is chosen by the first.  Where
    nothing proves a preference this is all that can be done: with one signal the scale of a constant propensity then
    rests on the sigmoid's shape, and a free one is not identified.
    """
    device = x.device
    learned = torch.tensor([design is not None for design in designs], device=device)
    reads = [
        torch.tensor([[float(number in READS[design or "known"])] for design in designs], device=device)
        for number in (0, 1)
    ]
    features = x.new_zeros(len(x), 0) if z is None else z
    start = start_level(objective)

    def loss(parameters: Sequence[Tensor], rows: Tensor) -> Tensor:
        reward, reward_bias, weight, slope, bias = parameters
        some, more, given = (values.index_select(0, rows) for values in (x, features, fixed))
        logits = some @ (weight * reads[0]).T + more @ (slope * reads[1]).T + bias
        return objective.loss(some @ reward + reward_bias, torch.where(learned, logits, given), rows)

    def fitted(reward_sd: float, rows: Tensor) -> list[Tensor]:
        shapes = ((x.shape[1],), (), (len(designs), x.shape[1]), (len(designs), features.shape[1]))
        parameters = [*(x.new_zeros(shape) for shape in shapes), start.clone()]
        deviations = (reward_sd, None, sd, sd, BIAS_SD)

        def penalised() -> Tensor:
            penalty = [
                (values**2).sum() * (values.shape[-1] if values is not parameters[4] else 1) / deviation**2
                for values, deviation in zip(parameters, deviations, strict=True)
                if deviation is not None
            ]
            return loss(parameters, rows) + sum(penalty) / (2 * len(rows))

        fit_map(parameters, penalised)
        return parameters

    part, held_out = rows_where(folds != 0, device), rows_where(folds == 0, device)
    with_loss = [(float(loss(fitted(reward_sd, part), held_out)), reward_sd) for reward_sd in REWARD_SDS]
    _, _, weight, slope, bias = fitted(min(with_loss)[1], rows_where(folds >= 0, device))
    return Propensities(
        tuple(design or "known" for design in designs), weight * reads[0], slope * reads[1], bias * learned
    )
