"""Dependence between different rows of one user: the trace of an activity that all signals share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from irm_fast.data.groups import NO_NAME, numbered


class CrossRow(NamedTuple):
    """The covariance of the residuals of different rows of one user.

    Attributes:
        z: The z statistic of the sum of residual products over users, signals and pairs of different rows: about
            standard normal if users do not differ, NaN without such pairs.
        rho: Relative covariances of shape (K, K): the sum of e_ij e_i'k over the sum of p_ij p_i'k, over pairs of
            different rows i, i' of a user; NaN where there are none.
        interval: The 95% confidence intervals of `rho`, of shape (K, K, 2).
        pairs: The number of pairs of different rows of one user.
        users: The number of users who have such a pair.
    """

    z: float
    rho: np.ndarray
    interval: np.ndarray
    pairs: int
    users: int


def cross_row_dependence(
    feedback: np.ndarray, rates: np.ndarray, users: Sequence[Hashable | None] | np.ndarray, *, slack: float = 0.0
) -> CrossRow:
    """Measure the dependence between different rows of users who appear in several.

    Only products of *different* rows enter: a preference that varies with x is no confounder, and if users see random
    responses neither are predictions that are off for some x. The rates of each signal are scaled to the number of its
    actions. Users who act more on whatever pleases them raise rho; so do users who are easier to please, and users who
    see responses of one kind whose rates the predictions get wrong.

    Args:
        feedback: Integers of shape (N, K): 1 acted, 0 silent, -1 missing.
        rates: Predicted action rates of shape (N, K), best for rows that the model was not trained on; NaN leaves an
            entry out.
        users: The user of each of the N rows, None where unknown; or their numbers.
        slack: The relative covariance beyond which z counts.
    """
    user = numbered(users)
    known = user != NO_NAME
    feedback, rates, user = feedback[known], rates[known], user[known]
    recorded = (feedback >= 0) & np.isfinite(rates)
    acted = np.where(recorded, feedback, 0).astype(np.float64)
    rate = np.where(recorded, rates, 0.0)
    scale = acted.sum(axis=0) / np.maximum(rate.sum(axis=0), 1e-12)
    rate = np.minimum(rate * scale, 1.0)
    cross, base = _products(acted - rate, user), _products(rate, user)
    count = np.bincount(user, recorded.any(axis=1))
    several, pairs = int((count > 1).sum()), int((count * (count - 1)).sum() // 2)

    size = 1 / np.sqrt(np.maximum(rate.sum(axis=0), 1e-12))  # signals of all rates have a say
    total = np.einsum("ujk,j,k->u", cross - slack * base, size, size)
    spread = np.sqrt((total**2).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = cross.sum(axis=0) / base.sum(axis=0)
        error = np.sqrt(((cross - rho * base) ** 2).sum(axis=0)) / base.sum(axis=0)
    interval = np.stack([rho - 1.96 * error, rho + 1.96 * error], axis=-1)
    return CrossRow(float(total.sum() / spread) if spread else float("nan"), rho, interval, pairs, several)


def _products(values: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Return for each of U users the sum over ordered pairs of different rows of value_ij value_i'k, (U, K, K)."""
    count = values.shape[1]
    sums = np.stack([np.bincount(user, values[:, k]) for k in range(count)], axis=1)
    same = [np.bincount(user, values[:, j] * values[:, k]) for j in range(count) for k in range(count)]
    return sums[:, :, None] * sums[:, None, :] - np.stack(same, axis=1).reshape(-1, count, count)
