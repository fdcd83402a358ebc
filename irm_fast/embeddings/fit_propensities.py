"""Propensities of all signals: which design and which estimator each gets, and the joint likelihood for the rest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.evidence import Evidence
from irm_fast.embeddings.fit_joint import fit_joint, start_level
from irm_fast.embeddings.fit_two_step import ENOUGH, READS, coactions, fit_proven
from irm_fast.embeddings.fitting import prior_shares
from irm_fast.embeddings.parts import Propensities


def fit_propensities(
    x: Tensor,
    spread: Tensor,
    z: Tensor | None,
    evidence: Evidence,
    designs: Sequence[str],
    known: Tensor,
    folds: np.ndarray,
    *,
    estimator: str,
    sds: Sequence[float],
) -> tuple[Propensities, list[Tensor], Tensor]:
    """Linear propensities of all signals, and the weights of each fold that `two_step.add_networks` starts from.

    x: (N, D), z: (N, F) standardised.  spread: (D,) deviations of x before that.  designs: K, may be auto.  known: (N,
    K) logits where the design is known, or 0.  estimator: two-step, joint or auto.  sds: prior deviations of a logit
    between responses; the one that is best on the first fold is taken, spread over x evenly or by raw variances,
    likewise. The joint likelihood takes the first.  No weights of the folds: no hidden propensity was fitted in two
    steps.  Last, (K,): 1 for constants whose level only the joint likelihood shows.

    Raises:
        ValueError: estimator is two-step, and a signal has fewer than 10 co-actions.
    """
    counts = coactions(evidence)
    few = [k for k, design in enumerate(designs) if design != "known" and counts[k] < ENOUGH]
    if estimator == "two-step" and few:
        raise ValueError(
            f"estimator: 'two-step' needs {ENOUGH} co-actions and as many silences beside an action; "
            f"signal {few[0]} has {counts[few[0]]}: use 'auto' or 'joint'"
        )
    proven = [design != "known" and k not in few and estimator != "joint" for k, design in enumerate(designs)]
    wanted = ["hidden" if design == "auto" else design for design in designs]
    chosen = [design if use else "known" for design, use in zip(wanted, proven, strict=True)]

    def held_out_loss(prior: tuple[float, Tensor]) -> float:
        return float(fit_proven(x, z, evidence, chosen, folds, *prior, first=1)[2][1].sum())

    priors = list(itertools.product(sds, prior_shares(spread).values()))
    reads = any(READS[design] for design in chosen)  # if not, the prior does not matter
    best = min(priors, key=held_out_loss) if reads and len(priors) > 1 else priors[0]
    two_step, each, losses = fit_proven(x, z, evidence, chosen, folds, *best)
    no_better = [design == "auto" and use and one >= other for design, use, one, other in _zip(designs, proven, losses)]
    if any(no_better):
        chosen = ["constant" if no else design for no, design in zip(no_better, chosen, strict=True)]
        two_step, each, _ = fit_proven(x, z, evidence, chosen, folds, *best)
    rest: list[str | None] = [
        None if design == "known" or use else ("constant" if design == "auto" else design)
        for design, use in zip(designs, proven, strict=True)
    ]
    final = tuple(other or one for one, other in zip(chosen, rest, strict=True))
    free = torch.tensor([float(design == "constant") for design in rest], device=x.device)
    level = free * start_level(evidence)
    if any(design not in (None, "constant") for design in rest):
        joint = fit_joint(x, z, evidence, rest, two_step.logits(x, z) + known, folds, sd=sds[0])
    else:  # held-out rewards will show the level, see reward_step.propensity_shift
        joint = Propensities(final, 0 * two_step.weight, 0 * two_step.feature_weight, level)
    found = Propensities(
        final,
        two_step.weight + joint.weight,
        two_step.feature_weight + joint.feature_weight,
        two_step.bias + joint.bias,
    )
    return found, each if "hidden" in chosen else [], free


def _zip(designs: Sequence[str], proven: Sequence[bool], losses: np.ndarray) -> zip:
    """Design, whether it is fitted in two steps, held-out loss of the fit and of a constant, for each signal."""
    return zip(designs, proven, losses[1], losses[0], strict=True)
