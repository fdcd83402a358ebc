"""Propensities of several signals: how often each acts on rows whose preference other evidence proves.

A signal without misclicks that acted proves the preference: f_j = 1 implies r* = 1 for polarity 1. On the rows where
another signal of the same polarity acted, or where an explicit preference says the same, f_k is therefore an ordinary
binary outcome with mean m_k, the propensity; such rows are called proven, and actions on them co-actions. A logistic
regression on them needs no model of the reward, so a reward that is too simple cannot mislead it, as it can mislead the
joint likelihood. The loss of the reward depends on propensities only in rows where all signals are silent, and the
regression never reads such rows: no cross-fitting between the two steps is needed.

The prior is weak: logits vary between responses with a standard deviation of 1 or 2, spread over the standardised
features evenly or by their raw variances, whichever predicts held-out actions better (`propensity_step`).
Cross-validation over smaller deviations would choose one of them, as better for predicting actions; but what it shrinks
away from the propensities stays in the reward, whose ranking then drifts to that of the naive classifier. Signals of
one polarity share slopes in part, unless held-out actions speak against it: what their propensities have in common is
what bends the reward, and is shrunk less that way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from irm_fast.embeddings.declared import followers
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.parts import Propensities
from irm_fast.embeddings.passed_block import Block, PassedBlock, block_of
from irm_fast.embeddings.regression import Line, RegressionRows, constant_line, fit_lines
from irm_fast.embeddings.standardised import Standardised, as_standardised

READS = {"constant": (), "known": (), "hidden": (0, 1), "features": (1,)}  # of the embedding and the features
ENOUGH = 10  # co-actions; with fewer, propensities that depend on the response were erratic


def proven(objective: Objective) -> Tensor:
    """Return a mask (bool) of shape (N, K): whether signal k is recorded and other evidence speaks for its side.

    Without misclicks such evidence proves it. Where actions may be misclicks, `mass` says how far it does.

    Args:
        objective: The feedback, explicit preferences and weights of the rows; those of weight 0 count as not proven.
    """
    sign = torch.tensor(objective.polarity, device=objective.feedback.device)
    acted = objective.feedback == 1
    votes = torch.stack([(acted & (sign == side)).sum(1) for side in (1, -1)], 1)[:, (sign < 0).long()]
    others = votes - acted.long()
    for follower, first in followers(objective.after):  # it shows nothing about the propensity of the first
        others[:, first] -= acted[:, follower].long()
    if objective.preference is not None:
        others = others + (objective.preference[:, None] == (sign > 0).long())
    return (others > 0) & (objective.feedback >= 0) & (objective.weight > 0)[:, None]


def coactions(objective: Objective) -> np.ndarray:
    """Count, for each signal, its actions and its silences on proven rows, and return the smaller number.

    Args:
        objective: The feedback, explicit preferences and weights of the rows.

    Returns:
        Integers of shape (K,).
    """
    rows = proven(objective)
    acted = ((objective.feedback == 1) & rows).sum(0)
    return torch.minimum(acted, rows.sum(0) - acted).cpu().numpy()


def enough_coactions(objective: Objective) -> bool:
    """Return whether the propensity of any signal can be fitted by its co-actions.

    Args:
        objective: The feedback, explicit preferences and weights of the rows.
    """
    return bool((coactions(objective) >= ENOUGH).any())


def never_together(polarity: Sequence[int]) -> bool:
    """Return whether no two signals have one polarity: those of two sides never act together, however many rows are."""
    return len(set(polarity)) == len(polarity)


class HeldOutLosses(NamedTuple):
    """Held-out losses (log loss times weight) of K signals, summed over their proven rows.

    Attributes:
        constant: The losses of constant propensities, of shape (K,).
        design: The losses of the designs, of shape (K,).
    """

    constant: np.ndarray
    design: np.ndarray


class ProvenFit(NamedTuple):
    """Propensities that were fitted on proven rows.

    Attributes:
        propensities: The mean over the folds.
        by_fold: `weight`, `feature_weight` and `bias` of the propensities, each with the folds as first dimension.
        losses: The held-out losses.
        order: What the action of the signal before it adds to the logit of a follower, of shape (folds, K).
    """

    propensities: Propensities
    by_fold: list[Tensor]
    losses: HeldOutLosses
    order: Tensor


def fit_proven(
    embeddings: Tensor | Standardised,
    features: Tensor | None,
    objective: Objective,
    designs: Sequence[str],
    folds: np.ndarray,
    sd: float,
    share: Tensor,
    sharing: float = 0.0,
    *,
    first: int | None = None,
    mass: Tensor | None = None,
    context: Tensor | None = None,
) -> ProvenFit:
    """Fit a logistic regression of every signal on its proven rows, without each fold in turn.

    Args:
        embeddings: Standardised embeddings of shape (N, D).
        features: Standardised propensity features of shape (N, F), or None.
        objective: The implicit loss of the rows.
        designs: The K designs; "known" leaves a signal out.
        folds: Fold numbers from 0, of shape (N,).
        sd: Prior standard deviation of a logit between responses.
        share: Relative prior variances of the embeddings, of shape (D,), with a mean of 1.
        sharing: The part of the prior variance of the slopes that signals of one polarity and design have in common,
            at least 0 and below 1. At 0 each signal is fitted by itself.
        first: Hold out only this many folds, the first ones. None means all.
        mass: What `mass` returns, of shape (N, K), where actions may be misclicks. None means 1.
        context: The part of the propensity logits that comes from the context, of shape (N, K): the regressions hold
            it fixed up to a factor, and what they return is the rest. None means 0.

    Returns:
        The propensities and their held-out losses.
    """
    x, unit, n_folds, n_signals = as_standardised(embeddings), share.sqrt(), first or int(folds.max()) + 1, len(designs)
    data = _regressions(x, unit, features, objective, designs, mass, context)
    slopes = [np.zeros((n_folds, n_signals, block.shape[1]), np.float32) for block in data.blocks]
    bias, order = (np.zeros((n_folds, n_signals), np.float32) for _ in range(2))
    losses = HeldOutLosses(np.zeros(n_signals), np.zeros(n_signals))
    together = 1.0 if isinstance(data.blocks[0], PassedBlock) else sharing  # in one pass over the rows of all
    for fold, alike in itertools.product(range(n_folds), _alike(designs, objective, together)):
        fitted, held = ({k: data.rows(k, some) for k in alike} for some in (folds != fold, folds == fold))

        # A constant
        lines = {k: constant_line(fitted[k]) if designs[k] != "known" else Line() for k in alike}
        for k, line in lines.items():
            losses.constant[k] += held[k].loss(line)

        # What the design reads
        able = [k for k in alike if (data.read[k] or data.follows[k]) and len(np.unique(fitted[k].acted)) == 2]
        lines |= dict(zip(able, fit_lines([fitted[k] for k in able], sd, sharing), strict=True))
        for k, line in lines.items():
            bias[fold, k] = line.bias
            order[fold, k] = line.factors[-1] if data.follows[k] and len(line.factors) else 0
            for number, slope in zip(data.read[k], line.slopes, strict=False):
                slopes[number][fold, k] = slope
            losses.design[k] += held[k].loss(line)
    by_fold = [torch.from_numpy(values).to(x.device) for values in (*slopes, bias)]
    by_fold[0] *= unit
    return ProvenFit(Propensities.mean(designs, by_fold), by_fold, losses, torch.from_numpy(order).to(x.device))


@dataclass(frozen=True)
class _Regressions:
    """What the regressions of K signals read of N rows, as arrays.

    Attributes:
        blocks: Embeddings in units of their prior deviations, of shape (N, D), held or passed over, and propensity
            features, (N, F).
        read: For each signal the numbers of the blocks that its design reads.
        follows: For each signal whether it may follow another, which a regression then fits.
        beside: For each signal the parts of its logit that are known up to a factor, each of shape (N,).
        proven: The mask of `proven`, of shape (N, K).
        acted: Whether each signal acted, of shape (N, K).
        weight: The weights, of shape (N,).
        chance: The probability of an action in units of the propensity, of shape (N, K); None means 1.
    """

    blocks: list[Block]
    read: list[list[int]]
    follows: list[bool]
    beside: list[list[np.ndarray]]
    proven: np.ndarray
    acted: np.ndarray
    weight: np.ndarray
    chance: np.ndarray | None

    def rows(self, k: int, some: np.ndarray) -> RegressionRows:
        """Return the proven rows of signal k among some, a mask of shape (N,)."""
        some = self.proven[:, k] & some
        blocks = [self.blocks[number][some] for number in self.read[k]]
        beside = [values[some] for values in self.beside[k]]
        chance = None if self.chance is None else self.chance[some, k]
        return RegressionRows(blocks, beside, self.acted[some, k], self.weight[some], chance)


def _regressions(
    x: Standardised,
    unit: Tensor,
    features: Tensor | None,
    objective: Objective,
    designs: Sequence[str],
    mass: Tensor | None,
    context: Tensor | None,
) -> _Regressions:
    """Return what the regressions read; the arguments are those of `fit_proven`, and the prior deviations (D,)."""
    blocks = [
        block_of(x, unit),
        np.empty((len(x), 0), np.float32) if features is None else features.cpu().numpy(),
    ]
    signals = range(len(designs))
    follows = [designs[k] != "known" and k in dict(followers(objective.after)) for k in signals]
    moved = None if context is None else context.cpu().numpy()
    followed = objective.followed.cpu().numpy()
    beside = [[part[:, k] for part in (moved, followed if follows[k] else None) if part is not None] for k in signals]
    return _Regressions(
        blocks=blocks,
        read=[[number for number in READS[design] if blocks[number].shape[1]] for design in designs],
        follows=follows,
        beside=beside,
        proven=proven(objective).cpu().numpy(),
        acted=(objective.feedback == 1).cpu().numpy(),
        weight=objective.weight.cpu().numpy(),
        chance=None if mass is None else _chances(mass, objective),
    )


def sharers(designs: Sequence[str], objective: Objective) -> list[int]:
    """Return the signals that may share slopes: another one reads the same, and speaks for the same side."""
    return [k for alike in _alike(designs, objective, 1.0) if len(alike) > 1 for k in alike if READS[designs[k]]]


def _alike(designs: Sequence[str], objective: Objective, sharing: float) -> list[list[int]]:
    """Return the signals, those together that share slopes."""
    follows = [k in dict(followers(objective.after)) for k in range(len(designs))]
    kinds: list[Any] = [*zip(designs, objective.polarity, follows, strict=True)] if sharing else [*range(len(designs))]
    return [[k for k, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)]


def mass(objective: Objective, reward: Tensor, propensity: Tensor) -> Tensor:
    """Return for each signal the probability of its side, given all that is recorded but the signal itself.

    Args:
        objective: The feedback and explicit preferences of the rows.
        reward: Reward logits of shape (N,), each from a fit that did not see the row.
        propensity: Propensity logits of shape (N, K), each from a fit that did not see the row.

    Returns:
        Probabilities of shape (N, K).
    """
    votes, proofs = _evidence(objective, propensity)
    others, proved = votes.sum(1, keepdim=True) - votes, proofs.sum(1, keepdim=True) - proofs
    chance = torch.where(proved == 0, torch.sigmoid(reward[:, None] + others), (proved > 0).float())
    if objective.preference is not None:
        label = objective.preference[:, None]
        chance = torch.where(label >= 0, label.float(), chance)
    return torch.where(reward.new_tensor(objective.polarity) > 0, chance, 1 - chance)


def proof(objective: Objective, reward: Tensor, propensity: Tensor) -> Tensor:
    """Return for each signal the probability (N, K) of its side in a row where it alone of those recorded has acted.

    It depends on what is recorded, not on what acted, so that rows may be selected by it. Without misclicks it is 1.

    Args:
        objective: As of `mass`.
        reward: As of `mass`.
        propensity: As of `mass`.
    """
    sign, rate = (propensity.new_tensor(values) for values in (objective.polarity, objective.misclick_rate))
    silent = -softplus(propensity + torch.log1p(-rate)) * (objective.feedback >= 0) * sign
    others = silent.sum(1, keepdim=True) - silent
    return torch.sigmoid(sign * (reward[:, None] + others) - torch.log(rate))


def _evidence(objective: Objective, propensity: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each entry adds to the logit of the preference, and its side where it proves one; both (N, K)."""
    sign = propensity.new_tensor(objective.polarity)
    rate = propensity.new_tensor(objective.misclick_rate)
    silent = -softplus(propensity + torch.log1p(-rate))
    votes = torch.where(objective.feedback == 1, -torch.log(rate), silent * (objective.feedback == 0)) * sign
    finite = torch.isfinite(votes)
    return torch.where(finite, votes, 0.0), torch.where(finite, 0.0, sign)


def _chances(mass: Tensor, objective: Objective) -> np.ndarray:
    """Return the probability of an action in units of the propensity, of shape (N, K)."""
    rate = mass.new_tensor(objective.misclick_rate)
    return (mass + (1 - mass) * rate).clamp(min=1e-6).cpu().numpy()
