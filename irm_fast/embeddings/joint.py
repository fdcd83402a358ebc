"""Joint likelihood of propensities and a linear reward, for signals that no other evidence proves often enough."""

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
    """Return starting values (K,): the propensity logits with which half of the responses would be preferred.

    Args:
        objective: The feedback of the rows.
    """
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

    def fitted(reward_sd: float, rows: Tensor, begin: Sequence[Tensor] | None = None) -> list[Tensor]:
        shapes = ((x.shape[1],), (), (len(designs), x.shape[1]), (len(designs), features.shape[1]))
        zero = [*(x.new_zeros(shape) for shape in shapes), start]
        parameters = [value.clone() for value in begin or zero]
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
    reward_sd = min(with_loss)[1]
    whole = fitted(reward_sd, rows_where(folds >= 0, device))
    # From the whole fit each fold's likelihood reaches the same of its maxima
    apart = [fitted(reward_sd, rows_where(folds != fold, device), whole) for fold in range(int(folds.max()) + 1)]

    def read(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        _, _, weight, slope, bias = parameters
        return weight * reads[0], slope * reads[1], bias * learned

    by_fold = [torch.stack(values) for values in zip(*map(read, apart), strict=True)]
    return Propensities.mean([design or "known" for design in designs], by_fold), by_fold
