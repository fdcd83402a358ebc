"""The implicit loss of the rows of a fit, on the device of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.declared import followers
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.standardised import Rows
from irm_fast.losses.implicit import implicit_rm_loss
from irm_fast.losses.linear import linear_implicit_rm_loss
from irm_fast.losses.operator import Reduction

ALL = slice(None)


@dataclass(frozen=True)
class Objective:
    """The implicit loss of N rows with K signals, on the device of the embeddings.

    Attributes:
        feedback: Feedback (int8) of shape (N, K): 1 acted, 0 silent, -1 not recorded.
        preference: Explicit preferences (int8) of shape (N,): 1, 0, or -1 unknown; None if there are none.
        weight: Row weights (float32) of shape (N,).
        polarity: +1 or -1 for each signal.
        misclick_rate: A rate in [0, 1) for each signal.
        after: For each signal the number of the signal that it follows, -1 if it follows none.
    """

    feedback: Tensor
    preference: Tensor | None
    weight: Tensor
    polarity: tuple[int, ...]
    misclick_rate: tuple[float, ...]
    after: tuple[int, ...] = ()

    @cached_property
    def followed(self) -> Tensor:
        """1 where a signal follows one that acted in the row, else 0 (float32), of shape (N, K)."""
        if not followers(self.after):  # zeros that take no memory
            return torch.zeros(1, device=self.feedback.device).expand(self.feedback.shape)
        found = torch.zeros_like(self.feedback, dtype=torch.float32)
        for follower, first in followers(self.after):
            found[:, follower] = (self.feedback[:, first] == 1).float()
        return found

    @cached_property
    def plain(self) -> bool:
        """Whether all weights and polarities are 1 and all misclick rates 0, so that the loss can use its defaults."""
        alike = bool((self.weight == 1).all())
        return alike and set(self.polarity) == {1} and not any(self.misclick_rate)

    @classmethod
    def of(cls, seen: Observed, device: torch.device) -> Objective:
        """Put observations on a device.

        Args:
            seen: The feedback and the other observations of the N rows.
            device: The device of the embeddings.
        """

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        preference = None if seen.preference is None else tensor(seen.preference)
        return cls(
            tensor(seen.feedback), preference, tensor(seen.weight), seen.polarity, seen.misclick_rate, seen.after
        )

    def without_labels(self) -> Objective:
        """Return the loss of the same rows as if no explicit preference were known."""
        return replace(self, preference=None)

    def loss(self, reward: Tensor, propensity: Tensor, rows: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Return `implicit_rm_loss` of n of the rows.

        Args:
            reward: Reward logits of shape (n,).
            propensity: Propensity logits of shape (n, K).
            rows: The numbers (int64) of the rows, of shape (n,).
            reduction: "mean", "sum" or "none".

        Returns:
            The loss, of shape (), or (n,) for "none".
        """
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

    def share_of_mean(self, reward: Tensor, propensity: Tensor, rows: Tensor, number: int) -> Tensor:
        """Return what n rows add to the mean loss of so many rows.

        Args:
            reward: Reward logits of shape (n,).
            propensity: Propensity logits of shape (n, K).
            rows: The numbers (int64) of the n rows.
            number: The number of all rows of the mean.
        """
        if len(rows) == number:
            return self.loss(reward, propensity, rows)
        return self.loss(reward, propensity, rows, "sum") / number

    def linear_loss(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        propensity: Tensor,
        counted: Tensor,
        rows: Rows = ALL,
        number: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss of a linear reward over some of the rows, in one pass over the embeddings.

        Args:
            x: Embeddings of shape (N, D), or those of a block, of shape (n, D).
            weight: Weights of the reward, of shape (D,).
            bias: Bias of the reward, of shape ().
            propensity: Propensity logits of shape (N, K).
            counted: 1 for the rows to count and 0 for the others (float32), of shape (N,).
            rows: The rows of the block, whose part of the mean is returned.
            number: The sum of `counted`, of shape (); None to take it.
        """
        return linear_implicit_rm_loss(
            x,
            weight,
            self.feedback[rows],
            reward_bias=bias,
            propensity_logits=propensity[rows],
            preference=None if self.preference is None else self.preference[rows],
            weight=self.weight[rows] * counted[rows],
            polarity=self.polarity,
            misclick_rate=self.misclick_rate,
            normalizer=counted.sum() if number is None else number,
        )


def log_likelihood(reward: Tensor, propensity: Tensor, seen: Observed) -> float:
    """Return the mean log-likelihood of rows in nats, weighted: minus their implicit loss in the marginal form.

    Args:
        reward: Reward logits of shape (N,).
        propensity: Propensity logits of shape (N, K), 0 where they are known.
        seen: The feedback and the other observations of the N rows.
    """
    objective, known = Objective.of(seen, reward.device), torch.from_numpy(seen.known_logits()).to(reward.device)
    rows = torch.nonzero(objective.weight)[:, 0]  # others may contradict themselves, and have no likelihood
    losses = objective.loss(reward[rows], (propensity + known)[rows], rows, "none")
    return -float(losses.double().sum()) / float(seen.weight.sum(dtype=np.float64))
