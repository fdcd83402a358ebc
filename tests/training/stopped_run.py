"""A training in a process of its own, slowed down so that a signal finds it within a step."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from irm_fast.cli import commands
from irm_fast.training.trainer import ImplicitTrainer


def main() -> None:
    """Run a command of irm-fast; from step 3 on a file says so, and steps take their time."""
    begun, *arguments = sys.argv[1:]
    step = ImplicitTrainer.training_step

    def slow(self: ImplicitTrainer, *args: object, **kwargs: object) -> object:
        if self.state.global_step >= 3:
            Path(begun).touch()
            time.sleep(0.2)
        return step(self, *args, **kwargs)  # type: ignore[arg-type]

    ImplicitTrainer.training_step = slow  # type: ignore[method-assign,assignment]
    sys.argv = ["irm-fast", *arguments]
    commands.main()


if __name__ == "__main__":
    main()
