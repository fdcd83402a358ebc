"""When a training saves beside its evaluations: every so many steps or minutes, and when a signal asks it to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from irm_fast.data.telling import tell
from irm_fast.data.writing.interruption import SIGNALS, handled
from irm_fast.data.writing.lock import check_held
from irm_fast.models.processes import is_first, patient_group
from irm_fast.training.config import TrainConfig

_SHARE = 0.05  # of the time that goes by at most to saves that the clock asks for
_ECHO = 5.0  # seconds in which SIGTERM may come again by another way: from a scheduler, and from torchrun
_SAVE = 1  # what is wanted; a stop is wanted by the number of its signal, which is larger


class Saves:
    """Tells after each step whether a checkpoint is wanted, and whether the run is to stop after it.

    Several processes agree on it without waiting for a device, nor for each other: what each wants goes round while
    the next step is computed, and counts after that one.

    Args:
        config: The settings; `save_steps` and `save_minutes` count.
        processes: The number of processes.
    """

    def __init__(self, config: TrainConfig, processes: int) -> None:
        self.steps, self.seconds, self.processes = config.save_steps, 60 * config.save_minutes, processes
        self.last = time.monotonic()
        self.asked, self._asked_at = 0, 0.0  # the signal, and when it came
        self._told: tuple[Any, torch.Tensor] | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A context in which a first SIGINT or SIGTERM asks to stop after a checkpoint, and a second stops at once.

        Raises:
            KeyboardInterrupt: A signal came when no step was left.
        """
        with handled(self._ask, *SIGNALS):
            yield
        if self.asked:  # after the last step
            raise SIGNALS[self.asked]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        check_held()
        if self.asked == number == signal.SIGTERM and time.monotonic() - self._asked_at < _ECHO:
            return
        if self.asked:
            raise SIGNALS[number]
        self.asked, self._asked_at = number, time.monotonic()
        if is_first():
            tell(f"{signal.Signals(number).name}: a checkpoint is saved after this step; once more stops at once")

    def wanted(self, step: int) -> int:
        """What is wanted after a step: 0, a checkpoint (1), or a stop after one, by the number of its signal.

        Args:
            step: The number of the step; every process calls this after every one.
        """
        check_held()
        own = self.asked or self._due(step)
        if self.processes == 1:
            return own
        told, self._told = self._told, self._tell(own)
        if told is None:
            return 0
        told[0].wait()
        return int(told[1])

    def saved(self, seconds: float) -> None:
        """Count from now on, after a checkpoint was saved.

        Args:
            seconds: How long it took, which puts off those that the clock asks for: they take a twentieth at most.
        """
        self.last = time.monotonic()
        if self.seconds:
            self.seconds = max(self.seconds, seconds / _SHARE)

    def _due(self, step: int) -> int:
        by_step = self.steps is not None and step % self.steps == 0
        by_time = 0 < self.seconds <= time.monotonic() - self.last
        return _SAVE if by_step or (by_time and is_first()) else 0

    def _tell(self, own: int) -> tuple[Any, torch.Tensor]:
        """Begin to tell the other processes what this one wants: the largest number counts."""
        number = torch.tensor(own)
        return dist.all_reduce(number, dist.ReduceOp.MAX, patient_group(dist.group.WORLD), async_op=True), number
