"""Logistic regressions of several signals at once, by passes over embeddings that are not held in memory."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.passed_block import PassedRows
from irm_fast.embeddings.standardised import Rows


class PassedLoss:
    """The penalised losses of logistic regressions of K signals, and their gradients, from one pass.

    The columns are those of `RegressionRows.columns`: the D embeddings first, then S that are held.

    Args:
        embeddings: For each signal the embeddings of its rows, which are of the same matrix.
        held: For each signal the other columns of its rows, of shape (n, S).
        acted: For each signal whether it acted, of shape (n,).
        weight: For each signal the weights, of shape (n,).
        chance: For each signal the probabilities of an action in units of the propensity, of shape (n,); None means 1.
    """

    def __init__(
        self,
        embeddings: Sequence[PassedRows],
        held: Sequence[np.ndarray],
        acted: Sequence[np.ndarray],
        weight: Sequence[np.ndarray],
        chance: Sequence[np.ndarray | None],
    ) -> None:
        first = embeddings[0]
        self.x, self.unit = first.x, first.unit / first.x.width**0.5
        self.numbers = [one.numbers for one in embeddings]
        self.held, self.acted, self.weight, self.chance = held, acted, weight, chance
        counted = np.zeros(len(self.x), bool)
        for numbers in self.numbers:
            counted[numbers] = True
        self.rows = torch.from_numpy(np.flatnonzero(counted)).to(self.x.device)

    def __call__(self, weights: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the weighted sums of the losses (K,), and their gradients by weights (K, D + S) and biases (K,).

        Args:
            weights: The weights of the columns, of shape (K, D + S).
            biases: The intercepts, of shape (K,).
        """
        width = self.x.width
        slopes = torch.from_numpy(weights[:, :width].astype(np.float32)).to(self.unit) * self.unit

        def of_block(rows: Rows, x: Tensor) -> list[Tensor]:
            assert isinstance(rows, Tensor)
            numbers, logits = rows.cpu().numpy(), (x @ slopes.T).cpu().numpy()
            residuals = np.zeros_like(logits)
            values, gradient = np.zeros(len(biases)), np.zeros((len(biases), weights.shape[1] - width + 1))
            if len(numbers):
                for k, own in enumerate(self.numbers):
                    part = slice(*np.searchsorted(own, [numbers[0], numbers[-1] + 1]))
                    place = np.searchsorted(numbers, own[part])
                    logit = logits[place, k] + self.held[k][part] @ weights[k, width:] + biases[k]
                    values[k], residual = self._of_signal(k, part, logit)
                    residuals[place, k] = residual
                    gradient[k] = *(residual @ self.held[k][part]), residual.sum()
            by_slope = torch.from_numpy(residuals).to(x).T @ x
            return [torch.from_numpy(values), by_slope * self.unit, torch.from_numpy(gradient)]

        same = zlib.crc32(weights.tobytes() + biases.tobytes())
        value, by_slope, others = (part.numpy() for part in self.x.total(of_block, self.rows, same))
        return value, np.hstack([by_slope, others[:, :-1]]), others[:, -1]

    def _of_signal(self, k: int, part: slice, logit: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the weighted loss of some rows of a signal, and its derivatives by their logits."""
        chance = self.chance[k]
        entries, residual = entries_and_residuals(logit, self.acted[k][part], None if chance is None else chance[part])
        weight = self.weight[k][part]
        return float(weight @ entries), residual * weight


def entries_and_residuals(
    logit: np.ndarray, acted: np.ndarray, chance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses of actions, but for a constant, and their derivatives by the logits, both of shape (n,).

    Args:
        logit: The logits of the propensities, of shape (n,).
        acted: Whether the signal acted (bool), of shape (n,).
        chance: The probability of an action in units of the propensity, of shape (n,); None means 1.
    """
    from scipy.special import expit

    entries, residual = np.logaddexp(0, np.where(acted, -logit, logit)), expit(logit) - acted
    if chance is not None:
        with np.errstate(divide="ignore"):  # the logarithm of 0, where the side is proven
            spared = logit + np.log1p(-chance)
        entries -= np.where(acted, 0, np.logaddexp(0, spared))
        residual -= np.where(acted, 0, expit(spared))
    return entries, residual
