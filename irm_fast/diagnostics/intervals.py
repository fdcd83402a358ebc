"""How far another sample of users or prompts would move the metrics of a ranking: a bootstrap over groups of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from irm_fast.diagnostics.metrics import ordered_pairs

RESAMPLES = 400


def ranking_intervals(
    logit: np.ndarray,
    preference: np.ndarray,
    groups: np.ndarray,
    pair: np.ndarray | None = None,
    *,
    level: float = 0.9,
) -> dict[str, float]:
    """Return intervals of the AUROC and of the pair accuracy: percentiles of 400 resamples of whole groups.

    Rows of one user or one prompt depend on each other, so that single rows may not be drawn (Field and Welsh, Journal
    of the Royal Statistical Society B 2007). With few groups, say under 20, the intervals are too narrow.

    Args:
        logit: Reward logits of shape (N,).
        preference: The preference of each row, 0 or 1, of shape (N,).
        groups: Group numbers from 0, of shape (N,).
        pair: As of `metrics.reward_metrics`; both rows of a pair belong to one group.
        level: The share of the resamples inside an interval, in (0, 1).

    Returns:
        auroc_low, auroc_high and, where there are pairs, pair_accuracy_low and pair_accuracy_high; NaN where the metric
        is, and where there is one group alone. The same rows give the same numbers.

    Examples:
        >>> rng = np.random.default_rng(1)
        >>> preference = rng.integers(0, 2, 2000)
        >>> found = ranking_intervals(preference + rng.normal(size=2000), preference, np.arange(2000))
        >>> found["auroc_low"] < 0.76 < found["auroc_high"]
        True
    """
    preference = np.asarray(preference, np.float64)
    found = _interval("auroc", _aurocs(np.asarray(logit, np.float64), preference, groups), level)
    if pair is not None and (pair >= 0).any():
        right, rows = ordered_pairs(np.asarray(logit, np.float64), preference, pair)
        found |= _interval("pair_accuracy", _accuracies(right, groups[rows[:, 0]], int(groups.max()) + 1), level)
    return found


def _interval(name: str, values: np.ndarray, level: float) -> dict[str, float]:
    """Return the two percentiles of resamples, NaN if there are none; resamples of one class are left out."""
    values = values[~np.isnan(values)]
    ends = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if len(values) else (np.nan, np.nan)
    return {f"{name}_{side}": float(end) for side, end in zip(("low", "high"), ends, strict=True)}


def resamples(count: int) -> Iterator[np.ndarray]:
    """Yield, for each resample, how often each of the groups is drawn (float64, shape (G,)); of one group nothing."""
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES if count > 1 else 0):
        yield np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)


def _aurocs(logit: np.ndarray, preference: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the AUROC of each resample, NaN where it has one class alone."""
    if not len(logit) or np.isnan(logit).any():
        return np.array([])
    order = np.argsort(logit)
    logit, preference, groups = logit[order], preference[order], groups[order]
    starts = np.flatnonzero(np.r_[True, logit[1:] != logit[:-1]])  # of rows with the same logit
    found = []
    for drawn in resamples(int(groups.max()) + 1):
        weight = drawn[groups]
        all_of, preferred = (np.add.reduceat(values, starts) for values in (weight, weight * preference))
        other = all_of - preferred
        below = np.cumsum(other) - other / 2
        possible = preferred.sum() * other.sum()
        found.append((preferred * below).sum() / possible if possible else np.nan)
    return np.array(found)


def _accuracies(right: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Return the pair accuracy of each resample, NaN where it has no pair.

    Args:
        right: 1, 0, or 0.5 for a tie, of P pairs.
        groups: The group of each pair, of shape (P,).
        count: The number of groups.
    """
    if np.isnan(right).any():
        return np.array([])
    good, pairs = np.bincount(groups, right, count), np.bincount(groups, minlength=count)
    drawn = [(weight @ good, weight @ pairs) for weight in resamples(count)]
    return np.array([part / whole if whole else np.nan for part, whole in drawn])
