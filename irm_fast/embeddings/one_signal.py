"""One signal: candidate splits into preference and propensity, and labels that choose between them.

One signal shows the product of preference and propensity alone; any split of it explains the log as well. No choice
without labels is safe, and the likelihood of the log prefers the wrong one in the worst case. So the candidates are
fitted without labels, and then predict them. Features that the user has named are an assumption of his: a constant
propensity replaces theirs if it predicts held-out labels better by more than one standard error; a propensity that
varies freely, which may turn the ranking round, replaces either by more than two. Only then do labels enter the
likelihood. A few labels are enough for a choice between a few candidates, where they are far too few to move a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from irm_fast.embeddings.assumed import LEAST, assumed_design, warn_of_one_signal
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.optimize import fit_map
from irm_fast.embeddings.parts import Propensities
from irm_fast.embeddings.problem import Problem, Split
from irm_fast.embeddings.propensity_step import FoundPropensities
from irm_fast.embeddings.reward_step import propensity_shift

MIRROR = "mirror"
LEADS = {"constant": 1.0, "hidden": 2.0, MIRROR: 2.0}  # standard errors by which these have to predict labels better
SLOPE_SD = 1.0  # prior deviation of the logarithm of a candidate's slope


class Candidate(NamedTuple):
    """A split of one signal into preference and propensity, fitted without labels.

    Attributes:
        name: "constant", "hidden", "features", or "mirror", in which "hidden" has preference and propensity exchanged.
        split: The propensities and the reward.
    """

    name: str
    split: Split


def split_one_signal(problem: Problem, observed: Observed, layers: str | Sequence[int]) -> Split:
    """Split one signal into preference and propensity, by labels if there are enough, and by assumption otherwise.

    Args:
        problem: The rows, with one signal.
        observed: The observations of the same rows.
        layers: Hidden layers of the reward, as of `reward_step.fit_reward`.

    Returns:
        The chosen candidate, fitted with the labels if there are any.
    """
    labels = observed.preference
    if labels is None or not labels_choose(labels):
        name = assumed_design(problem.features)
        warn_of_one_signal(name, observed)
        return _levelled(problem, problem.fit_propensities([name], "joint"), layers)
    chosen = choose(candidates(problem, layers), labels, label_weights(observed), problem.folds)
    return _levelled(problem, chosen.split.found, layers)


def labels_choose(preference: np.ndarray) -> bool:
    """Return whether there are enough labels (N,) of 1 and of 0, -1 unknown, to choose between candidates."""
    return bool(min((preference == 1).sum(), (preference == 0).sum()) >= LEAST)


def label_weights(observed: Observed) -> np.ndarray:
    """Return the weight of each row in a choice by labels, of shape (N,).

    Where rows were drawn for labelling with different probabilities p, a label stands for 1 / p rows: the candidates
    may all be wrong, and then the best is another for every draw. Labels without a probability count as drawn from all
    rows at random.

    Args:
        observed: The observations of the rows, with labels.
    """
    probability, labelled = observed.label_probability, observed.preference >= 0  # type: ignore[operator]
    if probability is None or np.isnan(probability[labelled]).all():
        return observed.weight
    at_random = float((labelled & np.isnan(probability)).mean())
    stands_for = np.zeros(len(observed))
    np.divide(1, np.where(np.isnan(probability), at_random, probability), out=stands_for, where=labelled)
    return observed.weight * stands_for / stands_for[labelled].mean()


def candidates(problem: Problem, layers: str | Sequence[int]) -> list[Candidate]:
    """Fit all candidates without labels: first what is assumed where labels do not speak, the riskiest last.

    Args:
        problem: The rows, with one signal.
        layers: Hidden layers of the reward, as of `reward_step.fit_reward`.
    """
    plain = replace(problem, objective=problem.objective.without_labels())
    found = {
        name: plain.fit_propensities([name], "joint")
        for name in ("features", "constant", "hidden")
        if name != "features" or problem.features is not None
    }
    tried = [
        Candidate(name, plain.with_reward(each, layers) if name == "hidden" else _levelled(plain, each, layers))
        for name, each in found.items()
    ]
    hidden = tried[-1].split
    if not hidden.reward.networks:
        tried.append(Candidate(MIRROR, plain.with_reward(_mirrored(hidden, plain.objective.polarity[0]), layers)))
    return tried


def _mirrored(hidden: Split, polarity: int) -> FoundPropensities:
    """Return the linear reward of a split as its propensities; a signal of displeasure acts at its negative."""
    weight, bias = polarity * hidden.reward.weight[None], polarity * hidden.reward.bias[None]
    parts = [weight, 0 * hidden.found.propensities.feature_weight, bias]
    by_fold = [part.expand(len(hidden.found.by_fold[0]), *part.shape) for part in parts]
    propensities = Propensities.mean(("hidden",), by_fold)
    return hidden.found._replace(propensities=propensities, by_fold=by_fold, rest=by_fold)


def _levelled(problem: Problem, found: FoundPropensities, layers: str | Sequence[int]) -> Split:
    """Fit a reward given these propensities, then the level of the propensities that it shows, and the reward again."""
    split = problem.with_reward(found, layers)
    free = torch.ones_like(found.open_level)
    shift = propensity_shift(split.reward, split.logits.held_out, problem.objective, free)
    return problem.with_reward(found.shifted(shift), layers, split.reward.start)


def choose(tried: Sequence[Candidate], preference: np.ndarray, weight: np.ndarray, folds: np.ndarray) -> Candidate:
    """Choose the candidate that predicts labels best, with a lead of as many standard errors as it takes to prefer it.

    Args:
        tried: The candidates, first the one that is taken where labels do not speak.
        preference: Labels of shape (N,): 1, 0, or -1 unknown.
        weight: The weight of each row in the choice, of shape (N,).
        folds: Fold numbers from 0, of shape (N,).
    """
    rows = np.flatnonzero(preference >= 0)
    y, w = torch.from_numpy(preference[rows]).double(), torch.from_numpy(weight[rows]).double()
    scores = [candidate.split.reward.held_out.double().cpu()[rows] for candidate in tried]
    losses = [label_losses(score, y, w, folds[rows]) * w for score in scores]
    best = 0
    for other in range(1, len(tried)):
        gain = losses[best] - losses[other]
        if gain.sum() > LEADS.get(tried[other].name, 0) * gain.std() * len(rows) ** 0.5:
            best = other
    return tried[best]


def label_losses(score: Tensor, y: Tensor, weight: Tensor, folds: np.ndarray) -> Tensor:
    """Return the held-out losses (n,) of labels under a logistic regression on a score, whose slope is above 0.

    Args:
        score: Scores of shape (n,).
        y: Labels of shape (n,), 1 or 0.
        weight: Weights of shape (n,).
        folds: Fold numbers of shape (n,).
    """
    losses = torch.zeros_like(score)
    for fold in np.unique(folds):
        held = torch.from_numpy(folds == fold)
        slope, shift = _calibrated(score[~held], y[~held], weight[~held])
        losses[held] = cross_entropy(slope * score[held] + shift, y[held], reduction="none")
    return losses


def _calibrated(score: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slope above 0 and the shift of a logistic regression of labels on a score, under a weak prior."""
    log_slope, shift = score.new_zeros(()), score.new_zeros(())

    def loss() -> Tensor:
        entries = cross_entropy(log_slope.exp() * score + shift, y, reduction="none") * weight
        return (entries.sum() + log_slope**2 / (2 * SLOPE_SD**2) + shift**2 / 8) / len(y)

    fit_map([log_slope, shift], loss, iterations=30)
    return log_slope.exp(), shift
