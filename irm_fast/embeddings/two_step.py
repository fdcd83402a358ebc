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
away from the propensities stays in the reward, whose ranking then drifts to that of the naive classifier.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import Training, fit_map, rows_where, train_network
from irm_fast.embeddings.parts import Network, Propensities

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
    for follower, first in enumerate(objective.after):  # it shows nothing about the propensity of the first
        if first >= 0:
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
    embeddings: Tensor,
    features: Tensor | None,
    objective: Objective,
    designs: Sequence[str],
    folds: np.ndarray,
    sd: float,
    share: Tensor,
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
        first: Hold out only this many folds, the first ones. None means all.
        mass: What `mass` returns, of shape (N, K), where actions may be misclicks. None means 1.
        context: The part of the propensity logits that comes from the context, of shape (N, K): the regressions hold
            it fixed up to a factor, and what they return is the rest. None means 0.

    Returns:
        The propensities and their held-out losses.
    """
    rows, acted = proven(objective).cpu().numpy(), (objective.feedback == 1).cpu().numpy()
    weight, n_folds, n_signals = objective.weight.cpu().numpy(), first or int(folds.max()) + 1, len(designs)
    chance = None if mass is None else _chances(mass, objective)
    moved = None if context is None else context.cpu().numpy()
    followed = objective.followed.cpu().numpy()
    order = np.zeros((n_folds, n_signals), np.float32)
    unit = share.sqrt()
    blocks = [
        (embeddings * unit).cpu().numpy(),
        np.empty((len(embeddings), 0), np.float32) if features is None else features.cpu().numpy(),
    ]
    slopes = [np.zeros((n_folds, n_signals, block.shape[1]), np.float32) for block in blocks]
    bias = np.zeros((n_folds, n_signals), np.float32)
    losses = HeldOutLosses(np.zeros(n_signals), np.zeros(n_signals))
    for k, fold in itertools.product(range(n_signals), range(n_folds)):
        read = [number for number in READS[designs[k]] if blocks[number].shape[1]]
        part, held = rows[:, k] & (folds != fold), rows[:, k] & (folds == fold)
        # Chances of an action in units of the propensity, of the rows to fit to and of those to judge by
        c, c_held = (None, None) if chance is None else (chance[part, k], chance[held, k])

        # A constant
        if designs[k] != "known":
            bias[fold, k] = _constant(acted[part, k], weight[part], c)
        logit = np.full(held.sum(), bias[fold, k])
        losses.constant[k] += _loss(logit, acted[held, k], weight[held], c_held)

        # What the design reads
        follows = bool(objective.after) and objective.after[k] >= 0 and designs[k] != "known"
        if (read or follows) and len(np.unique(acted[part, k])) == 2:
            some = [blocks[number][part] for number in read]
            beside = [each[:, k] for each in (moved, followed if follows else None) if each is not None]
            found, factors, bias[fold, k] = _logistic(
                some, [each[part] for each in beside], acted[part, k], weight[part], sd, c
            )
            logit = np.full(held.sum(), bias[fold, k])
            for each, factor in zip(beside, factors, strict=True):
                logit += factor * each[held]
            order[fold, k] = factors[-1] if follows else 0
            for number, slope in zip(read, found, strict=True):
                slopes[number][fold, k] = slope
                logit += blocks[number][held] @ slope
        losses.design[k] += _loss(logit, acted[held, k], weight[held], c_held)
    by_fold = [torch.from_numpy(values).to(embeddings.device) for values in (*slopes, bias)]
    by_fold[0] *= unit
    return ProvenFit(
        Propensities.mean(designs, by_fold), by_fold, losses, torch.from_numpy(order).to(embeddings.device)
    )


BESIDE_SD = 3.0  # prior deviation of the factors of the context and of an action before


def _logistic(
    blocks: Sequence[np.ndarray],
    beside: Sequence[np.ndarray],
    y: np.ndarray,
    weight: np.ndarray,
    sd: float,
    chance: np.ndarray | None,
) -> tuple[list[np.ndarray], list[float], float]:
    """Return slopes of each block of features, the factors of what is beside them, and the intercept.

    The logit of a block has a prior deviation of `sd`. With a `chance` c, an action has the probability c times the
    propensity.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    columns = [block / np.sqrt(block.shape[1]) for block in blocks]
    unit = np.float32(BESIDE_SD / sd)
    x = np.hstack([*columns, *(each[:, None] * unit for each in beside)])
    if chance is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=sd**2, max_iter=200).fit(x, y, weight)
        weights, bias = model.coef_[0], float(model.intercept_[0])
    else:
        weights, bias = _scaled_logistic(x, y, weight, sd, chance)
    ends = np.cumsum([block.shape[1] for block in blocks])
    *slopes, factors = np.split(weights, ends)
    return [slope / np.sqrt(len(slope)) for slope in slopes], (factors * unit).tolist(), bias


def _scaled_logistic(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, sd: float, chance: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return weights and intercept of the logit of m, where an action has the probability chance * m."""
    columns, acted, c, w = (torch.as_tensor(part, dtype=torch.float32) for part in (x, y, chance, weight))
    weights, bias = torch.zeros(x.shape[1]), torch.logit((acted.mean() / c.mean()).clamp(0.01, 0.95))

    def loss() -> Tensor:
        entries = _entries(columns @ weights + bias, acted, c)
        return ((w * entries).sum() + (weights**2).sum() / (2 * sd**2)) / len(y)

    fit_map([weights, bias], loss)
    return weights.numpy(), float(bias)


def _entries(logit: Tensor, acted: Tensor, chance: Tensor) -> Tensor:
    """Return the losses (n,) of actions that have the probability chance * sigmoid(logit)."""
    silent = torch.log(torch.sigmoid(-logit) + (1 - chance) * torch.sigmoid(logit))
    return -torch.where(acted > 0, torch.log(chance) + logsigmoid(logit), silent.clamp(min=-80))


def _constant(acted: np.ndarray, weight: np.ndarray, chance: np.ndarray | None) -> float:
    """Return the logit of the weighted action rate, with half an action and half a silence added."""
    ones = (weight * acted).sum() + 0.5
    total = weight.sum() + 1 if chance is None else max((weight * chance).sum() + 1, 1.02 * ones)
    return float(np.log(ones / (total - ones)))


def _loss(logit: np.ndarray, acted: np.ndarray, weight: np.ndarray, chance: np.ndarray | None) -> float:
    """Return the weighted sum of the log losses of binary outcomes."""
    if chance is None:
        return float((weight * np.logaddexp(0, np.where(acted, -logit, logit))).sum())
    entries = _entries(*(torch.as_tensor(part, dtype=torch.float64) for part in (logit, acted, chance)))
    return float((weight * entries.numpy()).sum())


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


def add_networks(
    propensities: Propensities,
    by_fold: Sequence[Tensor],
    embeddings: Tensor,
    features: Tensor | None,
    objective: Objective,
    folds: np.ndarray,
    hidden_layers: Sequence[int],
    training: Training,
    generator: torch.Generator,
) -> Propensities:
    """Add networks of the embeddings to the linear propensities of each fold, trained on the same proven rows.

    Args:
        propensities: The linear propensities of all signals.
        by_fold: `ProvenFit.by_fold`.
        embeddings: Standardised embeddings of shape (N, D).
        features: Standardised propensity features of shape (N, F), or None.
        objective: The implicit loss of the rows.
        folds: Fold numbers from 0, of shape (N,).
        hidden_layers: Widths of the hidden layers.
        training: How networks are trained.
        generator: Decides the order of the rows.

    Returns:
        The propensities with one network for each fold.
    """
    first = torch.tensor([float(number < 0) for number in objective.after], device=objective.weight.device)
    mask = proven(objective).float() * propensities.hidden * first * objective.weight[:, None]
    target = (objective.feedback == 1).float()
    rows = mask.any(1).cpu().numpy()
    networks = []
    for fold, (weight, feature_weight, bias) in enumerate(zip(*by_fold, strict=True)):
        linear = Propensities(propensities.designs, weight, feature_weight, bias).logits(embeddings, features)

        def loss(network: Network, batch: Tensor, linear: Tensor = linear) -> Tensor:
            logits = linear.index_select(0, batch) + network(embeddings.index_select(0, batch))
            some = mask.index_select(0, batch)
            entries = binary_cross_entropy_with_logits(logits, target.index_select(0, batch), some, reduction="sum")
            return entries / some.sum().clamp(min=1e-12)

        fitted, held_out = (rows_where(rows & part, embeddings.device) for part in (folds != fold, folds == fold))
        network = (
            Network(embeddings.shape[1], hidden_layers, len(propensities.designs)).to(embeddings.device).zero_output()
        )
        train_network(network, loss, fitted, held_out, training, generator)
        networks.append(network)
    return replace(propensities, networks=tuple(networks))
