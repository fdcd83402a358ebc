"""What methods read of a log: its inputs and actions, what is estimated from these, and for the bounds the truth.

Each class lists what a loss that is given it may read; nothing else is in reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Inputs:
    """The inputs of the heads for n rows.

    Attributes:
        x: (n, D) float32, the standardised embeddings.
        z: (n, F) float32, the standardised visible features of the text.
        item: (n,) int64, the cluster of the embedding, from 0 to below `items`.
        items: The number of clusters.
    """

    x: Tensor
    z: Tensor
    item: Tensor
    items: int

    @cached_property
    def both(self) -> Tensor:
        """(n, D + F) the embeddings, and the visible features."""
        return torch.cat([self.x, self.z], 1)

    def take(self, rows: Tensor) -> Inputs:
        """The inputs of the rows with these numbers."""
        x, z, item = (value.index_select(0, rows) for value in (self.x, self.z, self.item))
        return Inputs(x, z, item, self.items)


@dataclass(frozen=True)
class Actions:
    """The actions on n rows: all that most methods read.

    Attributes:
        feedback: (n, K) int8, 1 where a signal acted and 0 where it was silent. For methods that know one signal, a
            single column says whether any signal acted.
        acted: (n,) int8, whether any signal acted.
        action_rate: The share of the rows of the whole log in which any signal acted.
        level: (K,) float32 propensity logits to start from, at which half of the responses please.
        group: (n,) int64 numbers; rows of one group answer one prompt.
    """

    feedback: Tensor
    acted: Tensor
    action_rate: float
    level: Tensor
    group: Tensor

    def take(self, rows: Tensor) -> Self:
        """The same for the rows with these numbers; numbers of the whole log stay."""
        feedback, acted, group = (x.index_select(0, rows) for x in (self.feedback, self.acted, self.group))
        return replace(self, feedback=feedback, acted=acted, group=group)


@dataclass(frozen=True)
class ActionsAndEstimates(Actions):
    """The actions, and the nuisances that some losses need: see `irm_fast.nuisances`, which estimates them.

    Attributes:
        popularity: (n,) float32 propensities, from how often rows of the same item act.
        imputed: (n,) float32 imputed preferences, from the naive method and the propensities.
        class_prior: The share of preferred rows.
    """

    popularity: Tensor
    imputed: Tensor
    class_prior: float

    def take(self, rows: Tensor) -> Self:
        """The same for the rows with these numbers; numbers of the whole log stay."""
        popularity, imputed = (value.index_select(0, rows) for value in (self.popularity, self.imputed))
        return replace(super().take(rows), popularity=popularity, imputed=imputed)


@dataclass(frozen=True)
class ActionsAndTruth(Actions):
    """The actions, and the truth: what only the bounds read.

    Attributes:
        known: (n, K) float32, logits of the true propensities.
        preference: (n,) float32, 1 where the response is preferred and 0 elsewhere.
    """

    known: Tensor
    preference: Tensor

    def take(self, rows: Tensor) -> Self:
        """The same for the rows with these numbers; numbers of the whole log stay."""
        known, preference = (value.index_select(0, rows) for value in (self.known, self.preference))
        return replace(super().take(rows), known=known, preference=preference)
