"""What the baselines need beside the feedback, estimated from the log alone: no clean label is read anywhere here.

The class prior, a propensity from popularity, and imputed preferences. Each rests on an assumption that its docstring
names; none of them is exact on a log whose propensity depends on the response.
"""

from __future__ import annotations

import numpy as np

SMOOTHING = 1.0  # actions and silences that a group of rows is given beforehand, in the proportion of the whole log


def class_prior(score: np.ndarray, feedback: np.ndarray, *, delta: float = 0.1, margin: float = 0.01) -> float:
    """Share of rows that are preferred, P(r* = 1), by best bin estimation (Garg et al., NeurIPS 2021).

    score: (N,) any held-out score that ranks rows by how likely they act.  feedback: (N,) of 1 acted and 0 silent.
    delta, margin: of the confidence bound that chooses the bin.

    Among the rows of the highest scores nearly all are preferred; if, besides, preferred rows act equally often
    wherever they lie (SCAR), the share of all rows above a threshold over that of the acting rows is the class prior
    there and larger elsewhere. Where propensities differ, it errs by their ratio. Returns a number between the rate of
    action and 1. Raises ValueError if no row acted or none was silent, or for shapes that differ.
    """
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
    """(N,) propensities in (0, 1] of Rel-MF (Saito et al., WSDM 2020): (rate of the item / largest rate) ** power.

    feedback: (N,) of 1 acted and 0 silent.  item: (N,) whole numbers from 0: rows of one item share a propensity.
    Responses are seldom shown twice: an item is then a group of alike ones, such as a cluster of embeddings. It takes
    popular items for exposed ones, and so charges part of the preference to the propensity.
    """
    acted = (np.asarray(feedback) == 1).astype(np.float64)
    count, actions = np.bincount(item), np.bincount(item, acted)
    rate = (actions + SMOOTHING * acted.mean()) / (count + SMOOTHING)
    largest = rate[count > 0].max()
    return np.ones(len(acted)) if largest == 0 else (rate / largest)[item] ** power


def imputed_preference(action_probability: np.ndarray, propensity: np.ndarray) -> np.ndarray:
    """(N,) P(r* = 1) that a model of the actions implies: `P(f = 1) / m`, at most 1.

    action_probability: (N,) held-out probabilities of a naive classifier.  propensity: (N,) in (0, 1].
    """
    implied: np.ndarray = np.minimum(np.asarray(action_probability, np.float64) / propensity, 1.0)
    return implied
