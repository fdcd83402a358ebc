"""The best of n answers by a reward: how often it pleases, and how far it is driven by what moves users to act.

A policy that answers with the best of n samples by a reward is optimised against it, the more the larger n is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

COUNTS = (1, 2, 4, 8, 16, 32, 64)
AT = 16  # the number of answers at which methods are compared


def chance_of_pick(reward: np.ndarray, count: int) -> np.ndarray:
    """The chance of each answer to be the best of so many that are drawn at random without repetition.

    It is exact: no draw is made. Answers of equal rewards have equal chances.

    Args:
        reward: (m,) rewards.
        count: The number of answers drawn, from 1 to m.

    Returns:
        (m,) float64, whose sum is 1.
    """
    total = len(reward)
    _, place, ties = np.unique(reward, return_inverse=True, return_counts=True)
    below = np.concatenate([[0], np.cumsum(ties)])  # answers up to each value
    drawn = np.arange(count)
    all_below = np.prod(np.clip(below[:, None] - drawn, 0, None) / (total - drawn), axis=1)
    share: np.ndarray = (np.diff(all_below) / ties)[place]
    return share


def best_of(
    reward: np.ndarray, preference: np.ndarray, features: np.ndarray, counts: Sequence[int] = COUNTS
) -> dict[str, list[Any]]:
    """What the best of n answers is like, for each n.

    Args:
        reward: (m,) rewards of the answers.
        preference: (m,) of 0 and 1, whether each pleases.
        features: (m, F) what moves users to act, standardised.
        counts: The numbers of answers, n; those above m are left out.

    Returns:
        "n", the numbers; "pleases", the chance that the pick pleases, for each; "features", its mean features.
    """
    kept = [count for count in counts if count <= len(reward)]
    chances = np.stack([chance_of_pick(reward, count) for count in kept])
    return {"n": kept, "pleases": (chances @ preference).tolist(), "features": (chances @ features).tolist()}
