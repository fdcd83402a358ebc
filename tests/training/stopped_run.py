"""A training in a process of its own, slowed down so that a signal finds it within a step."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from irm_fast.cli import commands
from irm_fast.training.trainer import ImplicitTrainer


def main(begun: str, said: str, *arguments: str) -> None:
    """Run a command of irm-fast, its standard error into a file; from step 3 on, told by another, steps are slow."""
    with open(said, "w") as file:
        os.dup2(file.fileno(), 2)
    step = ImplicitTrainer.training_step

    def slow(self: ImplicitTrainer, *args: object, **kwargs: object) -> object:
        if self.state.global_step >= 3:
            Path(begun).touch()
            time.sleep(0.2)
        return step(self, *args, **kwargs)  # type: ignore[arg-type]

    ImplicitTrainer.training_step = slow  # type: ignore[method-assign,assignment]
    sys.argv = ["irm-fast", *arguments]
    commands.main()
