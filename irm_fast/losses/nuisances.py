"""Estimates of nuisances: what the baselines need beside the feedback, from the log alone, without clean labels.

These are the class prior, a propensity from popularity, and imputed preferences. Each rests on an assumption that its
docstring names; none is exact on a log whose propensity depends on the response.

Examples:
    >>> import numpy as np
    >>> from irm_fast import nuisances
    >>> feedback = np.array([1, 1, 0, 0, 0, 0, 0, 0])
    >>> item = np.array([0, 0, 0, 0, 1, 1, 1, 1])  # four rows of one item, four of another
    >>> propensity = nuisances.popularity_propensity(feedback, item)
    >>> propensity.round(2)
    array([1.  , 1.  , 1.  , 1.  , 0.33, 0.33, 0.33, 0.33])
    >>> nuisances.imputed_preference(np.full(8, 0.25), propensity).round(2)
    array([0.25, 0.25, 0.25, 0.25, 0.75, 0.75, 0.75, 0.75])
    >>> rng = np.random.default_rng(0)
    >>> preferred = np.arange(2000) < 1000  # half of the rows, of which 4 in 10 act
    >>> acted = preferred & (rng.random(2000) < 0.4)
    >>> round(nuisances.class_prior(score=preferred + rng.random(2000), feedback=acted), 1)
    0.5
"""

from __future__ import annotations

import numpy as np

SMOOTHING = 1.0  # actions and silences that a group of rows is given beforehand, in the proportion of the whole log


def class_prior(score: np.ndarray, feedback: np.ndarray, *, delta: float = 0.1, margin: float = 0.01) -> float:
    """Class prior P(r* = 1), the share of preferred rows, by best bin estimation (Garg et al., NeurIPS 2021).

    Assumption: nearly all rows with the highest scores are preferred, and all preferred rows have the same propensity
    (SCAR). Then the share of all rows above a threshold of the score, divided by the same share of the acting rows, is
    the class prior for high thresholds and larger for low ones. The threshold with the smallest upper confidence bound
    of this ratio is chosen. Where propensities differ, the estimate errs by their ratio.

    Args:
        score: Held-out score, (N,) real, larger for rows more likely to act. Rows of equal score stay together.
        feedback: (N,) numbers or bool: 1 acted; others count as silent, so leave out rows that are not recorded.
        delta: Probability with which the confidence bound may fail, between 0 and 1. Smaller values prefer lower
            thresholds, with more rows above them.
        margin: Relative margin by which the width of the confidence bound is enlarged, at least 0.

    Returns:
        The class prior, at least the rate of action and at most 1.

    Raises:
        ValueError: The shapes are not (N,) of both, no row acted, none was silent, or a number is out of range.
    """
    if not (0 < delta < 1 and margin >= 0):
        raise ValueError(f"delta and margin: got {delta} and {margin}; expected one in (0, 1), and one of 0 or more")
    score, acted = np.asarray(score, np.float64), np.asarray(feedback) == 1
    if score.ndim != 1 or acted.shape != score.shape:
        raise ValueError(f"score and feedback: got shapes {score.shape} and {acted.shape}; expected (N,) of both")
    if acted.all() or not acted.any():
        raise ValueError(f"feedback: {int(acted.sum())} of {len(acted)} rows acted; expected some, and some silent")
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # equal scores are not parted
    above, among = (np.arange(1, len(order) + 1) / len(order))[last], (np.cumsum(acted[order]) / acted.sum())[last]
    above, among = above[among > 0], among[among > 0]
    slack = sum(np.sqrt(np.log(4 / delta) / (2 * n)) for n in (len(acted), acted.sum()))
    best = np.argmin((above + (1 + margin) * slack) / among)
    return float(np.clip(above[best] / among[best], acted.mean(), 1.0))


def popularity_propensity(feedback: np.ndarray, item: np.ndarray, *, power: float = 0.5) -> np.ndarray:
    """Propensities from popularity, as in Rel-MF: (rate of the item / largest rate) ** power.

    Responses are seldom shown twice: an item is then a group of similar ones, such as a cluster of embeddings. The
    estimate assumes that popular items differ from others in exposure only, and so attributes part of the preference to
    the propensity. Rates are smoothed by one more row at the rate of the log. Source: Saito et al., WSDM 2020.

    Args:
        feedback: (N,) numbers or bool: 1 acted; others count as silent, so leave out rows that are not recorded.
        item: Item of each row, (N,) integers from 0; rows of one item share a propensity.
        power: Exponent: 0.5 in Rel-MF; 0 makes all propensities 1.

    Returns:
        Propensities in (0, 1], (N,) float64, 1 for the most popular item; all 1 if no row acted.

    Raises:
        TypeError: `item` does not hold integers.
        ValueError: `item` has a negative number or another shape than `feedback`, or there are no rows.
    """
    acted, item = (np.asarray(feedback) == 1).astype(np.float64), np.asarray(item)
    if not np.issubdtype(item.dtype, np.integer):
        raise TypeError(f"item: got {item.dtype}; expected integers from 0, such as numbers of clusters")
    if acted.ndim != 1 or item.shape != acted.shape or not len(item):
        raise ValueError(f"feedback and item: got shapes {acted.shape} and {item.shape}; expected (N,) of both, N > 0")
    if item.min() < 0:
        raise ValueError(f"item: got {item.min()}; expected integers from 0")
    count, actions = np.bincount(item), np.bincount(item, acted)
    rate = (actions + SMOOTHING * acted.mean()) / (count + SMOOTHING)
    largest = rate[count > 0].max()
    return np.ones(len(acted)) if largest == 0 else (rate / largest)[item] ** power


def imputed_preference(action_probability: np.ndarray, propensity: np.ndarray) -> np.ndarray:
    """Probability P(r* = 1) of preference that a model of the actions implies: `P(f = 1) / m`, at most 1.

    Right if both arguments are right and only preferred rows act. Nothing is checked.

    Args:
        action_probability: P(f = 1), held-out probabilities of a classifier of the actions, (N,).
        propensity: m = P(acts | preferred) in (0, 1], (N,).

    Returns:
        Imputed preference probabilities, (N,) float64.
    """
    implied: np.ndarray = np.minimum(np.asarray(action_probability, np.float64) / propensity, 1.0)
    return implied
