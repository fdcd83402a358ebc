"""Fit the propensities of all signals: choose the design and the estimator of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.assumed import assumed_design
from irm_fast.embeddings.joint import fit_joint, start_level
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import prior_shares, rows_where
from irm_fast.embeddings.parts import Propensities
from irm_fast.embeddings.standardised import Rows, Standardised, as_standardised
from irm_fast.embeddings.two_step import ENOUGH, READS, ProvenFit, coactions, fit_proven, sharers

LEFT_OUT = "known"  # the design under which a regression leaves a signal alone
SHARING = 0.5  # of the prior variance of slopes, where signals share it
SHARING_FEW = 100  # co-actions for each slope; with more the prior of the slopes hardly matters
SHARING_COST = 0.1  # of what propensities foretell about held-out actions: signals that lose more do not share


class FoundPropensities(NamedTuple):
    """Linear propensities of all signals.

    Attributes:
        propensities: The propensities; those fitted in two steps are means over the folds.
        by_fold: `weight`, `feature_weight` and `bias` of the propensities in fits that leave one fold out, each with
            the folds as first dimension.
        two_step: The designs of the regressions on proven rows; `LEFT_OUT` for signals without one.
        prior: The prior deviation of logits in these, and the shares (D,) of its variance among the embeddings.
        sharing: The part of this variance that signals have in common, 0 or `SHARING`.
        rest: The part of `by_fold` that is not fitted by them.
        order: `ProvenFit.order`.
        open_level: 1 for constant propensities whose level only the joint likelihood shows, else 0; shape (K,).
    """

    propensities: Propensities
    by_fold: list[Tensor]
    two_step: Sequence[str]
    prior: tuple[float, Tensor]
    sharing: float
    rest: list[Tensor]
    order: Tensor
    open_level: Tensor

    @property
    def two_steps(self) -> tuple[bool, ...]:
        """For each signal whether its propensity was fitted on proven rows."""
        return tuple(design != LEFT_OUT for design in self.two_step)

    @property
    def bends(self) -> bool:
        """Whether a two-step propensity reads the embedding, so that a network may be added to it."""
        return "hidden" in self.two_step

    def shifted(self, shift: Tensor) -> FoundPropensities:
        """Return the propensities with shifts (K,) added to their logits."""
        weight, feature_weight, bias = self.by_fold
        propensities = replace(self.propensities, bias=self.propensities.bias + shift)
        rest = [*self.rest[:2], self.rest[2] + shift]
        return self._replace(propensities=propensities, by_fold=[weight, feature_weight, bias + shift], rest=rest)


@torch.no_grad()
def held_out_logits(found: FoundPropensities, x: Standardised, z: Tensor | None, folds: np.ndarray) -> Tensor:
    """Return the propensity logit of each row from the fit that left its fold out, of shape (N, K), 0 for "known".

    Args:
        found: The propensities, with a network for each fold if they have networks.
        x: Standardised embeddings of shape (N, D).
        z: Standardised propensity features of shape (N, F), or None.
        folds: Fold numbers from 0, of shape (N,).
    """
    propensities, number = found.propensities, torch.from_numpy(folds)
    parts = [
        replace(propensities, weight=weight, feature_weight=slope, bias=bias, networks=propensities.networks[k : k + 1])
        for k, (weight, slope, bias) in enumerate(zip(*found.by_fold, strict=True))
    ]

    def of_block(block: Rows, some: Tensor) -> Tensor:
        logits = some.new_empty(len(some), len(propensities.designs))
        features, own = None if z is None else z[block], number[block].numpy()
        for fold, part in enumerate(parts):
            rows = rows_where(own == fold, some.device)
            logits[rows] = part.logits(some[rows], None if features is None else features[rows])
        return logits

    return x.map(of_block)


@torch.no_grad()
def training_logits(propensities: Propensities, x: Standardised, z: Tensor | None) -> Tensor:
    """Return the propensity logits of all rows, of shape (N, K), 0 for "known".

    Args:
        propensities: The propensities.
        x: Standardised embeddings of shape (N, D).
        z: Standardised propensity features of shape (N, F), or None.
    """
    return x.map(lambda block, some: propensities.logits(some, None if z is None else z[block]))


def fit_propensities(
    embeddings: Tensor | Standardised,
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
    # Two steps for signals that others prove often enough
    embeddings = as_standardised(embeddings)
    counts = coactions(objective)
    two_steps = _in_two_steps(counts, designs, estimator)
    wanted = [design if use else LEFT_OUT for design, use in zip(designs, two_steps, strict=True)]
    chosen, prior, sharing, proven = _fit_two_steps(embeddings, spread, features, objective, wanted, folds, sds, counts)

    # The joint likelihood for the rest; where only constants are left, held-out rewards will show their level
    rest: list[str | None] = [
        None if design == "known" or use else (assumed_design(features) if design == "auto" else design)
        for design, use in zip(designs, two_steps, strict=True)
    ]
    open_level = torch.tensor([float(design == "constant") for design in rest], device=embeddings.device)
    two_step = proven.propensities
    if any(design not in (None, "constant") for design in rest):
        fixed = training_logits(two_step, embeddings, features) + known
        joint, joint_by_fold = fit_joint(embeddings, features, objective, rest, fixed, folds, sd=sds[0])
    else:  # see reward_step.propensity_shift
        level = open_level * start_level(objective)
        joint = Propensities(two_step.designs, 0 * two_step.weight, 0 * two_step.feature_weight, level)
        joint_by_fold = [0 * proven.by_fold[0], 0 * proven.by_fold[1], level.expand_as(proven.by_fold[2])]

    # Both together
    together = Propensities(
        tuple(other or one for one, other in zip(chosen, rest, strict=True)),
        two_step.weight + joint.weight,
        two_step.feature_weight + joint.feature_weight,
        two_step.bias + joint.bias,
        after=objective.after,
        order=proven.order.mean(0),
    )
    by_fold = [one + other for one, other in zip(proven.by_fold, joint_by_fold, strict=True)]
    return FoundPropensities(together, by_fold, chosen, prior, sharing, joint_by_fold, proven.order, open_level)


def refit_propensities(
    found: FoundPropensities,
    embeddings: Tensor | Standardised,
    features: Tensor | None,
    objective: Objective,
    folds: np.ndarray,
    *,
    mass: Tensor | None = None,
    context: Tensor | None = None,
) -> FoundPropensities:
    """Fit the regressions on proven rows again, with the same designs and prior, by what a reward has shown since.

    Args:
        found: The propensities. Those of other signals stay, and networks go.
        embeddings: As in `fit_propensities`.
        features: As in `fit_propensities`.
        objective: As in `fit_propensities`.
        folds: As in `fit_propensities`.
        mass: As in `fit_proven`.
        context: As in `fit_proven`.
    """
    proven = fit_proven(
        embeddings,
        features,
        objective,
        found.two_step,
        folds,
        *found.prior,
        found.sharing,
        mass=mass,
        context=context,
    )
    by_fold = [one + other for one, other in zip(proven.by_fold, found.rest, strict=True)]
    mean = Propensities.mean(found.propensities.designs, by_fold)
    mean = replace(mean, after=objective.after, order=proven.order.mean(0))
    return found._replace(propensities=mean, by_fold=by_fold, order=proven.order)


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


class _TwoSteps(NamedTuple):
    """The chosen designs, prior and sharing of the regressions on proven rows, as in `FoundPropensities`, and these."""

    designs: list[str]
    prior: tuple[float, Tensor]
    sharing: float
    fit: ProvenFit


def _fit_two_steps(
    embeddings: Standardised,
    spread: Tensor,
    features: Tensor | None,
    objective: Objective,
    designs: Sequence[str],
    folds: np.ndarray,
    sds: Sequence[float],
    counts: np.ndarray,
) -> _TwoSteps:
    """Fit regressions on proven rows: the prior by the first fold, then designs and sharing by all of them.

    Args:
        embeddings: As in `fit_propensities`, as most of what follows.
        spread: The same.
        features: The same.
        objective: The same.
        designs: For each signal its design, "auto" to choose between hidden and constant, or `LEFT_OUT`.
        folds: The same.
        sds: The same.
        counts: The number of co-actions of each signal, of shape (K,).
    """
    chosen = ["hidden" if design == "auto" else design for design in designs]
    prior = _best_prior(embeddings, spread, features, objective, chosen, folds, sds)
    found = fit_proven(embeddings, features, objective, chosen, folds, *prior)

    # A constant where the design foretells held-out actions no better
    no_better = [
        design == "auto" and found.losses.design[k] >= found.losses.constant[k] for k, design in enumerate(designs)
    ]
    if any(no_better):
        chosen = ["constant" if no else design for no, design in zip(no_better, chosen, strict=True)]
        found = fit_proven(embeddings, features, objective, chosen, folds, *prior)

    # Slopes that signals share in part where co-actions are few, unless held-out actions speak against it
    widths = (embeddings.width, 0 if features is None else features.shape[1])
    slopes = {k: sum(widths[number] for number in READS[chosen[k]]) for k in sharers(chosen, objective)}
    if any(counts[k] < SHARING_FEW * number for k, number in slopes.items()):
        shared = fit_proven(embeddings, features, objective, chosen, folds, *prior, SHARING)
        if _is_alike(shared, found):
            return _TwoSteps(chosen, prior, SHARING, shared)
    return _TwoSteps(chosen, prior, 0.0, found)


def _best_prior(
    embeddings: Standardised,
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


def _is_alike(shared: ProvenFit, apart: ProvenFit) -> bool:
    """Return whether signals that share slopes lose little of what each foretells by itself about held-out actions.

    A little is lost in most logs: the same co-actions are actions of every signal, so that noise in them is shared,
    too. It does less harm than what a narrower prior of the common slopes leaves to the reward.
    """
    lost, foretold = (
        (shared.losses.design - apart.losses.design).sum(),
        (apart.losses.constant - apart.losses.design).sum(),
    )
    return bool(lost <= SHARING_COST * foretold)
