"""The shares of the four groups over a training: pleased or not, active or passive, as the model has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from irm_fast.losses.implicit import stratify
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.publish.evidence import GROUPS

_TAKEN = 8  # steps an entry of the log, at most


class GroupMasses:
    """Takes the mean posterior of the four groups in some steps before each entry of the log, for this entry.

    It reads the hidden states that the step has computed anyhow, and nothing waits for the device before the loss is
    logged. Of several processes each reports of its own rows, of which the first one's are logged.

    Args:
        core: The model that is trained; its witness is called as before.
        every: The number of steps from one entry of the log to the next.
    """

    def __init__(self, core: ImplicitRewardModel, every: int) -> None:
        self.core, self.every = core, -(-every // _TAKEN)
        self.signals = core.spec.signals
        self.earlier, core.witness = core.witness, self.see
        self.hidden: Tensor | None = None
        self.sums: Tensor | None = None

    def see(self, hidden: Tensor) -> None:
        """Keep the hidden states (N, H) of a micro-batch until `take` reads them."""
        if self.earlier is not None:
            self.earlier(hidden)
        self.hidden = hidden

    @torch.no_grad()
    def take(self, batch: Mapping[str, Any], step: int) -> None:
        """Add the groups of a micro-batch, if its step is one of those that count.

        Args:
            batch: The micro-batch, whose hidden states were just seen.
            step: The number of the step, from 1.
        """
        hidden, self.hidden = self.hidden, None
        if step % self.every or not self.signals or hidden is None:
            return
        logits = self.core.heads.logits(hidden, batch.get("propensity"), batch.get("features"))
        options = self.core.spec.loss_options
        groups = stratify(*logits, batch["feedback"], preference=batch["preference"], **options)  # type: ignore[misc]
        counts = (batch["feedback"] >= 0) & (batch["weight"] > 0)[:, None] & groups.isfinite().all(dim=-1)
        found = torch.where(counts[..., None], groups, 0).sum(0), counts.sum(0)[:, None]
        sums = torch.cat(found, dim=1)  # (K, 5)
        self.sums = sums if self.sums is None else self.sums + sums

    def report(self) -> dict[str, float]:
        """The shares since the last report, by signal and group, such as `copy_PA`; it waits for the device."""
        if self.sums is None:
            return {}
        table, self.sums = self.sums.double().tolist(), None
        return {
            f"{name}_{group}": value / row[-1]
            for name, row in zip(self.signals, table, strict=True)
            if row[-1]
            for group, value in zip(GROUPS, row, strict=False)
        }
