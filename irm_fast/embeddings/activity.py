"""An activity that all signals of a user share: measured between rows of one user, and taken out of the scale.

With P(f_j, f_k | r* = 1) = m_j m_k (1 + rho) the signals are not independent given the response. Propensities that are
read off co-actions come out too large by 1 + rho, and a response that pleased stays silent more often than the product
of 1 - m_k: both make the preference look rarer than it is. Products of residuals from *different* rows of one user show
rho and nothing of a row's own preference. Users who are easier to please raise it as well, so the truth lies between
the fit without this correction and the fit with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irm_fast.data.signals import action_rate
from irm_fast.diagnostics.cross_row import cross_row_dependence
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.observed import Observed

SIGNIFICANT = 3.0  # standard errors from which the scale is corrected


@dataclass
class Activity:
    """z: of the cross-row statistic.  rho: (K,) mean relative covariance with the other signals of the same polarity.

    mean_preference: as fitted without and with the correction.
    """

    z: float
    rho: tuple[float, ...]
    mean_preference: tuple[float, float] = (float("nan"), float("nan"))

    def factor(self, designs: tuple[str, ...]) -> Tensor:
        """(K,) by what to multiply propensities that were read off co-actions."""
        return torch.tensor([1.0 if d == "known" else 1 / (1 + r) for d, r in zip(designs, self.rho, strict=True)])

    def silence(self, logits: Tensor, objective: Objective) -> Tensor:
        """Propensity logits (N, K) under which independent signals are all silent as often as dependent ones are.

        To first order in rho (Bahadur 1961) that is prod (1 - m_k) (1 + sum_{j<k} rho m_j m_k / ((1 - m_j) (1 - m_k)))
        over the recorded signals of one polarity. The reward depends on propensities through this product alone.
        """
        log_silent = -torch.nn.functional.softplus(logits) * (objective.feedback >= 0)
        odds = torch.exp(logits).clamp(max=1e4) * (objective.feedback >= 0)
        rho = torch.tensor(self.rho, device=logits.device)
        out = logits.clone()
        for side in (1, -1):
            of_side = torch.tensor([sign == side for sign in objective.polarity], device=logits.device)
            if not of_side.any():
                continue
            some = odds * of_side * rho.sqrt()
            pairs = (some.sum(1) ** 2 - (some**2).sum(1)) / 2
            log_product = (log_silent * of_side).sum(1)
            log_dependent = torch.minimum(log_product + torch.log1p(pairs), 0.1 * log_product)
            power = torch.where(log_product < 0, log_dependent / log_product, torch.ones_like(log_product))
            shrunk = torch.log(torch.expm1(torch.nn.functional.softplus(logits) * power[:, None]).clamp(min=1e-12))
            out = torch.where(of_side, shrunk, out)
        return out


def measure(seen: Observed, reward: Tensor, propensity: Tensor) -> Activity | None:
    """The activity that rows of one user have in common; None where users are unknown or show nothing.

    reward: (N,), propensity: (N, K): logits, those of the reward for rows that it was not fitted to.
    """
    count = seen.feedback.shape[1]
    if seen.users is None or count < 2:
        return None
    own = torch.sigmoid(reward[:, None] * torch.tensor(seen.polarity, device=reward.device))
    misclick = torch.tensor(seen.misclick_rate, device=reward.device)
    rates = action_rate(own, torch.sigmoid(propensity), misclick)
    crossed = cross_row_dependence(seen.feedback, rates.double().cpu().numpy(), seen.users)
    if not crossed.z > SIGNIFICANT:
        return None
    same = np.equal.outer(seen.polarity, seen.polarity) & ~np.eye(count, dtype=bool)
    pairs = np.where(same, np.clip(np.nan_to_num(crossed.rho), 0, None), 0)
    rho = pairs.sum(axis=1) / np.maximum(same.sum(axis=1), 1)
    return Activity(crossed.z, tuple(rho.tolist()))
