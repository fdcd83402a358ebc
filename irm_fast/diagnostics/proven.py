"""Proven rows, where something else proves the side of a signal, and the effect of a cause on a signal there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import beta

from irm_fast.diagnostics.calibration import logit, refit, refit_columns
from irm_fast.diagnostics.subject import ENOUGH, DiagnosedLog

SURE = 0.9  # probability of the side from which a row counts as proven
PROVEN_ROWS = 100  # of a signal; fewer decide nothing
CLUSTERS = 20  # users beyond the number of tested columns; fewer decide nothing


def proven_rows(log: DiagnosedLog, k: int) -> np.ndarray:
    """Return a mask of shape (N,) of the rows in which something beside signal k proves the side it speaks for.

    That is an action of another signal of that side, or a label, with a probability of the side above 0.9 given all
    that is recorded beside the signal. Where no misclick rate is declared, an action makes it 1.
    """
    count = len(log.feedback)
    odds = np.zeros(count) if log.own is None else np.nan_to_num(logit(log.own[:, k]))
    spoken = np.zeros(count, bool)
    side = 1 if log.polarity[k] > 0 else 0
    with np.errstate(invalid="ignore", divide="ignore"):
        for j in range(len(log.names)):
            if j == k:
                continue
            same, e, acted = log.polarity[j] * log.polarity[k], log.misclick[j], log.feedback[:, j] == 1
            odds = odds - np.where(acted, same * np.log(e), 0.0)
            if log.propensity is not None:
                m = log.propensity[:, j]
                odds = odds + np.where(log.feedback[:, j] == 0, same * np.log((1 - m) / (1 - e * m)), 0.0)
            spoken |= acted & (same > 0)
        odds = odds + np.where(log.preference == side, np.inf, np.where(log.preference == 1 - side, -np.inf, 0.0))
        found: np.ndarray = (spoken | (log.preference == side)) & (odds > np.log(SURE / (1 - SURE)))
    return found & (log.feedback[:, k] >= 0)


class Cause(NamedTuple):
    """Something beside the response that may move propensities.

    Attributes:
        bins: The bin of each row, integers of shape (N,), -1 where unknown.
        labels: What the rows of each bin are, to be read after "of the proven rows".
        value: A number for each row, of shape (N,), whose effect is tested; None: test the bins.
        beside: Bins of other causes that are accounted for first.
    """

    bins: np.ndarray
    labels: Sequence[str]
    value: np.ndarray | None = None
    beside: tuple[np.ndarray, ...] = ()


class Effect(NamedTuple):
    """The effect of a cause on one signal: p-value, relative variance, labels and numbers of the bins."""

    p_value: float
    size: float
    signal: str
    bins: list[dict[str, Any]]


def effect_of(log: DiagnosedLog, k: int, cause: Cause) -> Effect | None:
    """Test whether a cause predicts the actions of signal k on its proven rows; None if there are too few."""
    rows = proven_rows(log, k) & (cause.bins >= 0)
    if log.rates is not None:
        rows &= np.isfinite(log.rates[:, k])
    part = log.subset(rows)
    acted, bins = part.feedback[:, k], cause.bins[rows]
    silent = len(acted) - acted.sum()
    if len(acted) < PROVEN_ROWS or min(acted.sum(), silent) < ENOUGH or not np.ptp(bins):
        return None

    # The rates without the cause
    features = [_indicators(other[rows]) for other in cause.beside]
    start = np.full(len(acted), acted.mean())
    if part.own is not None and part.propensity is not None:
        features.append(logit(np.column_stack([part.own[:, :1], part.propensity])))
        start = part.propensity[:, k]
    columns = np.column_stack([np.empty((len(acted), 0)), *features])
    rate = refit(acted, start, columns)

    # The score of the cause, by user
    tested = _indicators(bins) if cause.value is None else cause.value[rows, None]
    p_value = _score_test(acted - rate, rate, refit_columns(columns), tested, part.clusters())
    if p_value is None:
        return None
    size, numbers = _size(acted, rate, bins, part.clusters())
    return Effect(p_value, size, log.names[k], [{"where": cause.labels[b], **entry} for b, entry in numbers])


def _score_test(
    errors: np.ndarray,
    rate: np.ndarray,
    nuisance: np.ndarray,
    tested: np.ndarray,
    clusters: np.ndarray,
) -> float | None:
    """Return the p-value of the score of tested columns, robust to dependence within clusters.

    The scores of the clusters are summed: with T columns and G clusters of normal sums, s' (sum s_g s_g')^-1 s / G
    follows a beta distribution with parameters T/2 and (G - T)/2 (Hotelling 1931, mean zero known).

    Args:
        errors: Actions less their rates, of shape (N,).
        rate: The rates, of shape (N,).
        nuisance: Columns along which the rates were fitted, of shape (N, F).
        tested: Columns of shape (N, T).
        clusters: Integers of shape (N,).

    Returns:
        The p-value, or None if there are too few clusters.
    """
    root = np.sqrt(rate * (1 - rate))[:, None]
    tested = tested - nuisance @ np.linalg.lstsq(root * nuisance, root * tested, rcond=None)[0]
    index = np.unique(clusters, return_inverse=True)[1]
    sums = np.stack([np.bincount(index, errors * column) for column in tested.T], axis=1)
    size, count = sums.shape
    count = int(np.linalg.matrix_rank(sums))
    if size < CLUSTERS + count or not count:
        return None
    total = sums.sum(axis=0)
    share = float(total @ np.linalg.pinv(sums.T @ sums) @ total / size)
    return float(beta.sf(min(share, 1.0), count / 2, (size - count) / 2))


def _size(
    acted: np.ndarray, rate: np.ndarray, bins: np.ndarray, clusters: np.ndarray
) -> tuple[float, list[tuple[int, dict[str, Any]]]]:
    """Return the variance between bins of observed over expected actions, less that of chance, and both by bin."""
    index = np.unique(clusters, return_inverse=True)[1]
    total, size, numbers = rate.sum(), 0.0, []
    for b in np.unique(bins):
        rows = bins == b
        seen, expected = float(acted[rows].sum()), float(rate[rows].sum())
        chance = float((np.bincount(index[rows], acted[rows] - rate[rows]) ** 2).sum())
        size += expected / total * ((seen / expected - 1) ** 2 - chance / expected**2)
        count = int(rows.sum())
        numbers.append((int(b), {"observed": seen / count, "expected": expected / count, "rows": count}))
    return size, numbers


def _indicators(bins: np.ndarray) -> np.ndarray:
    """Return a column of 0 and 1 for each bin but the first; -1 is one."""
    index = np.unique(bins, return_inverse=True)[1]
    return np.eye(int(index.max()) + 1)[index][:, 1:]
