"""The numerical watch: a step whose loss or gradient is not finite changes nothing, and is named.

Whether a step is finite is decided on the device, and masks the update there: the optimiser is told `found_inf`, as
loss scaling tells it. The host reads the flag one step late, from pinned memory, while the device has the next step to
work on: neither waits for the other. Processes need no exchange of their own. The norm of the gradient is that of all
of them, and a loss that is not finite makes its gradient so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from irm_fast.common.warning import warn_caller
from irm_fast.data.log import Log
from irm_fast.data.pairs import Pairs
from irm_fast.data.problems import row_named
from irm_fast.evaluation.scoring import heldout_step
from irm_fast.models.finite import largest_of_each, refuse_not_finite
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.config import TrainConfig
from irm_fast.training.distributed import local, whole

SHOWN = 10  # ids in a message
SKIPPED = "skipped_step"  # the entry of the loop's log by which a resumed run still knows of a step that was left out


class _Step(NamedTuple):
    """A step whose flag is on its way to the host.

    Attributes:
        number: Its number.
        batches: Its micro-batches.
        sums: The sums of the hidden states of their rows, (N,) each.
        not_finite: The flag (), on the host: 1 if the loss or the gradient is not finite.
        copied: The event of its arrival there, or None on a CPU.
    """

    number: int
    batches: Sequence[Mapping[str, Any]]
    sums: Sequence[Tensor]
    not_finite: Tensor
    copied: Any


class NumericalWatch(TrainerCallback):
    """Leaves out steps that are not finite, and ends the run or counts them, as the settings say.

    Args:
        core: The model that is trained.
        config: The settings; `on_nonfinite` and `max_skipped_steps` decide.
        accelerator: That of the trainer.
        name: Gives the id of a training row by its number in the column `row`; None: rows have numbers alone.
        log: Writes an entry to the loop's log.
    """

    def __init__(
        self,
        core: ImplicitRewardModel,
        config: TrainConfig,
        accelerator: Accelerator,
        name: Callable[[int], str] | None,
        log: Callable[[dict[str, float]], None],
    ) -> None:
        self.core, self.config, self.accelerator, self.name, self.log = core, config, accelerator, name, log
        self.batches: Sequence[Mapping[str, Any]] = ()
        self.sums: list[Tensor] = []
        self.steps: deque[_Step] = deque()
        self.optimizer: Any = None
        self.state: TrainerState | None = None
        core.witness = self.see

    # Within a step: nothing here waits for the device
    def begin(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Keep the micro-batches of the step that begins, until its flag is read."""
        self.batches, self.sums = batches, []

    def see(self, hidden: Tensor) -> None:
        """Keep of the hidden states (N, H) of a micro-batch what tells rows whose own are not finite."""
        self.sums.append(hidden.sum(1))

    def guard(self, loss: Tensor) -> Tensor:
        """The same loss; one that is not finite gets a gradient of NaN, which no sum over processes hides."""
        found = loss.detach()
        if loss.requires_grad:
            loss.register_hook(lambda gradient: gradient + (found - found))  # 0, or NaN
        return loss

    def mask(self, norm: Tensor, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Make the optimiser leave weights and moments as they are, if the gradient is not finite.

        Args:
            norm: The norm of the gradient of all processes, ().
            optimizer: The optimiser. One that does not take `found_inf`, as fused AdamW does, is kept from the step by
                taking its gradients away, for which the host has to wait.
            step: The number of the step.
        """
        self.optimizer = getattr(optimizer, "optimizer", optimizer)  # within accelerate's
        not_finite = (~whole(norm).isfinite()).float()
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf, self.optimizer.grad_scale = not_finite, None
        elif not_finite:
            self.optimizer.zero_grad(set_to_none=True)
        flag, copied = not_finite, None
        if flag.device.type == "cuda":
            flag, copied = torch.empty((), pin_memory=True), torch.cuda.Event()
            flag.copy_(not_finite, non_blocking=True)
            copied.record()
        self.steps.append(_Step(step, self.batches, self.sums, flag, copied))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.state = state

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.state = state
        while len(self.steps) > 1:
            self._read()

    # Where the loop waits anyhow
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.settle()

    def settle(self) -> None:
        """Read the flags of all steps that are done: before an evaluation, a checkpoint, and the end.

        Raises:
            RuntimeError: A step was not finite, and the settings do not leave it out.
        """
        while self.steps:
            self._read()

    def check_weights(self) -> None:
        """Check that all weights are finite, before they are saved. Every process has to call this.

        Raises:
            RuntimeError: Some are not.
        """
        refuse_not_finite(self._weights_not_finite(), f"weights after step {self._done}")

    @property
    def skipped(self) -> int:
        """The number of steps that were left out, also before the run was resumed."""
        history = [] if self.state is None else self.state.log_history
        return sum(SKIPPED in entry for entry in history)

    @property
    def _done(self) -> int:
        return 0 if self.state is None else self.state.global_step

    def _read(self) -> None:
        """Read the flag of the oldest step."""
        step = self.steps.popleft()
        if step.copied is not None:
            step.copied.synchronize()
        if step.not_finite:
            self._judge(step)

    def _judge(self, step: _Step) -> None:
        """End the run, or count a step that was left out."""
        where = f"step {step.number}: the loss or the gradient is not finite; {self._rows_of(step)}"
        weights = self._weights_not_finite()
        if self.config.on_nonfinite == "skip" and not weights:
            self.log({SKIPPED: step.number})
            if self.skipped <= self.config.max_skipped_steps:
                warn_caller(f"{where}. The step is left out, the {self.skipped}. of {self.config.max_skipped_steps}")
                return
            where = f"{self.skipped} steps were left out, more than max_skipped_steps; {where}"
        if weights:
            where += f". {len(weights)} weights are not finite either, as {weights[0]}: the steps before were too large"
        raise RuntimeError(
            f"training diverged at {where}. That step changed nothing. Look at these rows; lower learning_rate "
            f"({self.config.peak_learning_rate:g}) or head_learning_rate ({self.config.head_learning_rate:g}) and "
            "start anew with --overwrite; or go on from the last checkpoint without such steps: --resume "
            "--on-nonfinite skip"
        )

    def _rows_of(self, step: _Step) -> str:
        """The rows of a step in words: those whose own states or loss are not finite, as far as that is known.

        The states are those of the step; the losses are computed again, with the weights as they are now.
        """
        rows, losses, culprits = [], [], []
        for batch, sums in zip(step.batches, step.sums, strict=True):
            loss, reward, _ = heldout_step(self.core.eval(), self.core, batch)
            own = batch["row"] >= 0  # without fillers
            rows += batch["row"][own].tolist()
            losses += loss[own].tolist()
            culprits += batch["row"][own & ~(sums + loss + reward).isfinite()].tolist()
        rows, losses, culprits = (gather_object(part) for part in (rows, losses, culprits))
        if not rows:
            return "it had no rows"
        if culprits and len(culprits) < len(rows):
            return f"of its {len(rows)} rows these are not by themselves: {self._ids(culprits)}"
        if culprits:
            return f"nor is any of its {len(rows)} rows by itself: {self._ids(rows)}"
        worst = int(np.argmax(np.abs(losses)))
        largest = f"the largest loss is {losses[worst]:.3g}, of {self._ids([rows[worst]])}"
        return f"each of its {len(rows)} rows is by itself, {largest}; its rows: {self._ids(rows)}"

    def _ids(self, rows: Sequence[int]) -> str:
        return ids_in_words(rows, self.name)

    def _weights_not_finite(self) -> list[str]:
        """Names of weights that are trained and not finite, in any process."""
        named = [(name, local(p.detach())) for name, p in self.core.named_parameters() if p.requires_grad]
        finite = largest_of_each(weight for _, weight in named).isfinite()
        found = self.accelerator.reduce((~finite).float().to(self.accelerator.device), reduction="sum")
        return [name for (name, _), bad in zip(named, found.tolist(), strict=True) if bad]


def ids_in_words(rows: Sequence[int] | np.ndarray, name: Callable[[int], str] | None) -> str:
    """The ids of rows, some of them if they are many.

    Args:
        rows: The numbers of the rows.
        name: The id of the row of a number, by `row_names`; None: rows have numbers alone.
    """
    some = sorted(rows)[:SHOWN]
    shown = ", ".join(f"row {row}" if name is None else row_named(name(row), row).removeprefix("row ") for row in some)
    return shown + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")


def row_names(log: Log, pairs: Pairs | None) -> Callable[[int], str]:
    """A function that gives the id of a row by its number: of a log, or of a side of pairs, which stand after it.

    Args:
        log: The log.
        pairs: The pairs, or None.
    """

    def name(row: int) -> str:
        if row < len(log):
            return log.ids[row]
        assert pairs is not None
        pair, side = divmod(row - len(log), 2)
        return f"{pairs.ids[pair]}, {('chosen', 'rejected')[side]}"

    return name
