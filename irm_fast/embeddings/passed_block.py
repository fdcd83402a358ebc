"""Embeddings that a logistic regression passes over instead of holding the rows that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.standardised import Standardised


@dataclass(frozen=True)
class PassedRows:
    """The embeddings of some rows, in units of their prior deviations.

    Attributes:
        x: The standardised embeddings of all rows.
        unit: The prior deviations, of shape (D,).
        numbers: The numbers (int64) of the rows, in increasing order, of shape (n,).
    """

    x: Standardised
    unit: Tensor
    numbers: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """The number n of rows and the width D."""
        return len(self.numbers), self.x.width

    def __matmul__(self, slope: np.ndarray) -> np.ndarray:
        """Return the products (float32) of the rows and slopes (D,), of shape (n,), from one pass."""
        weight = torch.from_numpy(slope).to(self.unit) * self.unit
        rows = torch.from_numpy(self.numbers).to(self.x.device)
        return self.x.map(lambda _, some: some @ weight, rows).cpu().numpy()


@dataclass(frozen=True)
class PassedBlock:
    """The embeddings of all rows, in units of their prior deviations; the attributes are those of `PassedRows`."""

    x: Standardised
    unit: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """The number N of rows and the width D."""
        return len(self.x), self.x.width

    def __getitem__(self, some: np.ndarray) -> PassedRows:
        """Return the rows that a mask (N,) selects."""
        return PassedRows(self.x, self.unit, np.flatnonzero(some))


Block: TypeAlias = "np.ndarray | PassedBlock"


def block_of(x: Standardised, unit: Tensor) -> Block:
    """Return embeddings in units of their prior deviations: an array where all are held in one block.

    Args:
        x: The standardised embeddings, of shape (N, D).
        unit: The prior deviations, of shape (D,).
    """
    if not x.blocks.is_one:
        return PassedBlock(x, unit)
    return x.map(lambda _, rows: rows * unit).cpu().numpy()
