"""The reward head, given the propensities: linear or a network, chosen by held-out implicit likelihood."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from irm_fast.diagnostics.metrics import paired_difference
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import REWARD_SDS, Training, fit_map, prior_shares, rows_where, train_network
from irm_fast.embeddings.parts import Network, Reward

AUTO_LAYERS = (128,)
STARTS = (-1.0, 1.0)  # propensity logits to start from: the likelihood may have two maxima


def fit_reward(
    x: Tensor,
    spread: Tensor,
    propensity: Tensor,
    objective: Objective,
    folds: np.ndarray,
    hidden_layers: Sequence[int] | str,
    training: Training,
    generator: torch.Generator,
) -> Reward:
    """Mean over the folds of rewards fitted without each; `auto` takes a network where that is clearly better.

    x: (N, D) standardised.  spread: (D,) deviations before that.  propensity: (N, K) logits, not changed.  folds: (N,)
    from 0.  Clearly: by more than one standard error of the difference in held-out loss; the linear reward fits into a
    backbone's own checkpoint.
    """
    auto = isinstance(hidden_layers, str)
    layers = AUTO_LAYERS if isinstance(hidden_layers, str) else tuple(hidden_layers)
    if layers and not auto:
        return _fit_networks(x, propensity, objective, folds, layers, training, generator)
    linear = _fit_linear(x, spread, propensity, objective, folds)
    if not auto:
        return linear
    network = _fit_networks(x, propensity, objective, folds, layers, training, generator)
    gain, error = paired_difference(*(part.cpu().numpy() for part in (linear.losses, network.losses, objective.weight)))
    return network if gain > error else linear


def calibration(held_out: Tensor, propensity: Tensor, objective: Objective) -> tuple[float, float]:
    """Slope above 0 and shift of the greatest implicit likelihood, for held-out reward logits (N,)."""
    _, slope, shift, _ = _levels(held_out, propensity, objective, torch.zeros_like(propensity[0]))
    return float(slope), float(shift)


def calibrated(reward: Reward, propensity: Tensor, objective: Objective) -> Reward:
    """The reward times a slope plus a shift, those of `calibration`."""
    slope, shift = calibration(reward.held_out, propensity, objective)
    for network in reward.networks:
        for parameter in network.layers[-1].parameters():
            parameter.data *= slope
    held_out, each = slope * reward.held_out + shift, slope * reward.each + shift
    moved = replace(
        reward, weight=slope * reward.weight, bias=slope * reward.bias + shift, held_out=held_out, each=each
    )
    return _with_losses(moved, propensity, objective)


def propensity_shift(reward: Reward, propensity: Tensor, objective: Objective, free: Tensor) -> Tensor:
    """(K,) what to add to the propensity logits of the signals that `free` (K,) marks, judged by held-out rewards.

    The joint likelihood sees rewards that a prior has shrunk, which hides where action rates level off and makes
    constant propensities too large, up to 1. On held-out rewards, with a slope of their own, the level shows.
    """
    constants = propensity[0] * free
    starts = [start * free - constants for start in STARTS]
    return min((_levels(reward.held_out, propensity, objective, free, start) for start in starts), key=_value)[3] * free


def _levels(
    logit: Tensor, propensity: Tensor, objective: Objective, free: Tensor, start: Tensor | None = None
) -> tuple[float, Tensor, Tensor, Tensor]:
    """Loss, slope above 0 and shift of the reward, and shifts (K,) of the propensities; a weak prior on all of them."""
    log_slope, shift = logit.new_zeros(()), logit.new_zeros(())
    level = torch.zeros_like(free) if start is None else start.clone()
    rows, constants = torch.arange(len(logit), device=logit.device), propensity[0] * free

    def loss() -> Tensor:
        value = objective.loss(log_slope.exp() * logit + shift, propensity + level * free, rows)
        prior = log_slope**2 + shift**2 / 4 + ((level * free + constants) ** 2).sum() / 4
        return value + prior / (2 * len(logit))

    fit_map([log_slope, shift, level], loss)
    with torch.no_grad():
        return float(loss()), log_slope.exp(), shift, level


def _value(found: tuple[float, Tensor, Tensor, Tensor]) -> float:
    return found[0]


def _fit_linear(x: Tensor, spread: Tensor, propensity: Tensor, objective: Objective, folds: np.ndarray) -> Reward:
    """Ridge regressions; the prior that is best on the first fold is taken for all.

    A prior gives a logit that varies by `sd` between responses; which of `prior_shares` suits an embedding, only the
    data can tell.
    """
    device = x.device
    shares = prior_shares(spread)

    def fitted(fold: int, sd: float, share: Tensor) -> tuple[Tensor, Tensor]:
        counted = torch.from_numpy((folds != fold).astype(np.float32)).to(device)
        # Weights in units of their prior deviations: with raw variances L-BFGS would not be done after 200 iterations.
        unit, units, bias = share.sqrt(), x.new_zeros(x.shape[1]), x.new_zeros(())
        precision = x.shape[1] / sd**2 / float(counted.sum()) / 2

        def loss() -> Tensor:
            return objective.linear_loss(x, units * unit, bias, propensity, counted) + precision * (units**2).sum()

        fit_map([units, bias], loss)
        return units * unit, bias

    def held_out_loss(sd: float, share: Tensor) -> float:
        weight, bias = fitted(0, sd, share)
        rows = rows_where(folds == 0, device)
        return float(objective.loss(x[rows] @ weight + bias, propensity[rows], rows))

    sd, share = min(itertools.product(REWARD_SDS, shares.values()), key=lambda prior: held_out_loss(*prior))
    fits = [fitted(fold, sd, share) for fold in range(int(folds.max()) + 1)]
    each = [x @ weight + bias for weight, bias in fits]
    weight, bias = (torch.stack(values).mean(0) for values in zip(*fits, strict=True))
    return _with_losses(Reward(weight, bias, (), *_by_fold(each, folds)), propensity, objective)


def _fit_networks(
    x: Tensor,
    propensity: Tensor,
    objective: Objective,
    folds: np.ndarray,
    layers: Sequence[int],
    training: Training,
    generator: torch.Generator,
) -> Reward:
    def loss(network: Network, rows: Tensor) -> Tensor:
        return objective.loss(network(x.index_select(0, rows)).squeeze(1), propensity.index_select(0, rows), rows)

    networks, each = [], []
    for fold in range(int(folds.max()) + 1):
        network = Network(x.shape[1], layers, 1).to(x.device)
        fitted, held_out = rows_where(folds != fold, x.device), rows_where(folds == fold, x.device)
        train_network(network, loss, fitted, held_out, training, generator)
        networks.append(network)
        with torch.no_grad():
            each.append(network(x).squeeze(1))
    zeros = x.new_zeros(x.shape[1] + 1)
    reward = Reward(zeros[1:], zeros[0], tuple(networks), *_by_fold(each, folds))
    return _with_losses(reward, propensity, objective)


def _by_fold(each: Sequence[Tensor], folds: np.ndarray) -> tuple[Tensor, Tensor]:
    """(N,) logit of each row by the fold that held it out, and (F, N) all of them."""
    stacked = torch.stack(list(each))
    return stacked[torch.from_numpy(folds).to(stacked.device), torch.arange(len(folds), device=stacked.device)], stacked


def _with_losses(reward: Reward, propensity: Tensor, objective: Objective) -> Reward:
    rows = torch.arange(len(propensity), device=propensity.device)
    return replace(reward, losses=objective.loss(reward.held_out, propensity, rows, "none"))
