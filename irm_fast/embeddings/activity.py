"""User activity that all signals share: measure it between different rows of one user, and correct for it.

If P(f_j = 1, f_k = 1 | r* = 1) = m_j m_k (1 + rho), with feedback f, preference r* and propensities m, the signals are
not independent given the response. Propensities estimated from co-actions are then too large by the factor 1 + rho, and
a preferred response stays silent more often than the product of the 1 - m_k says. Both make preferred responses look
rarer than they are. Products of residuals from *different* rows of one user estimate rho and do not depend on a row's
own preference. Users who are easier to please also raise this estimate, so the truth lies between the fit without the
correction and the fit with it.
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
    """The dependence between the K signals that comes from the activity of the users.

    Attributes:
        z: The z statistic of the residual products between different rows of one user.
        rho: For each signal, the mean relative covariance with the other signals of the same polarity; K numbers.
        mean_preference: The mean held-out probability that a response is preferred, without and with the correction;
            NaN until the fit sets it.
    """

    z: float
    rho: tuple[float, ...]
    mean_preference: tuple[float, float] = (float("nan"), float("nan"))

    def factor(self, designs: tuple[str, ...]) -> Tensor:
        """Return the factors that correct propensities which were estimated from co-actions.

        Args:
            designs: The propensity designs of the K signals.

        Returns:
            Factors (float32) of shape (K,): 1 / (1 + rho), or 1 for signals of the design `known`.
        """
        return torch.tensor([1.0 if d == "known" else 1 / (1 + r) for d, r in zip(designs, self.rho, strict=True)])

    def silence(self, logits: Tensor, objective: Objective) -> Tensor:
        """Return propensity logits with which independent signals are all silent as often as the dependent signals are.

        To first order in rho (Bahadur 1961), the probability that all signals are silent is prod (1 - m_k) (1 +
        sum_{j<k} rho m_j m_k / ((1 - m_j) (1 - m_k))), over the recorded signals of one polarity. The fit of the reward
        depends on the propensities through this product alone.

        Args:
            logits: Corrected propensity logits of shape (N, K).
            objective: The feedback of the same rows, and the polarity of the signals.

        Returns:
            Propensity logits of shape (N, K).
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
    """Measure the activity that the rows of one user have in common.

    Args:
        seen: The feedback and users of the N rows.
        reward: Reward logits of shape (N,), each from a fit that did not use the row.
        propensity: Propensity logits of shape (N, K).

    Returns:
        The activity, or None if users are unknown, there are fewer than two signals, or z is not above 3.
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
