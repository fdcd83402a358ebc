"""A finished training run with all that a report can show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train_log

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> {{ 7 * 7 }} \u202e"


@pytest.fixture(scope="package")
def shown_log(make_log):
    """Rows with users, sessions, times, and responses that would run in a page that does not escape them."""
    log = make_log(160)
    messages = [list(turns) for turns in log.messages]
    for row in range(160):
        messages[row][1] = {"role": "assistant", "content": f"{messages[row][1]['content']} {row} {HOSTILE}"}
    users = [f"user-{i % 20}" for i in range(160)]
    return replace(log, messages=messages, user_ids=users, times=1.7e9 + 3600.0 * np.arange(160))


@pytest.fixture(scope="package")
def finished(shown_log, tiny_model, tmp_path_factory) -> Path:
    """The folder of a run that `train` has finished."""
    config = TrainConfig(
        model=tiny_model,
        output=str(tmp_path_factory.mktemp("run") / "reward_model"),
        epochs=2,
        batch_size=8,
        learning_rate=1e-3,
        progress=False,
        validation_fraction=0.4,
        propensity_design="constant",
    )
    train_log(shown_log, config)
    return Path(config.output)
