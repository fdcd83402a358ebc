"""Fit the propensities of all signals: choose the design and the estimator of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.joint import fit_joint, start_level
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import prior_shares
from irm_fast.embeddings.parts import Propensities
from irm_fast.embeddings.two_step import ENOUGH, READS, coactions, fit_proven

LEFT_OUT = "known"  # the design under which a regression leaves a signal alone


class FoundPropensities(NamedTuple):
    """Linear propensities of all signals.

    Attributes:
        propensities: The propensities; those fitted in two steps are means over the folds.
        by_fold: `ProvenFit.by_fold`, from which `two_step.add_networks` starts; empty if no two-step signal is
            "hidden".
        open_level: 1 for constant propensities whose level only the joint likelihood shows, else 0; shape (K,).
        two_steps: For each signal whether its propensity was fitted on proven rows.
        prior: The prior deviation of logits in two steps, and the shares (D,) of its variance among the embeddings.
    """

    propensities: Propensities
    by_fold: list[Tensor]
    open_level: Tensor
    two_steps: tuple[bool, ...]
    prior: tuple[float, Tensor]


def fit_propensities(
    embeddings: Tensor,
    spread: Tensor,
    features: Tensor | None,
    objective: Objective,
    designs: Sequence[str],
    known: Tensor,
    folds: np.ndarray,
    *,
    estimator: str,
    sds: Sequence[float],
) -> FoundPropensities:
    """Fit linear propensities of all signals, in two steps where the data suffice and jointly elsewhere.

    Args:
        embeddings: Standardised embeddings of shape (N, D).
        spread: Standard deviations of the embeddings before they were standardised, of shape (D,).
        features: Standardised propensity features of shape (N, F), or None.
        objective: The implicit loss of the rows.
        designs: For each signal one of `DESIGN_CHOICES`.
        known: Propensity logits of shape (N, K) for the design "known", 0 elsewhere.
        folds: Fold numbers from 0, of shape (N,).
        estimator: "two-step", "joint" or "auto".
        sds: Prior standard deviations of a logit between responses. Fold 0 selects one of them, and whether the
            variance is spread over the embeddings evenly or by raw variances. The joint likelihood takes the first.

    Returns:
        The propensities, with the chosen designs.

    Raises:
        ValueError: `estimator` is "two-step" and a signal has fewer than 10 co-actions.
    """
    # Which signals other signals prove often enough
    two_steps = _in_two_steps(coactions(objective), designs, estimator)
    wanted = ["hidden" if design == "auto" else design for design in designs]
    chosen = [design if use else LEFT_OUT for design, use in zip(wanted, two_steps, strict=True)]

    # Two steps: the prior by the first fold, then the design by all of them
    prior = _best_prior(embeddings, spread, features, objective, chosen, folds, sds)
    proven = fit_proven(embeddings, features, objective, chosen, folds, *prior)
    no_better = [
        design == "auto" and use and proven.losses.design[k] >= proven.losses.constant[k]
        for k, (design, use) in enumerate(zip(designs, two_steps, strict=True))
    ]
    if any(no_better):
        chosen = ["constant" if no else design for no, design in zip(no_better, chosen, strict=True)]
        proven = fit_proven(embeddings, features, objective, chosen, folds, *prior)

    # The joint likelihood for the rest; where only constants are left, held-out rewards will show their level
    rest: list[str | None] = [
        None if design == "known" or use else ("constant" if design == "auto" else design)
        for design, use in zip(designs, two_steps, strict=True)
    ]
    final = tuple(other or one for one, other in zip(chosen, rest, strict=True))
    open_level = torch.tensor([float(design == "constant") for design in rest], device=embeddings.device)
    two_step = proven.propensities
    if any(design not in (None, "constant") for design in rest):
        fixed = two_step.logits(embeddings, features) + known
        joint = fit_joint(embeddings, features, objective, rest, fixed, folds, sd=sds[0])
    else:  # see reward_step.propensity_shift
        level = open_level * start_level(objective)
        joint = Propensities(final, 0 * two_step.weight, 0 * two_step.feature_weight, level)
    together = Propensities(
        final,
        two_step.weight + joint.weight,
        two_step.feature_weight + joint.feature_weight,
        two_step.bias + joint.bias,
    )
    by_fold = proven.by_fold if "hidden" in chosen else []
    return FoundPropensities(together, by_fold, open_level, tuple(two_steps), prior)


def _in_two_steps(counts: np.ndarray, designs: Sequence[str], estimator: str) -> list[bool]:
    """Return for each signal whether it is fitted in two steps: not known, enough co-actions, and not "joint".

    Raises:
        ValueError: `estimator` is "two-step" and a signal has too few co-actions.
    """
    few = [k for k, design in enumerate(designs) if design != "known" and counts[k] < ENOUGH]
    if estimator == "two-step" and few:
        raise ValueError(
            f"estimator: 'two-step' needs {ENOUGH} co-actions and as many silences beside an action; "
            f"signal {few[0]} has {counts[few[0]]}: use 'auto' or 'joint'"
        )
    return [design != "known" and k not in few and estimator != "joint" for k, design in enumerate(designs)]


def _best_prior(
    embeddings: Tensor,
    spread: Tensor,
    features: Tensor | None,
    objective: Objective,
    chosen: Sequence[str],
    folds: np.ndarray,
    sds: Sequence[float],
) -> tuple[float, Tensor]:
    """Return the prior deviation and the shares (D,) of its variance with the lowest loss on fold 0."""
    priors = list(itertools.product(sds, prior_shares(spread).values()))
    if len(priors) == 1 or not any(READS[design] for design in chosen):  # it does not matter
        return priors[0]

    def held_out_loss(prior: tuple[float, Tensor]) -> float:
        found = fit_proven(embeddings, features, objective, chosen, folds, *prior, first=1)
        return float(found.losses.design.sum())

    return min(priors, key=held_out_loss)
