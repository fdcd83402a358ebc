"""Helpers of the tests of training: logs as files, differences of models, interruptions."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from irm_fast.training.run import train_log
from irm_fast.training.trainer import ImplicitTrainer


def parameters(result) -> torch.Tensor:
    """All parameters of a trained model in one vector."""
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


def largest_difference(one, other) -> float:
    return float((parameters(one) - parameters(other)).abs().max())


def metrics_of(config) -> list[dict]:
    return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]


def write_log(log, path: Path) -> None:
    """Write a log as the JSON Lines that `read_log` reads."""
    with path.open("w") as file:
        for name, turns, given in zip(log.ids, log.messages, log.feedback.tolist(), strict=True):
            row = {"id": name, "messages": turns, "feedback": dict(zip(log.signals, given, strict=True))}
            file.write(json.dumps(row) + "\n")


def write_pairs(path: Path, prompts: Iterable[object], **fields) -> str:
    """Write pairs, a good and a bad response to each prompt, in which the good one is chosen; returns the path."""
    pairs = [
        {"prompt": f"question {prompt}", "chosen": "good " * (1 + i % 3), "rejected": "bad " * (1 + i % 4), **fields}
        for i, prompt in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(path)


def use_sgd(monkeypatch):
    """Plain gradient descent: unlike Adam it shows a gradient of the wrong size."""

    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer

    monkeypatch.setattr(ImplicitTrainer, "create_optimizer", create_optimizer)


class Interrupted(Exception):
    """Stands for a crash."""


def interrupt(monkeypatch, step: int, design: str | None = None):
    """Make training stop, as by a crash, when it is about to do this step."""
    training_step = ImplicitTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step and design in (None, self.core.spec.design):
            raise Interrupted
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(ImplicitTrainer, "training_step", interrupted)


def train_until(step: int, log, config, design: str | None = None, **more):
    """Train until a crash, which has to come when this step of this design, or of any, is about to be done."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, step, design)
        with pytest.raises(Interrupted):
            train_log(log, config, **more)
