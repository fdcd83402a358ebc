"""The implicit loss of the rows of a fit, held on the device that computes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.observed import Observed
from irm_fast.losses.implicit import implicit_rm_loss
from irm_fast.losses.linear import linear_implicit_rm_loss
from irm_fast.losses.operator import Reduction


@dataclass(frozen=True)
class Objective:
    """The implicit loss of N rows, on the device of the embeddings.

    Attributes:
        feedback: (N, K) int8.
        preference: (N,) int8, or None.
        weight: (N,) float32.
        polarity: +1 or -1 for each signal.
        misclick_rate: A rate for each signal.
    """

    feedback: Tensor
    preference: Tensor | None
    weight: Tensor
    polarity: tuple[int, ...]
    misclick_rate: tuple[float, ...]

    @cached_property
    def plain(self) -> bool:
        """Whether every row counts alike and all signals are what the loss takes for granted: fewer checks."""
        alike = bool((self.weight == 1).all())
        return alike and set(self.polarity) == {1} and not any(self.misclick_rate)

    @classmethod
    def of(cls, seen: Observed, device: torch.device) -> Objective:
        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        preference = None if seen.preference is None else tensor(seen.preference)
        return cls(tensor(seen.feedback), preference, tensor(seen.weight), seen.polarity, seen.misclick_rate)

    def loss(self, reward: Tensor, propensity: Tensor, rows: Tensor, reduction: Reduction = "mean") -> Tensor:
        """`implicit_rm_loss` of the logits (n,) and (n, K) of some of the rows."""
        return implicit_rm_loss(
            reward,
            propensity,
            self.feedback.index_select(0, rows),  # copies whole rows: several times faster than feedback[rows]
            preference=None if self.preference is None else self.preference.index_select(0, rows),
            weight=None if self.plain else self.weight.index_select(0, rows),
            polarity=None if self.plain else self.polarity,
            misclick_rate=None if self.plain else self.misclick_rate,
            reduction=reduction,
        )

    def linear_loss(self, x: Tensor, weight: Tensor, bias: Tensor, propensity: Tensor, counted: Tensor) -> Tensor:
        """Mean loss of a linear reward over the rows of which `counted` (N,) is 1, in one pass over x (N, D)."""
        return linear_implicit_rm_loss(
            x,
            weight,
            self.feedback,
            reward_bias=bias,
            propensity_logits=propensity,
            preference=self.preference,
            weight=self.weight * counted,
            polarity=self.polarity,
            misclick_rate=self.misclick_rate,
            normalizer=counted.sum(),
        )
