"""How far a training is, on the standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from irm_fast.data.telling import quiet, tell

EVERY = 60.0  # seconds between two lines where there is no terminal
_BAR = "{desc} |{bar}| {n_fmt}/{total_fmt} steps{postfix}, {remaining} left"


class TrainingProgress(TrainerCallback):
    """Shows the epoch, the step, the loss, tokens a second and the time left; each evaluation leaves a line.

    It takes the place of the bars and dictionaries of transformers.

    Args:
        name: What is trained, at the beginning of the bar and of the lines.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: tqdm | None = None
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            done, total = state.global_step, state.max_steps
            self.bar = tqdm(
                desc=self.name,
                total=total,
                initial=done,
                disable=quiet() or None,  # unless it is a terminal
                file=sys.stderr,
                bar_format=_BAR,
                leave=False,  # its last line stays, by `on_evaluate`
            )
            self.start = self.last = time.monotonic()
            self.first = done
            if done:
                tell(f"{self.name}: goes on after step {done} of {total}")
            self._show(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is None:
            return
        self._show(state)
        self.bar.update(state.global_step - self.bar.n)
        if self.bar.disable and time.monotonic() - self.last > EVERY:
            tell(self._line(state))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        entry = state.log_history[-1] if state.log_history else {}
        if "loss" in entry:
            self.shown["loss"] = f"loss {entry['loss']:.4g}"
        if "tokens_per_second" in entry:
            self.shown["speed"] = f"{entry['tokens_per_second']:,.0f} tokens/s"

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str("evaluating held-out rows", refresh=False)
            self.bar.update(0)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        metrics = given.get("metrics", {})
        if self.bar is not None and "eval_nll" in metrics:
            self.shown["held out"] = f"held-out nll {metrics['eval_nll']:.4f}"
            tell(self._line(state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _show(self, state: TrainerState) -> None:
        """Say what the bar shows when it is drawn next."""
        assert self.bar is not None
        self.bar.set_description_str(f"{self.name}, epoch {_epoch(state)}", refresh=False)
        self.bar.set_postfix_str(", ".join(self.shown.values()), refresh=False)

    def _line(self, state: TrainerState) -> str:
        """Where the training stands, as a line of text."""
        self.last = time.monotonic()
        done, total = state.global_step, state.max_steps
        left = (self.last - self.start) / max(1, done - self.first) * (total - done)
        time_left = f"{in_time(left)} left" if done < total else f"{in_time(self.last - self.start)} in all"
        parts = (f"epoch {_epoch(state)}", f"step {done} of {total}", *self.shown.values(), time_left)
        return f"{self.name}: {', '.join(parts)}"


def _epoch(state: TrainerState) -> str:
    """The epoch that a training is in, and their number."""
    return f"{state.epoch or 0:.1f} of {state.num_train_epochs}"


def in_time(seconds: float) -> str:
    """A time in words, of two units at most: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"
