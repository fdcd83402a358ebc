"""How far ranking and scale of a reward would move if what has to be assumed were wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import expit
from scipy.stats import spearmanr

ROWS = 2000  # of the sensitivity analysis, evenly spaced
NODES, BISECTIONS = 25, 24


@dataclass(frozen=True)
class SharedActivity:
    """The reward under an activity u ~ N(0, sd^2), added to the propensity logits of all signals of a row.

    Attributes:
        sd: The standard deviation of the activity.
        mean_g: The mean preference.
        rank_correlation: Spearman's correlation with the fitted preference.
        impossible: The share of rows in which no preference up to 1 explains the fitted co-actions; they count as 1.
    """

    sd: float
    mean_g: float
    rank_correlation: float
    impossible: float


@dataclass(frozen=True)
class Misclicks:
    """The reward if users act by mistake.

    Attributes:
        rate: The share of active users who act on what a signal does not speak for, alike for all signals.
        mean_g: The mean preference.
    """

    rate: float
    mean_g: float


def with_misclicks(g: np.ndarray, assumed: Sequence[float] | np.ndarray, rates: Sequence[float] | np.ndarray) -> float:
    """Return the mean preference that explains the fitted rates of two signals under other misclick rates.

    With c_k = g + e_k (1 - g), P_k = m_k c_k and P_12 = m_1 m_2 (g + e_1 e_2 (1 - g)). So the log shows
    c_1 c_2 / (g + e_1 e_2 (1 - g)), and g' gives the same with the other rates: it solves a quadratic. Of its roots the
    larger: below it most actions would be mistakes. Where there is none, the g' that comes closest.

    Args:
        g: The fitted preference, of shape (N,), on the side of the two signals.
        assumed: The two misclick rates of the fit.
        rates: The two other rates.
    """
    e_1, e_2 = assumed
    shown = (g + e_1 * (1 - g)) * (g + e_2 * (1 - g)) / np.maximum(g + e_1 * e_2 * (1 - g), 1e-12)
    e_1, e_2 = rates
    a, c = (1 - e_1) * (1 - e_2), e_1 * e_2 * (1 - shown)
    b = e_1 * (1 - e_2) + e_2 * (1 - e_1) - shown * (1 - e_1 * e_2)
    root = np.sqrt(np.maximum(b**2 - 4 * a * c, 0.0))
    return float(np.clip((root - b) / (2 * a), 0, 1).mean())


def shared_activity(g: np.ndarray, m_1: np.ndarray, m_2: np.ndarray, sd: float) -> SharedActivity:
    """Find the preference that explains the fitted rates if two signals share an activity.

    Solves g', b_1, b_2 in g m_k = g' E[sigmoid(b_k + u)], g m_1 m_2 = g' E[sigmoid(b_1 + u) sigmoid(b_2 + u)], by
    Gauss-Hermite quadrature and bisection. The rates and co-actions of the fit stay as they are; part of the
    co-actions comes from the activity, so that g' >= g.

    Args:
        g: The fitted preference, of shape (N,).
        m_1: The fitted propensity of the first signal, of shape (N,).
        m_2: The fitted propensity of the second signal, of shape (N,).
        sd: The standard deviation of the activity.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(NODES)
    u, weight = sd * node, weight / weight.sum()
    grid = np.linspace(-16, 16, 1601) * max(1.0, sd)
    mean = expit(grid[:, None] + u) @ weight

    def coactions(value: np.ndarray) -> np.ndarray:
        b_1, b_2 = (np.interp(g * m / value, mean, grid)[:, None] + u for m in (m_1, m_2))
        together: np.ndarray = value * ((expit(b_1) * expit(b_2)) @ weight)
        return together

    low, high = g.copy(), np.ones_like(g)
    impossible = coactions(high) > g * m_1 * m_2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        more = coactions(middle) > g * m_1 * m_2
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    solved = (low + high) / 2
    return SharedActivity(sd, float(solved.mean()), rank_correlation(g, solved), float(impossible.mean()))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation; NaN where one of the two is constant."""
    if len(one) < 2 or not np.ptp(one) or not np.ptp(other):
        return float("nan")
    return float(spearmanr(one, other).statistic)


def refit_agreement(rewards: np.ndarray) -> float:
    """Return the mean of Spearman's correlations of all pairs of F refits, rewards (F, N); NaN for fewer than two."""
    rewards = rewards[:, sample(np.arange(rewards.shape[1]))]
    pairs = [rank_correlation(rewards[j], rewards[k]) for j, k in combinations(range(len(rewards)), 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def sample(rows: np.ndarray, most: int = ROWS) -> np.ndarray:
    """Return these row numbers, or as many as are wanted at most, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)] if len(rows) else rows
