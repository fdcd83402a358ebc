"""How far a linear reward would move if the log were drawn again: the covariance of its weights, in closed form.

The weights w of the reward solve U(w, p) = 0, where U is the gradient of the penalised loss and p are the propensities,
which solve equations V(p) = 0 of their own, on proven rows (`embeddings.two_step`). To first order

    w - w_true = -A^-1 (U - B C^-1 V),    A = dU/dw,  B = dU/dp,  C = dV/dp,

and the covariance is A^-1 J A^-1, where J is the sum over groups of rows of the outer product of what a group adds to
U - B C^-1 V (Newey and McFadden, Large sample estimation and hypothesis testing, 1994, sections 6 and 7; Liang and
Zeger, Biometrika 1986). The precisions of the priors are added to J as to A: where they are right, this is the
posterior covariance of Laplace (MacKay, Neural Computation 1992), which leaves room for what a prior shrinks. U and A
come from the gradients of single rows at the reward of the fold model that did not see the row: a fitted reward seems
to explain its own rows better than new ones.

Propensities that the joint likelihood fitted are parameters of the same likelihood, and stand beside w in A and J.
Known ones, and the part of propensities that comes from the context, count as exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.joint import BIAS_SD
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.parts import Reward
from irm_fast.embeddings.propensity_step import FoundPropensities
from irm_fast.embeddings.two_step import READS, proven

CHUNK = 16_384  # rows of a product whose operand is made on the way
RIDGE = 1e-9  # of the mean diagonal, added before a matrix is factored; ten times more until it can be


class _Gradients(NamedTuple):
    """Gradients of the weighted loss of each of N rows, with K signals.

    Attributes:
        reward: By the reward logit, of shape (N,).
        propensity: By the propensity logits, of shape (N, K).
        cross: The derivative of `reward` by the propensity logits, of shape (N, K).
    """

    reward: Tensor
    propensity: Tensor
    cross: Tensor


def covariance_factor(
    x: Tensor,
    z: Tensor | None,
    reward: Reward,
    logits: Tensor,
    found: FoundPropensities,
    objective: Objective,
    groups: np.ndarray | None,
) -> Tensor:
    """Return a factor F of the sampling covariance F F^T of the weights and the bias of a linear reward.

    Args:
        x: Standardised embeddings of shape (N, D).
        z: Standardised propensity features of shape (N, F), or None.
        reward: The linear reward, calibrated, with its held-out logits and its prior.
        logits: The propensity logits under which it was fitted, of shape (N, K).
        found: How the propensities were fitted.
        objective: The implicit loss of the rows.
        groups: Group numbers from 0, of shape (N,); the rows of a group may depend on each other. None means
            that all rows are independent.

    Returns:
        The factor (float32), of shape (D + 1, R) with R at least D + 1; its last row is the bias.
    """
    gradients = _gradients(reward.held_out, logits, objective)
    designs = found.propensities.designs
    # Where actions may be misclicks, propensities and reward are fitted in turn, to the same likelihood in the end
    two_steps = [step and not any(objective.misclick_rate) for step in found.two_steps]
    ones = x.new_ones(len(x), 1)
    with_one = torch.cat([x, ones], 1)

    # What the joint likelihood fitted: the reward, and propensities without proven rows
    blocks, slopes, precisions = [with_one], [gradients.reward], [reward.precision]
    for k in range(len(designs)):
        if designs[k] != "known" and not two_steps[k]:
            block, precision = _read(designs[k], x, z, found.prior, bias=1 / BIAS_SD**2)
            blocks.append(block)
            slopes.append(gradients.propensity[:, k])
            precisions.append(precision)
    influence = torch.cat([block * slope[:, None] for block, slope in zip(blocks, slopes, strict=True)], 1)
    prior = torch.diag(torch.cat(precisions)).double().cpu()
    information = _product(influence, influence, 1 / objective.weight) + prior

    # What the two-step propensities add
    evidence, outer = proven(objective), prior
    for k in [k for k in range(len(designs)) if two_steps[k]]:
        block, precision = _read(designs[k], x, z, found.prior, bias=0.0)
        cross = _product(block, with_one, gradients.cross[:, k])
        rows = torch.nonzero(evidence[:, k])[:, 0]
        block, m, weight = block[rows], torch.sigmoid(logits[rows, k]), objective.weight[rows]
        curvature = _product(block, block, weight * m * (1 - m)) + torch.diag(precision).double().cpu()
        moved = _solve(curvature, cross)
        residual = weight * (m - (objective.feedback[rows, k] == 1).float())
        influence[:, : with_one.shape[1]].index_add_(0, rows, (residual[:, None] * block) @ moved.to(block), alpha=-1)
        spread = moved.T @ (precision.double().cpu()[:, None] * moved)
        outer = outer + torch.nn.functional.pad(spread, (0, len(prior) - len(spread)) * 2)

    # Summed over groups
    if groups is not None:
        rows = torch.from_numpy(groups).to(x.device)
        influence = influence.new_zeros(int(groups.max()) + 1, influence.shape[1]).index_add_(0, rows, influence)
    outer = outer + _product(influence, influence)
    factor = _solve(information, _root(outer))[: x.shape[1] + 1]
    return factor.float().contiguous().to(x.device)


def deviation(x: Tensor, factor: Tensor) -> Tensor:
    """Return the standard deviations of reward logits in redraws of the log, of shape (n,).

    Args:
        x: Standardised embeddings of shape (n, D).
        factor: What `covariance_factor` returned.
    """
    return torch.linalg.vector_norm(x @ factor[:-1] + factor[-1], dim=1)


def mean_error(x: Tensor, reward: Reward, factor: Tensor) -> float:
    """Return the standard error of the mean preference of the rows, in redraws of the log.

    Args:
        x: Standardised embeddings of shape (N, D).
        reward: The linear reward, with its held-out logits.
        factor: What `covariance_factor` returned.
    """
    spread = torch.sigmoid(reward.held_out) * torch.sigmoid(-reward.held_out)
    moved = (spread @ x / len(x)) @ factor[:-1] + spread.mean() * factor[-1]
    return float(torch.linalg.vector_norm(moved))


def _gradients(reward: Tensor, logits: Tensor, objective: Objective) -> _Gradients:
    """Return the gradients of the rows at reward logits (N,) and propensity logits (N, K)."""
    reward, logits = (values.detach().requires_grad_() for values in (reward, logits))
    rows = torch.arange(len(reward), device=reward.device)
    by_reward, by_propensity = torch.autograd.grad(objective.loss(reward, logits, rows, "sum"), [reward, logits])
    with torch.no_grad():
        # The gradient by s is g - q, and a silent signal adds -softplus(t + log(1 - e)), times its polarity, to logit q
        sign = torch.tensor(objective.polarity, device=reward.device)
        certain = torch.log1p(-torch.tensor(objective.misclick_rate, device=reward.device))
        posterior = (torch.sigmoid(reward) - by_reward / objective.weight).clamp(0, 1)
        spread = (objective.weight * posterior * (1 - posterior))[:, None]
        silent = (objective.feedback == 0) * torch.sigmoid(logits + certain)
    return _Gradients(by_reward, by_propensity, spread * silent * sign)


def _read(design: str, x: Tensor, z: Tensor | None, prior: tuple[float, Tensor], bias: float) -> tuple[Tensor, Tensor]:
    """Return what a propensity reads, of shape (N, P), a column of ones last, and its prior precisions (P,)."""
    sd, share = prior
    blocks, precisions = [], []
    if 0 in READS[design]:
        blocks.append(x)
        precisions.append(x.shape[1] / sd**2 / share)
    if 1 in READS[design] and z is not None:
        blocks.append(z)
        precisions.append(z.new_full((z.shape[1],), z.shape[1] / sd**2))
    return torch.cat([*blocks, x.new_ones(len(x), 1)], 1), torch.cat([*precisions, x.new_full((1,), bias)])


def _product(one: Tensor, other: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return one.T @ diag(weight) @ other (float64, on the CPU), without a copy of all rows."""
    total = torch.zeros(one.shape[1], other.shape[1], dtype=torch.float64)
    for start in range(0, len(one), CHUNK):
        part = slice(start, start + CHUNK)
        right = other[part] if weight is None else other[part] * weight[part, None]
        total += (one[part].T @ right).double().cpu()
    return total


def _root(matrix: Tensor) -> Tensor:
    """Return a lower triangular L with L @ L.T the matrix, which is positive semidefinite but for rounding."""
    ridge = max(RIDGE * float(matrix.diagonal().mean()), 1e-30)
    while True:
        root, failed = torch.linalg.cholesky_ex(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype))
        if not (failed and math.isfinite(ridge)):
            return root
        ridge *= 10


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return matrix^-1 @ right for a positive semidefinite matrix."""
    return torch.cholesky_solve(right, _root(matrix))
