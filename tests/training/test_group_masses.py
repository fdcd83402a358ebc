"""The four groups are logged while a model is trained, as the loss has them, and nothing of the training changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irm_fast.losses.group_masses import GROUPS
from irm_fast.losses.implicit import stratify
from irm_fast.training import trainer
from irm_fast.training.group_masses import GroupMasses
from irm_fast.training.run import train_log
from tests.training.training_cases import largest_difference, metrics_of

NAMES = [f"copy_{group}" for group in GROUPS]


class Nothing:
    """Stands for `GroupMasses` where nothing is to be taken."""

    def __init__(self, *given):
        self.given = given

    def take(self, *given): ...

    def report(self):
        return {}


def test_groups_are_those_of_the_rows_of_the_step(make_log, make_config, monkeypatch):
    """By `stratify` of the logits that the model gives these rows, without those of weight 0 and missing entries."""
    seen = []
    take = GroupMasses.take

    def taken(self, batch, step):
        hidden = self.hidden
        with torch.no_grad():
            logits = self.core.heads.logits(hidden, batch.get("propensity"), batch.get("features"))
        groups = stratify(*logits, batch["feedback"], polarity=(1, 1))[:, 0]
        seen.append(groups[batch["feedback"][:, 0] >= 0].mean(0).numpy())
        take(self, batch, step)

    monkeypatch.setattr(GroupMasses, "take", taken)
    log = make_log()
    log.feedback[::5, 0] = -1
    config = make_config(epochs=1, batch_size=6)
    train_log(log, config)
    entries = [line for line in metrics_of(config) if "loss" in line]
    assert len(entries) == len(seen) > 3
    for entry, groups in zip(entries, seen, strict=True):
        np.testing.assert_allclose([entry[name] for name in NAMES], groups, atol=1e-6)
        assert sum(entry[name] for name in NAMES) == pytest.approx(1)
    assert entries[0]["copy_PA"] != entries[0]["share_PA"]


def test_the_training_is_the_same_without(make_log, make_config, monkeypatch):
    log = make_log()
    with_groups = train_log(log, make_config("with"))
    monkeypatch.setattr(trainer, "GroupMasses", Nothing)
    config = make_config("without")
    assert largest_difference(train_log(log, config), with_groups) == 0
    assert not any("copy_PA" in line for line in metrics_of(config))


def test_micro_batches_count_by_their_rows(make_log, make_config):
    """The shares of a step are those of all its rows, over its micro-batches; pairs and labels alone have none."""
    log, whole = make_log(), []
    for name, size, passes in (("one", 12, 1), ("three", 4, 3)):
        config = make_config(name, epochs=1, batch_size=size, gradient_accumulation=passes)
        train_log(log, config)
        whole.append(next(line["copy_PA"] for line in metrics_of(config) if "loss" in line))
    assert whole[0] == pytest.approx(whole[1], rel=0.2)
    config = make_config("labels", epochs=1)
    train_log(make_log(signals=()), config)
    assert not any("_PA" in key for line in metrics_of(config) for key in line)
