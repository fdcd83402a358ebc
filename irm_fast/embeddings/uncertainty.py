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
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.joint import BIAS_SD
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.parts import Reward
from irm_fast.embeddings.propensity_step import FoundPropensities
from irm_fast.embeddings.standardised import Rows, Standardised, as_standardised
from irm_fast.embeddings.two_step import READS, proven

GROUPED = 2**27  # numbers of the sums over groups in memory at once
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
    x: Tensor | Standardised,
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
    rows = _Influence.of(as_standardised(x), z, reward, logits, found, objective)
    reads = dict(zip(rows.joint, rows.joint_reads, strict=True)) | dict(
        zip(rows.proven, rows.proven_reads, strict=True)
    )
    prior = torch.diag(torch.cat([reward.precision, *(reads[k].precision for k in rows.joint)])).double().cpu()

    # What the joint likelihood fitted: the reward, and propensities without proven rows
    count = len(rows.proven)
    information, *parts = rows.x.total(rows.curvatures)
    information, outer = information + prior, prior

    # What the two-step propensities add
    moved = []
    for k, cross, curvature in zip(rows.proven, parts[:count], parts[count:], strict=True):
        precision = reads[k].precision
        moved.append(_solve(curvature + torch.diag(precision).double().cpu(), cross))
        spread = moved[-1].T @ (precision.double().cpu()[:, None] * moved[-1])
        outer = outer + torch.nn.functional.pad(spread, (0, len(prior) - len(spread)) * 2)

    # Summed over groups
    outer = outer + _outer(rows, moved, groups, len(prior))
    factor = _solve(information, _root(outer))[: rows.x.width + 1]
    return factor.float().contiguous().to(rows.x.device)


class _Reads(NamedTuple):
    """What the propensity of a signal reads.

    Attributes:
        embeddings: Whether it reads these.
        features: The propensity features of shape (N, F), or None if it reads none.
        precision: The prior precisions of what it reads, of shape (P,), that of the bias last.
    """

    embeddings: bool
    features: Tensor | None
    precision: Tensor

    @classmethod
    def of(cls, design: str, x: Standardised, z: Tensor | None, prior: tuple[float, Tensor], bias: float) -> _Reads:
        """Return what a design reads, with a prior precision of the bias."""
        (sd, share), reads = prior, READS[design]
        features, precisions = z if 1 in reads else None, []
        if 0 in reads:
            precisions.append(x.width / sd**2 / share)
        if features is not None:
            precisions.append(features.new_full((features.shape[1],), features.shape[1] / sd**2))
        return cls(0 in reads, features, torch.cat([*precisions, x.zeros(1) + bias]))

    def columns(self, rows: Rows, some: Tensor) -> Tensor:
        """Return what is read of some rows with the embeddings (n, D), of shape (n, P), a column of ones last."""
        blocks = [some] if self.embeddings else []
        if self.features is not None:
            blocks.append(self.features[rows])
        return torch.cat([*blocks, some.new_ones(len(some), 1)], 1)


class _Influence(NamedTuple):
    """What each row adds to the gradient of the likelihood, and to its derivatives.

    Attributes:
        x: The embeddings.
        objective: The implicit loss of the rows.
        reward: The held-out reward logits, of shape (N,).
        logits: The propensity logits, of shape (N, K).
        evidence: `two_step.proven`, of shape (N, K).
        joint: The signals whose propensities the joint likelihood fitted.
        joint_reads: What each of these reads.
        proven: The signals whose propensities were fitted on proven rows.
        proven_reads: What each of these reads.
    """

    x: Standardised
    objective: Objective
    reward: Tensor
    logits: Tensor
    evidence: Tensor
    joint: Sequence[int]
    joint_reads: Sequence[_Reads]
    proven: Sequence[int]
    proven_reads: Sequence[_Reads]

    @classmethod
    def of(
        cls,
        x: Standardised,
        z: Tensor | None,
        reward: Reward,
        logits: Tensor,
        found: FoundPropensities,
        objective: Objective,
    ) -> _Influence:
        """Return it for the arguments of `covariance_factor`."""
        designs = found.propensities.designs
        # Where actions may be misclicks, propensities and reward are fitted in turn, to the same likelihood in the end
        two_steps = [step and not any(objective.misclick_rate) for step in found.two_steps]
        signals = range(len(designs))
        joint = [k for k in signals if designs[k] != "known" and not two_steps[k]]
        in_two_steps = [k for k in signals if two_steps[k]]
        return cls(
            x=x,
            objective=objective,
            reward=reward.held_out,
            logits=logits,
            evidence=proven(objective),
            joint=joint,
            joint_reads=[_Reads.of(designs[k], x, z, found.prior, 1 / BIAS_SD**2) for k in joint],
            proven=in_two_steps,
            proven_reads=[_Reads.of(designs[k], x, z, found.prior, 0.0) for k in in_two_steps],
        )

    def gradients(self, rows: Rows) -> _Gradients:
        """Return the gradients of a block by the logits."""
        assert isinstance(rows, slice)
        return _gradients(self.reward[rows], self.logits[rows], self.objective, rows)

    def of_joint(self, rows: Rows, some: Tensor) -> Tensor:
        """Return what rows add to the gradient of the joint likelihood, of shape (n, P): reward and bias first."""
        gradients = self.gradients(rows)
        parts = [_with_one(some) * gradients.reward[:, None]]
        for k, reads in zip(self.joint, self.joint_reads, strict=True):
            parts.append(reads.columns(rows, some) * gradients.propensity[:, k, None])
        return torch.cat(parts, 1)

    def curvatures(self, rows: Rows, some: Tensor) -> list[Tensor]:
        """Return A of the joint likelihood; then B of each signal that was fitted on proven rows; then their C."""
        influence, with_one, gradients = self.of_joint(rows, some), _with_one(some), self.gradients(rows)
        crosses, own = [], []
        for k, reads in zip(self.proven, self.proven_reads, strict=True):
            block = reads.columns(rows, some)
            crosses.append(_product(block, with_one, gradients.cross[:, k]))
            seen = torch.nonzero(self.evidence[rows][:, k])[:, 0]
            block = block[seen]
            m, weight = torch.sigmoid(self.logits[rows][seen, k]), self.objective.weight[rows][seen]
            own.append(_product(block, block, weight * m * (1 - m)))
        return [_product(influence, influence, 1 / self.objective.weight[rows]), *crosses, *own]

    def of_all(self, rows: Rows, some: Tensor, moved: Sequence[Tensor]) -> Tensor:
        """Return what rows add to U - B C^-1 V, of shape (n, P), where `moved` are the C^-1 B^T of the signals."""
        influence = self.of_joint(rows, some)
        for k, reads, by_evidence in zip(self.proven, self.proven_reads, moved, strict=True):
            seen = torch.nonzero(self.evidence[rows][:, k])[:, 0]
            block = reads.columns(rows, some)[seen]
            m, weight = torch.sigmoid(self.logits[rows][seen, k]), self.objective.weight[rows][seen]
            residual = weight * (m - (self.objective.feedback[rows][seen, k] == 1).float())
            added = (residual[:, None] * block) @ by_evidence.to(block)
            influence[:, : some.shape[1] + 1].index_add_(0, seen, added, alpha=-1)
        return influence


def _outer(rows: _Influence, moved: Sequence[Tensor], groups: np.ndarray | None, width: int) -> Tensor:
    """Return J: the sum over groups of the outer product of what a group adds, of shape (P, P), `width` being P."""
    if groups is None:

        def of_rows(block: Rows, some: Tensor) -> list[Tensor]:
            influence = rows.of_all(block, some, moved)
            return [_product(influence, influence)]

        return rows.x.total(of_rows)[0]

    number, total = torch.from_numpy(groups).to(rows.x.device), torch.zeros(width, width, dtype=torch.float64)
    for first in range(0, int(groups.max()) + 1, max(1, GROUPED // width)):  # so many groups in memory at once
        last = min(first + max(1, GROUPED // width), int(groups.max()) + 1)
        summed = rows.x.zeros(last - first, width)

        def add(block: Rows, some: Tensor, first: int = first, last: int = last, summed: Tensor = summed) -> None:
            own = number[block]
            influence = rows.of_all(block, some, moved)
            if last - first <= int(groups.max()):  # not all groups
                inside = (own >= first) & (own < last)
                own, influence = own[inside], influence[inside]
            summed.index_add_(0, own - first, influence)

        rows.x.visit(add, summed)
        total += _product(summed, summed)
    return total


def deviation(x: Tensor, factor: Tensor) -> Tensor:
    """Return the standard deviations of reward logits in redraws of the log, of shape (n,).

    Args:
        x: Standardised embeddings of shape (n, D).
        factor: What `covariance_factor` returned.
    """
    return torch.linalg.vector_norm(x @ factor[:-1] + factor[-1], dim=1)


def mean_error(x: Standardised, reward: Reward, factor: Tensor) -> float:
    """Return the standard error of the mean preference of the rows, in redraws of the log.

    Args:
        x: Standardised embeddings of shape (N, D).
        reward: The linear reward, with its held-out logits.
        factor: What `covariance_factor` returned.
    """
    spread = torch.sigmoid(reward.held_out) * torch.sigmoid(-reward.held_out)
    (mean,) = x.total(lambda rows, some: [spread[rows] @ some])
    moved = (mean.to(spread) / len(x)) @ factor[:-1] + spread.mean() * factor[-1]
    return float(torch.linalg.vector_norm(moved))


def _gradients(reward: Tensor, logits: Tensor, objective: Objective, block: slice) -> _Gradients:
    """Return the gradients of the rows of a block at reward logits (n,) and propensity logits (n, K)."""
    reward, logits = (values.detach().requires_grad_() for values in (reward, logits))
    rows = torch.arange(block.start, block.stop, device=reward.device)
    by_reward, by_propensity = torch.autograd.grad(objective.loss(reward, logits, rows, "sum"), [reward, logits])
    with torch.no_grad():
        # The gradient by s is g - q, and a silent signal adds -softplus(t + log(1 - e)), times its polarity, to logit q
        sign = torch.tensor(objective.polarity, device=reward.device)
        certain = torch.log1p(-torch.tensor(objective.misclick_rate, device=reward.device))
        posterior = (torch.sigmoid(reward) - by_reward / objective.weight[block]).clamp(0, 1)
        spread = (objective.weight[block] * posterior * (1 - posterior))[:, None]
        silent = (objective.feedback[block] == 0) * torch.sigmoid(logits + certain)
    return _Gradients(by_reward, by_propensity, spread * silent * sign)


def _with_one(some: Tensor) -> Tensor:
    """Return embeddings (n, D) with a column of ones, which is the bias."""
    return torch.cat([some, some.new_ones(len(some), 1)], 1)


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
