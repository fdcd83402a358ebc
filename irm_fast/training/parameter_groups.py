"""Which parameters the optimiser decays, and which have a learning rate of their own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from irm_fast.models.reward_model import ImplicitRewardModel


def groups_of(
    core: ImplicitRewardModel, decayed: Collection[str], weight_decay: float, head_learning_rate: float
) -> list[dict[str, Any]]:
    """The groups of the parameters that are trained, as an optimiser takes them: those of scalars have no decay.

    Args:
        core: The model.
        decayed: Names of the parameters that decay; scalars among them do not.
        weight_decay: Their weight decay.
        head_learning_rate: The learning rate of the few scalar parameters of the heads.
    """
    parameters = {name: p for name, p in core.named_parameters() if p.requires_grad}
    scalars = core.scalar_parameters()
    matrices = set(decayed) - scalars
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": parameters.keys() - matrices - scalars, "weight_decay": 0.0},
        {"params": scalars, "weight_decay": 0.0, "lr": head_learning_rate},
    ]
    for group in groups:
        names = group["params"]
        group["params"] = [parameter for name, parameter in parameters.items() if name in names]
    # A group without parameters would lose its settings in a sharded checkpoint.
    return [group for group in groups if group["params"]]
