"""A training run in which the hidden states of a step become NaN; see `forked`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace

import torch

from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train
from irm_fast.training.trainer import ImplicitTrainer
from tests.training.recorded_run import shard_on_cpus


def poison(set_attribute: Callable, step: int, row: int | None, value: float = math.nan, steps: int = 1) -> None:
    """Multiply hidden states by a value while steps are trained.

    Args:
        set_attribute: As `setattr`.
        step: The first step.
        row: The number of the row whose states are multiplied; None: all rows.
        value: The value.
        steps: The number of steps.
    """
    compute_loss, pool = ImplicitTrainer.compute_loss, ImplicitRewardModel.pool
    factor: list[torch.Tensor] = []

    def computed(self, model, inputs, *args, **kwargs):
        if step <= self.state.global_step + 1 < step + steps:
            poisoned = torch.ones_like(inputs["row"]) if row is None else inputs["row"] == row
            factor.append(torch.where(poisoned.bool(), value, 1.0)[:, None])
        try:
            return compute_loss(self, model, inputs, *args, **kwargs)
        finally:
            factor.clear()

    def pooled(self, *args, **kwargs):
        hidden = pool(self, *args, **kwargs)
        return hidden * factor[0] if factor else hidden

    set_attribute(ImplicitTrainer, "compute_loss", computed)
    set_attribute(ImplicitRewardModel, "pool", pooled)


def main(config: str, on_nonfinite: str) -> None:
    """Train, with NaN in the third step of the last process."""
    torch.set_num_threads(1)
    shard_on_cpus()
    if os.environ["RANK"] == "1":
        poison(setattr, 3, None)
    train(replace(TrainConfig.load(config), on_nonfinite=on_nonfinite))
