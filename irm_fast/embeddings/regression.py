"""Logistic regressions of the actions of signals, each by itself or with slopes that they share in part.

A slope has a normal prior. Slopes that signals share in part are a common one plus one of each signal's own, which
divide the prior variance: `sharing` of it is common. The slopes of K signals then have the prior correlations
R = (1 - sharing) I + sharing 1 1^T, and L U for independent slopes U, where L L^T = R.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from irm_fast.embeddings.optimize import fit_map
from irm_fast.embeddings.passed_block import PassedRows
from irm_fast.embeddings.passed_regression import PassedLoss, entries_and_residuals

BESIDE_SD = 3.0  # prior deviation of the factors of what is beside the features


class Line(NamedTuple):
    """A logit that is linear in blocks of features and in what is beside them.

    Attributes:
        slopes: The slopes of each block; none for a constant.
        factors: The factors of what is beside the features; none for a constant.
        bias: The intercept.
    """

    slopes: Sequence[np.ndarray] = ()
    factors: Sequence[float] = ()
    bias: float = 0.0


class RegressionRows(NamedTuple):
    """The n rows of one signal that a regression is fitted to or judged by.

    Attributes:
        blocks: Blocks of features (float32), each of shape (n, P); the first one may be passed over.
        beside: Columns of shape (n,) beside the features: the part of the logits that comes from the context, and
            whether the signal before a follower acted.
        acted: Whether the signal acted (bool), of shape (n,).
        weight: Row weights of shape (n,).
        chance: The probability of an action in units of the propensity, of shape (n,); None means 1.
    """

    blocks: list[np.ndarray | PassedRows]
    beside: list[np.ndarray]
    acted: np.ndarray
    weight: np.ndarray
    chance: np.ndarray | None

    def columns(self, sd: float) -> np.ndarray:
        """Return what is held of the features, in units in which the prior deviation of a slope is `sd`, (n, P)."""
        columns = [block / np.sqrt(block.shape[1]) for block in self.blocks if isinstance(block, np.ndarray)]
        columns += [each[:, None] * np.float32(BESIDE_SD / sd) for each in self.beside]
        return np.hstack(columns) if columns else np.empty((len(self.acted), 0), np.float32)

    def line(self, weights: np.ndarray, bias: float, sd: float) -> Line:
        """Return the line of weights (P,) of the columns."""
        ends = np.cumsum([block.shape[1] for block in self.blocks])
        *slopes, factors = np.split(weights, ends)
        return Line([slope / np.sqrt(len(slope)) for slope in slopes], (factors * BESIDE_SD / sd).tolist(), bias)

    def loss(self, line: Line) -> float:
        """Return the weighted sum of the log losses of a line."""
        logit = np.full(len(self.acted), line.bias, np.float32)
        for each, factor in zip(self.beside, line.factors, strict=False):
            logit += np.float32(factor) * each
        for block, slope in zip(self.blocks, line.slopes, strict=False):
            logit += block @ slope
        if self.chance is None:
            return float((self.weight * np.logaddexp(0, np.where(self.acted, -logit, logit))).sum())
        parts = (torch.as_tensor(part, dtype=torch.float64) for part in (logit, self.acted, self.chance))
        return float((self.weight * _entries(*parts).numpy()).sum())


def constant_line(rows: RegressionRows) -> Line:
    """Return the logit of the weighted action rate, with half an action and half a silence added."""
    weight = rows.weight
    ones = (weight * rows.acted).sum() + 0.5
    total = weight.sum() + 1 if rows.chance is None else max((weight * rows.chance).sum() + 1, 1.02 * ones)
    return Line(bias=float(np.log(ones / (total - ones))))


def fit_lines(rows: Sequence[RegressionRows], sd: float, sharing: float) -> list[Line]:
    """Fit a logistic regression of each signal. With a chance c, an action has the probability c times the propensity.

    Args:
        rows: For each of K signals its rows, with the same features, some of them with an action and some without.
        sd: The prior standard deviation of the logit of a block of features.
        sharing: The part of the prior variance of the slopes that the signals have in common.

    Returns:
        The K lines.
    """
    if len(rows) > 1 or any(isinstance(block, PassedRows) for one in rows for block in one.blocks):
        return _together(rows, sd, sharing)
    return [one.line(*(_logistic if one.chance is None else _scaled_logistic)(one, sd), sd) for one in rows]


def _logistic(rows: RegressionRows, sd: float) -> tuple[np.ndarray, float]:
    """Return weights and intercept of one signal."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=sd**2, max_iter=200).fit(rows.columns(sd), rows.acted, rows.weight)
    return model.coef_[0], float(model.intercept_[0])


def _scaled_logistic(rows: RegressionRows, sd: float) -> tuple[np.ndarray, float]:
    """Return weights and intercept of the logit of m, where an action has the probability chance * m."""
    parts = (rows.columns(sd), rows.acted, rows.chance, rows.weight)
    columns, acted, c, w = (torch.as_tensor(part, dtype=torch.float32) for part in parts)
    weights, bias = torch.zeros(columns.shape[1]), torch.logit((acted.mean() / c.mean()).clamp(0.01, 0.95))

    def loss() -> Tensor:
        entries = _entries(columns @ weights + bias, acted, c)
        return ((w * entries).sum() + (weights**2).sum() / (2 * sd**2)) / len(acted)

    fit_map([weights, bias], loss)
    return weights.numpy(), float(bias)


def _entries(logit: Tensor, acted: Tensor, chance: Tensor) -> Tensor:
    """Return the losses (n,) of actions that have the probability chance * sigmoid(logit)."""
    silent = torch.log(torch.sigmoid(-logit) + (1 - chance) * torch.sigmoid(logit))
    return -torch.where(acted > 0, torch.log(chance) + logsigmoid(logit), silent.clamp(min=-80))


def _together(rows: Sequence[RegressionRows], sd: float, sharing: float) -> list[Line]:
    """Return the lines of several signals, fitted at once by L-BFGS over independent slopes, the intercepts last."""
    from scipy.optimize import minimize

    losses, width, count = _losses(rows, sd), sum(block.shape[1] for block in rows[0].blocks), len(rows)
    width += len(rows[0].beside)
    each = np.array([one.weight.sum() for one in rows])
    total = sum(each)
    scale = np.ones(count) if sharing else total / each  # apart, no signal is less exact for being rarer
    root = np.linalg.cholesky((1 - sharing) * np.eye(count) + sharing)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        own, biases = values[:-count].reshape(count, -1), values[-count:]
        parts, slopes, gradient = losses(root @ own, biases)
        value = (own**2 * scale[:, None]).sum() / (2 * sd**2)
        for part in parts * scale:
            value += part
        by_own = (root.T @ slopes + own / sd**2) * scale[:, None]
        return value / total, np.concatenate([by_own.ravel(), gradient * scale]) / total

    start = np.zeros(count * (width + 1))
    start[-count:] = [constant_line(one).bias for one in rows]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "gtol": 1e-4, "maxls": 50}).x
    weights = (root @ found[:-count].reshape(count, -1)).astype(np.float32)
    return [rows[k].line(weights[k], float(found[-count + k]), sd) for k in range(count)]


def _losses(rows: Sequence[RegressionRows], sd: float) -> Callable:
    """Return a function as `PassedLoss` is one, of the columns of K signals, by passes or of columns in memory."""
    columns = [one.columns(sd) for one in rows]
    passed = [block for one in rows for block in one.blocks if isinstance(block, PassedRows)]
    if passed:
        parts = ([getattr(one, name) for one in rows] for name in ("acted", "weight", "chance"))
        return PassedLoss(passed, columns, *parts)

    def in_memory(weights: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value, slopes, gradient = np.empty(len(rows)), np.empty(weights.shape), np.empty(len(rows))
        for k, (one, x, slope) in enumerate(zip(rows, columns, weights.astype(np.float32), strict=True)):
            entries, residual = entries_and_residuals(x @ slope + biases[k], one.acted, one.chance)
            value[k] = one.weight @ entries
            residual *= one.weight
            slopes[k], gradient[k] = residual.astype(np.float32) @ x, residual.sum()
        return value, slopes, gradient

    return in_memory
