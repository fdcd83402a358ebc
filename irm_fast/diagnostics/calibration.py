"""Predicted against observed action rates: how well they agree, and predictions refitted so that they do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

RIDGE = 1.0  # on standardised columns: with few actions the predictions stay nearly as they are
GROUPS = 10
BLOCK = 2**18  # rows whose columns are in memory at once


def refit(acted: np.ndarray, rate: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Refit predicted rates so that they agree with the actions on average, and along features and their squares.

    This is logistic regression with the predicted logit as offset and a small ridge penalty, by Newton's method. The
    errors that remain are unrelated to the predictions themselves, and less likely to pass for dependence.

    Args:
        acted: Actions of shape (N,), 0 and 1.
        rate: Predicted rates of shape (N,), in (0, 1).
        features: Numbers of shape (N, F), such as the logits of all predictions.

    Returns:
        Rates of shape (N,).
    """
    offset, scale = logit(rate), _scale(features)
    blocks = [slice(first, first + BLOCK) for first in range(0, max(1, len(rate)), BLOCK)]
    penalty = np.full(1 + 2 * features.shape[1], RIDGE)
    penalty[0] = 1e-3
    weight = np.zeros(len(penalty))
    for _ in range(25):
        gradient, curvature = np.zeros(len(penalty)), np.zeros((len(penalty), len(penalty)))
        for block in blocks:  # columns of all rows would take several times the memory of the log
            columns = _columns(features[block], scale)
            p = special.expit(offset[block] + columns @ weight)
            gradient += columns.T @ (acted[block] - p)
            curvature += (columns * (p * (1 - p))[:, None]).T @ columns
        step = np.linalg.solve(curvature + np.diag(penalty), gradient - penalty * weight)
        weight = weight + step * min(
            1.0, 2.0 / max(np.abs(step).max(), 1e-12)
        )  # far steps overshoot where actions are rare
        if np.abs(step).max() < 1e-6:
            break
    moved = [special.expit(offset[block] + _columns(features[block], scale) @ weight) for block in blocks]
    return np.concatenate(moved)


def refit_columns(features: np.ndarray) -> np.ndarray:
    """Return the columns, of shape (N, 1 + 2 F), along which `refit` moves rates: 1, features, their squares."""
    return _columns(features, _scale(features))


def _scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and the standard deviations of features."""
    return features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)


def _columns(features: np.ndarray, scale: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the columns of `refit_columns` for some rows, by the `_scale` of all."""
    scaled = np.clip((features - scale[0]) / scale[1], -4, 4)
    return np.column_stack([np.ones(len(features)), scaled, scaled**2 - 1])


class Calibration(NamedTuple):
    """Predicted and observed rates in G groups of equal size, ordered by the predicted rate.

    Attributes:
        predicted: The mean predicted rate of each group, of shape (G,).
        observed: The share of rows that acted, of shape (G,).
        rows: The number of rows, of shape (G,).
        statistic: The sum over groups of (observed - expected actions)^2 / variance, about chi-square with G degrees of
            freedom if the predictions are right (Hosmer and Lemeshow 1980, held-out rows).
    """

    predicted: np.ndarray
    observed: np.ndarray
    rows: np.ndarray
    statistic: float


def calibrate(acted: np.ndarray, rate: np.ndarray) -> Calibration:
    """Compare rates (N,) with actions (N,) of 0 and 1, by decile; in fewer groups where actions are few."""
    groups = int(np.clip(acted.sum() // 5, 1, GROUPS))
    parts = np.array_split(np.argsort(rate, kind="stable"), groups)
    rows = np.array([len(part) for part in parts])
    predicted = np.array([rate[part].mean() for part in parts])
    observed = np.array([acted[part].mean() for part in parts])
    variance = np.array([(rate[part] * (1 - rate[part])).sum() for part in parts])
    statistic = float((((observed - predicted) * rows) ** 2 / np.maximum(variance, 1e-12)).sum())
    return Calibration(predicted, observed, rows, statistic)


def logit(rate: np.ndarray) -> np.ndarray:
    """Return the logits of rates; 0 and 1 count as 1e-7 and 1 - 1e-7."""
    logits: np.ndarray = special.logit(np.clip(rate, 1e-7, 1 - 1e-7))
    return logits
