"""The shares of the four groups over a training: pleased or not, active or passive, as the model has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from irm_fast.losses.group_masses import GROUPS, group_sums, shares
from irm_fast.models.reward_model import ImplicitRewardModel

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
        sums = group_sums(
            *logits, batch["feedback"], batch["weight"], self.core.spec.loss_options, preference=batch["preference"]
        )
        self.sums = sums if self.sums is None else self.sums + sums

    def report(self) -> dict[str, float]:
        """The shares since the last report, by signal and group, such as `copy_PA`; it waits for the device."""
        if self.sums is None:
            return {}
        found, self.sums = shares(self.signals, self.sums), None
        return {
            f"{name}_{group}": share
            for name, of_signal in found.items()
            for group, share in zip(GROUPS, of_signal, strict=True)
        }
