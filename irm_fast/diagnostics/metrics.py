"""How well a reward ranks, predicts and is calibrated, against known preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

CALIBRATION_BINS = 15


def reward_metrics(logit: np.ndarray, preference: np.ndarray, pair: np.ndarray | None = None) -> dict[str, float]:
    """Measure how well `sigmoid(logit)` predicts a preference of 0 or 1.

    A metric that is undefined, as the AUROC of one class, is NaN, and so is all that a NaN logit enters.

    Args:
        logit: Reward logits of shape (N,).
        preference: The preference of each row, 0 or 1, of shape (N,).
        pair: Integers of shape (N,), one number for the two responses of a pair, negative for a response without one.

    Returns:
        mae, rmse, r2, auroc, nll (natural logarithm, per row), ece (expected calibration error, 15 bins of equal
        width), n and, where there are pairs, pair_accuracy: over the pairs of one preferred and one rejected response,
        the share in which the preferred one has the higher logit, a tie counting half.

    Raises:
        ValueError: A shape is wrong, a preference is neither 0 nor 1, or a pair has more than two rows.

    Examples:
        >>> metrics = reward_metrics(np.array([2.0, -1.0, 0.5]), np.array([1, 0, 0]))
        >>> metrics["auroc"], metrics["n"]
        (1.0, 3)
    """
    logit = np.asarray(logit, np.float64)
    preference = np.asarray(preference)
    if logit.ndim != 1 or preference.shape != logit.shape:
        shapes = f"{logit.shape} and {preference.shape}"
        raise ValueError(f"logit and preference: got shapes {shapes}; expected (N,) of both")
    if not np.isin(preference, (0, 1)).all():
        raise ValueError(f"preference: got values {np.unique(preference)[:10]}; expected 0 and 1 only")
    preference = preference.astype(np.float64)
    nan = float("nan")
    metrics = dict.fromkeys(("mae", "rmse", "r2", "auroc", "nll", "ece"), nan)
    if len(logit):
        with np.errstate(invalid="ignore"):  # a NaN logit
            probability = np.exp(-np.logaddexp(0, -logit))
            loss = np.logaddexp(0, np.where(preference == 1, -logit, logit))
        error = probability - preference
        spread = np.sum((preference - preference.mean()) ** 2)
        metrics |= {
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "r2": float(1 - (error**2).sum() / spread) if spread else nan,
            "auroc": _auroc(logit, preference),
            "nll": float(loss.mean()),
            "ece": _calibration_error(probability, preference),
        }
    if pair is not None:
        pair = np.asarray(pair)
        if pair.shape != logit.shape:
            raise ValueError(f"pair: got {pair.shape}; expected {logit.shape} as the logits")
        if (pair >= 0).any():
            metrics["pair_accuracy"] = _pair_accuracy(logit, preference, pair)
    return metrics | {"n": len(logit)}


def paired_difference(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Compare two models on the same rows by their mean losses.

    Args:
        one: The loss of each row under one model, already multiplied by its weight, of shape (N,).
        other: The same under the other model.
        weight: The weight of each row, of shape (N,).

    Returns:
        The mean of `one` less that of `other`, and the standard error of this difference, infinite for a single row.
    """
    difference, total, size = one.astype(np.float64) - other, weight.sum(dtype=np.float64), len(weight)
    mean = difference.sum() / total
    if size < 2:
        return float(mean), float("inf")
    spread = ((difference - weight * mean) ** 2).sum() * size / (size - 1)
    return float(mean), float(np.sqrt(spread) / total)


def ordered_pairs(logit: np.ndarray, preference: np.ndarray, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell in which pairs the preferred response has the higher logit.

    Args:
        logit: Reward logits of shape (N,).
        preference: The preference of each row, 0 or 1, of shape (N,).
        pair: One number for the two responses of a pair, negative for a response without one, of shape (N,).

    Returns:
        For each of the P pairs of one preferred and one rejected response 1 or 0, 0.5 for a tie, NaN if a logit is NaN;
        and the row number of its rejected and its preferred response, of shape (P, 2).

    Raises:
        ValueError: A pair has more than two rows.
    """
    rows = np.flatnonzero(pair >= 0)
    rows = rows[np.lexsort((preference[rows], pair[rows]))]  # the rejected response of each pair first
    number, start, size = np.unique(pair[rows], return_index=True, return_counts=True)
    if (size > 2).any():
        raise ValueError(f"pair: {number[size > 2][0]} has {size.max()} rows; expected two")
    both = np.column_stack([rows[start[size == 2]], rows[start[size == 2] + 1]])
    both = both[preference[both[:, 0]] < preference[both[:, 1]]]
    lower, higher = logit[both].T
    right = np.where(lower == higher, 0.5, (higher > lower).astype(float))
    right[np.isnan(lower) | np.isnan(higher)] = np.nan
    return right, both


def operating_points(
    score: np.ndarray, feedback: np.ndarray, shares: Sequence[float] = (0.01, 0.05, 0.1, 0.2, 0.5)
) -> list[dict[str, Any]]:
    """Say how many actions would be lost if the responses with the lowest scores were hidden.

    It needs held-out rows and nothing else: what acts is seen in the log, whether or not the preference is identified.
    A response whose score equals that of the last hidden one is hidden in part: all responses of that score alike.

    Args:
        score: Scores of shape (N,), such as reward logits or the probability that a signal acts.
        feedback: Feedback of the same rows, of shape (N, K): 1 acted, 0 silent, -1 missing.
        shares: The shares of the rows to hide, each in [0, 1].

    Returns:
        For each share a dict of hidden (the share), threshold (the highest score that is hidden, NaN where none is) and
        lost, a list of K: the share of each signal's actions in the hidden rows, NaN for a signal that never acts. A
        score that tells nothing loses as large a share as it hides.

    Raises:
        ValueError: A shape is wrong, a score is NaN, or a share is not in [0, 1].

    Examples:
        >>> feedback = np.array([[0], [1], [0], [1], [1]])
        >>> operating_points(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), feedback, shares=(0.4,))
        [{'hidden': 0.4, 'threshold': 0.2, 'lost': [0.3333333333333333]}]
    """
    score, feedback = np.asarray(score, np.float64), np.asarray(feedback)
    if score.ndim != 1 or feedback.ndim != 2 or len(feedback) != len(score):
        raise ValueError(f"score and feedback: got shapes {score.shape} and {feedback.shape}; expected (N,) and (N, K)")
    if np.isnan(score).any():
        raise ValueError(f"score: got NaN in {int(np.isnan(score).sum())} rows; expected a number in each")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares: got {tuple(shares)}; expected numbers in [0, 1]")
    values, place, count = np.unique(score, return_inverse=True, return_counts=True)
    actions = np.zeros((len(values), feedback.shape[1]))
    np.add.at(actions, place, feedback == 1)
    return [_operating_point(share, values, count, actions) for share in shares]


def _operating_point(share: float, values: np.ndarray, count: np.ndarray, actions: np.ndarray) -> dict[str, Any]:
    """Hide a share of the rows: of V values of a score in order, with their numbers of rows and of actions (V, K)."""
    before = np.cumsum(count) - count
    rows = round(share * int(count.sum()), 9)  # 0.7 * 10 is a little more than 7
    part = np.clip((rows - before) / count, 0, 1)  # of the rows of each value
    hidden = np.flatnonzero(part > 0)
    with np.errstate(invalid="ignore"):
        lost = part @ actions / actions.sum(axis=0)
    return {
        "hidden": float(share),
        "threshold": float(values[hidden[-1]]) if len(hidden) else float("nan"),
        "lost": lost.tolist(),
    }


def _auroc(logit: np.ndarray, preference: np.ndarray) -> float:
    """Return the Mann-Whitney statistic from mean ranks, so that ties count half."""
    positive = int(preference.sum())
    pairs = positive * (len(logit) - positive)
    if pairs == 0 or np.isnan(logit).any():
        return float("nan")
    _, place, count = np.unique(logit, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[preference == 1].sum() - positive * (positive + 1) / 2) / pairs)


def _calibration_error(probability: np.ndarray, preference: np.ndarray) -> float:
    """Sum (rows in the bin / N) * |mean predicted - observed rate| over bins; Naeini et al., AAAI 2015."""
    if np.isnan(probability).any():
        return float("nan")
    place = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(place, probability - preference)
    return float(np.abs(gap).sum() / len(probability))


def _pair_accuracy(logit: np.ndarray, preference: np.ndarray, pair: np.ndarray) -> float:
    """Return the share of pairs in which the preferred response has the higher logit, NaN without such pairs."""
    right, _ = ordered_pairs(logit, preference, pair)
    return float(right.mean()) if len(right) else float("nan")
