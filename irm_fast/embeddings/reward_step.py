"""Fit the reward given the propensities: linear or a network, chosen by held-out implicit likelihood."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from irm_fast.diagnostics.metrics import paired_difference
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import REWARD_SDS, Training, fit_map, prior_shares, rows_where, train_network
from irm_fast.embeddings.parts import LinearStart, Network, Reward
from irm_fast.embeddings.standardised import Rows, Standardised, as_standardised

AUTO_LAYERS = (128,)
STARTS = (-1.0, 1.0)  # propensity logits to start from: the likelihood may have two maxima


class PropensityLogits(NamedTuple):
    """Propensity logits of N rows and K signals, held constant while the reward is fitted.

    Attributes:
        training: Those that the reward is fitted with, of shape (N, K).
        held_out: Those that held-out rewards are judged with, each row's from a fit that did not see it, (N, K).
    """

    training: Tensor
    held_out: Tensor


def fit_reward(
    x: Tensor | Standardised,
    spread: Tensor,
    propensity: PropensityLogits,
    objective: Objective,
    folds: np.ndarray,
    hidden_layers: Sequence[int] | str,
    training: Training,
    generator: torch.Generator,
    start: LinearStart | None = None,
) -> Reward:
    """Fit one reward per fold, on the rows outside the fold, and return their mean.

    With "auto", a network replaces the linear reward only if its held-out loss is lower by more than one standard error
    of the difference, because a linear reward fits into the backbone's own checkpoint.

    Args:
        x: Standardised embeddings of shape (N, D).
        spread: Standard deviations of the embeddings before they were standardised, of shape (D,).
        propensity: The propensity logits.
        objective: The implicit loss of the rows.
        folds: Fold numbers from 0, of shape (N,).
        hidden_layers: Widths of the hidden layers; () for a linear reward; "auto" to choose.
        training: How networks are trained.
        generator: Decides the order of the rows in the training of networks.
        start: `Reward.start` of an earlier fit, whose prior a linear reward keeps; None to choose the prior.
    """
    x, auto = as_standardised(x), isinstance(hidden_layers, str)
    layers = AUTO_LAYERS if isinstance(hidden_layers, str) else tuple(hidden_layers)
    if layers and not auto:
        return _fit_networks(x, propensity, objective, folds, layers, training, generator)
    linear = _fit_linear(x, spread, propensity, objective, folds, start)
    if not auto:
        return linear
    network = _fit_networks(x, propensity, objective, folds, layers, training, generator)
    gain, error = paired_difference(*(part.cpu().numpy() for part in (linear.losses, network.losses, objective.weight)))
    return network if gain > error else linear


def calibration(held_out: Tensor, propensity: Tensor, objective: Objective) -> tuple[float, float]:
    """Return the slope above 0 and the shift of reward logits that maximise the implicit likelihood, with a weak prior.

    Args:
        held_out: Held-out reward logits of shape (N,).
        propensity: Propensity logits of shape (N, K).
        objective: The implicit loss of the rows.
    """
    _, slope, shift, _ = _levels(held_out, propensity, objective, torch.zeros_like(propensity[0]))
    return float(slope), float(shift)


def calibrated(reward: Reward, propensity: PropensityLogits, objective: Objective) -> Reward:
    """Return the reward times the slope plus the shift of `calibration`. The networks of the given reward are changed.

    Args:
        reward: A reward with its held-out logits.
        propensity: The propensity logits.
        objective: The implicit loss of the rows.
    """
    slope, shift = calibration(reward.held_out, propensity.held_out, objective)
    for network in reward.networks:
        for parameter in network.layers[-1].parameters():
            parameter.data *= slope
    held_out, each = slope * reward.held_out + shift, (slope * reward.each).add_(shift)
    moved = replace(
        reward,
        weight=slope * reward.weight,
        bias=slope * reward.bias + shift,
        held_out=held_out,
        each=each,
        precision=reward.precision / slope**2,
    )
    return _with_losses(moved, propensity.held_out, objective)


def propensity_shift(reward: Reward, propensity: Tensor, objective: Objective, free: Tensor) -> Tensor:
    """Return shifts (K,) of constant propensity logits, chosen by the implicit likelihood of held-out rewards.

    The joint likelihood sees rewards that a prior has shrunk. This hides where action rates level off and makes
    constant propensities too large, up to 1. Held-out rewards, rescaled by a slope of their own, show the level.

    Args:
        reward: A reward with its held-out logits.
        propensity: Propensity logits of shape (N, K).
        objective: The implicit loss of the rows.
        free: 1 for the constant propensities to shift, 0 for the others, of shape (K,).

    Returns:
        What to add to the propensity logits, of shape (K,); 0 where `free` is 0.
    """
    constants = propensity.mean(0) * free
    starts = [start * free - constants for start in STARTS]
    return min((_levels(reward.held_out, propensity, objective, free, start) for start in starts), key=_value)[3] * free


def _levels(
    logit: Tensor, propensity: Tensor, objective: Objective, free: Tensor, start: Tensor | None = None
) -> tuple[float, Tensor, Tensor, Tensor]:
    """Return loss, reward slope above 0, reward shift and propensity shifts (K,), fitted under a weak prior."""
    log_slope, shift = logit.new_zeros(()), logit.new_zeros(())
    level = torch.zeros_like(free) if start is None else start.clone()
    rows, constants = torch.arange(len(logit), device=logit.device), propensity.mean(0) * free

    def loss() -> Tensor:
        value = objective.loss(log_slope.exp() * logit + shift, propensity + level * free, rows)
        prior = log_slope**2 + shift**2 / 4 + ((level * free + constants) ** 2).sum() / 4
        return value + prior / (2 * len(logit))

    fit_map([log_slope, shift, level], loss)
    with torch.no_grad():
        return float(loss()), log_slope.exp(), shift, level


def _value(found: tuple[float, Tensor, Tensor, Tensor]) -> float:
    """Return the loss of what `_levels` returned."""
    return found[0]


def _fit_linear(
    x: Standardised,
    spread: Tensor,
    propensity: PropensityLogits,
    objective: Objective,
    folds: np.ndarray,
    start: LinearStart | None,
) -> Reward:
    """Fit a linear reward without each fold in turn, with a Gaussian prior; without a start, fold 0 chooses the prior.

    The prior gives logits with a standard deviation of `sd` between responses. Which of the `prior_shares` suits an
    embedding is an empirical question.
    """
    device = x.device
    shares = prior_shares(spread)

    def fitted(fold: int, sd: float, share: str, begin: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        counted = torch.from_numpy((folds != fold).astype(np.float32)).to(device)
        # Weights in units of their prior deviations: with raw variances L-BFGS would not be done after 200 iterations.
        unit = shares[share].sqrt()
        units, bias = (part.clone() for part in begin or (x.zeros(x.width), x.zeros()))
        number = counted.sum()
        precision = x.width / sd**2 / float(number) / 2

        def of_block(block: Rows, some: Tensor) -> Tensor:
            return objective.linear_loss(some, units * unit, bias, propensity.training, counted, block, number)

        def loss() -> Tensor:
            return x.loss(of_block, [units, bias]) + precision * (units**2).sum()

        fit_map([units, bias], loss)
        return units, bias

    def held_out_loss(prior: tuple[float, str]) -> float:
        units, bias = fitted(0, *prior)
        rows = rows_where(folds == 0, device)
        weight = units * shares[prior[1]].sqrt()
        logits = x.map(lambda _, some: some @ weight + bias, rows)
        return float(objective.loss(logits, propensity.held_out[rows], rows))

    if start is None:
        sd, share = min(itertools.product(REWARD_SDS, shares), key=held_out_loss)
        begins: Sequence[tuple[Tensor, Tensor] | None] = [None] * (int(folds.max()) + 1)
    else:
        sd, share, begins = start
    fits = [fitted(fold, sd, share, begin) for fold, begin in enumerate(begins)]
    unit = shares[share].sqrt()
    each = x.map(lambda _, some: torch.stack([some @ (units * unit) + bias for units, bias in fits], 1)).T
    weight, bias = (torch.stack(values).mean(0) for values in zip(*fits, strict=True))
    precision = torch.cat([x.width / sd**2 / shares[share], x.zeros(1)])
    start = LinearStart(sd, share, fits)
    reward = Reward(weight * unit, bias, (), None, *_by_fold(each, folds), start=start, precision=precision)
    return _with_losses(reward, propensity.held_out, objective)


def _fit_networks(
    x: Standardised,
    propensity: PropensityLogits,
    objective: Objective,
    folds: np.ndarray,
    layers: Sequence[int],
    training: Training,
    generator: torch.Generator,
) -> Reward:
    """Train one reward network per fold, on the rows outside the fold."""

    def loss(network: Network, rows: Tensor) -> Tensor:
        return objective.loss(network(x.at(rows)).squeeze(1), propensity.training.index_select(0, rows), rows)

    networks, each = [], []
    for fold in range(int(folds.max()) + 1):
        network = Network(x.width, layers, 1).to(x.device)
        fitted, held_out = rows_where(folds != fold, x.device), rows_where(folds == fold, x.device)
        train_network(network, loss, fitted, held_out, training, generator)
        networks.append(network)
        with torch.no_grad():
            each.append(x.map(lambda _, some, network=network: network(some).squeeze(1)))  # type: ignore[misc]
    zeros = x.zeros(x.width + 1)
    reward = Reward(zeros[1:], zeros[0], tuple(networks), None, *_by_fold(torch.stack(each), folds))
    return _with_losses(reward, propensity.held_out, objective)


def _by_fold(each: Tensor, folds: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the logit (N,) of each row from the fold model that did not see it, and the logits of all (folds, N)."""
    return each.T.gather(1, torch.from_numpy(folds).to(each.device)[:, None])[:, 0], each


def _with_losses(reward: Reward, propensity: Tensor, objective: Objective) -> Reward:
    """Return the reward with the weighted losses (N,) of its held-out logits."""
    rows = torch.arange(len(propensity), device=propensity.device)
    return replace(reward, losses=objective.loss(reward.held_out, propensity, rows, "none"))
