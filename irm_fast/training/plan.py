"""What a run is going to do and to cost, as far as that can be known before its first step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from irm_fast.models.backbone import model_config
from irm_fast.training.build import Computed
from irm_fast.training.config import TrainConfig
from irm_fast.training.memory import MemoryEstimate, estimate_memory
from irm_fast.training.prepare import Prepared
from irm_fast.training.progress import in_time
from irm_fast.training.trainer import ImplicitTrainer

_STEPS, _SECONDS = 6, 20.0  # of a trial: so many steps, or as many as take so long, after the first one
_FORWARD = 1 / 3  # of the time of a training step
_LESS_MEMORY = (
    "expected a smaller --token-budget or --batch-size with more --gradient-accumulation, --gradient-checkpointing, "
    "--lora-rank, or --fsdp on several GPUs"
)
_UNTRIED = "; the pass that makes states for the propensities is not tried"


class Trial(NamedTuple):
    """Steps that were tried.

    Attributes:
        steps: The number of steps that were timed.
        seconds: The mean time of a step of the run; None if the steps did not fit into memory.
        peak: The most bytes that were held on the GPU, or 0 on a CPU.
    """

    steps: int
    seconds: float | None
    peak: int = 0


@dataclass(frozen=True)
class RunPlan:
    """The size of a run.

    Attributes:
        rows: The number of rows to train on.
        heldout: The number of rows held out.
        dropped: The number of rows that are left out as too long.
        pairs: The number of pairs by part, "training" and "held_out"; empty without pairs.
        signals: The names of the signals.
        designs: The propensity designs that are trained, each a model of its own.
        first: Whether propensities are fitted before that, to states of the untrained model.
        tokens: The number of tokens of an epoch, of pairs too.
        heldout_tokens: The number of tokens held out.
        longest: The number of tokens of the longest row.
        truncated: The number of training rows that lose their beginning.
        max_length: The number of tokens of a row at most.
        steps: The number of steps of an epoch.
        epochs: The number of epochs at most.
        evaluations: The number of evaluations of the held-out rows.
        processes: The number of processes.
        largest: The number of tokens of the largest forward pass, padding included.
        how: Attention, form of the rows, precision, device.
        memory: The memory that a device needs, estimated.
    """

    rows: int
    heldout: int
    dropped: int
    pairs: Mapping[str, int]
    signals: tuple[str, ...]
    designs: tuple[str, ...]
    first: bool
    tokens: int
    heldout_tokens: int
    longest: int
    truncated: int
    max_length: int
    steps: int
    epochs: int
    evaluations: int
    processes: int
    largest: int
    how: str
    memory: MemoryEstimate

    @property
    def trains(self) -> str:
        """What is trained, in words."""
        count = len(self.designs)
        if self.first:
            design = "chosen by that fit" if self.designs == ("auto",) else self.designs[0]
            return f"1 model; propensities first, fitted to states of the untrained model; propensity design {design}"
        if count == 1:
            return f"1 model, propensity design {self.designs[0]}"
        designs = ", ".join(self.designs)
        return f"{count} models, one for each propensity design ({designs}); the best on held-out rows stays"

    def seconds(self, trial: Trial) -> float | None:
        """The time of the whole run by a trial; None if that failed."""
        if trial.seconds is None:
            return None
        a_token = trial.seconds * self.steps / max(1, self.tokens)
        read = self.heldout_tokens * self.evaluations * len(self.designs)
        read += (self.tokens + self.heldout_tokens) * self.first
        return a_token * (self.tokens * self.epochs * len(self.designs) + read * _FORWARD)

    def in_short(self) -> str:
        """The plan as two lines of text, at the beginning of a run."""
        steps = f"{self.steps * self.epochs:,} steps in {_count(self.epochs, 'epoch')}"
        cut = f", {self.truncated:,} of them cut at {self.max_length}" if self.truncated else ""
        rows = f"{self.rows:,} rows ({self.tokens:,} tokens{cut}), {self.heldout:,} held out"
        return f"trains {self.trains}\n  {rows}; {steps}; {self.how}"

    def in_words(self, trial: Trial) -> str:
        """The plan line by line, with time and memory by a trial."""
        left_out = f"; {self.dropped:,} longer than {self.max_length} tokens are left out" if self.dropped else ""
        beside = "".join(f", {count:,} pairs {name.replace('_', ' ')}" for name, count in self.pairs.items())
        mean = self.tokens / max(1, self.rows + 2 * self.pairs.get("training", 0))
        cut = f"{self.truncated:,} rows lose their beginning at {self.max_length}" if self.truncated else "none is cut"
        each = self.tokens / max(1, self.steps)
        often = f"{_count(self.epochs, 'epoch')}; {_count(self.processes, 'process')}"
        measured = f"; measured {trial.peak / 1e9:.1f} GB" if trial.peak else ""
        lines = {
            "trains": self.trains,
            "rows": f"{self.rows:,} to train on, {self.heldout:,} held out{beside}{left_out}",
            "signals": ", ".join(self.signals) or "none, preferences alone",
            "tokens": f"{self.tokens:,} an epoch, {mean:.0f} a row, the longest {self.longest:,}; {cut}",
            "steps": f"{self.steps:,} an epoch of about {each:,.0f} tokens, {often}",
            "computes": self.how,
            "memory": self.memory.in_words() + measured + _UNTRIED * self.first,
            "time": self._time(trial),
        }
        return "\n".join(f"  {name:<9} {text}" for name, text in lines.items())

    def _time(self, trial: Trial) -> str:
        seconds = self.seconds(trial)
        if seconds is None:
            return f"unknown: a step did not fit into memory; {_LESS_MEMORY}"
        beside = ", without the fit of the propensities" if self.first else ""
        each = f"{trial.seconds:.2g} s a step, timed over {trial.steps} steps"
        return f"about {in_time(seconds)} for all epochs{beside}; {each}"


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}{'es' if what.endswith('s') else 's'}"


def plan_of(
    prepared: Prepared, config: TrainConfig, trainer: ImplicitTrainer, truncated: int, computed: Computed
) -> RunPlan:
    """The plan of a run.

    Args:
        prepared: The log.
        config: The settings.
        trainer: The loop of its first model, ready to train.
        truncated: The number of training rows that are truncated.
        computed: How the model computes.
    """
    packs, heldout = trainer.packs, trainer.eval_dataset
    packed = trainer.core.packed
    tokens, held = int(packs.lengths.sum()), 0 if heldout is None else int(heldout.lengths.sum())  # type: ignore[union-attr]
    largest = max(_slots(packs.lengths[pack], packed) for pack in packs if len(pack))
    steps, device = packs.steps, trainer.args.device
    evaluations = config.epochs if config.eval_steps is None else steps * config.epochs // config.eval_steps
    threads = f", {_count(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    form = "packed" if packed else "padded"
    return RunPlan(
        rows=len(prepared.log),
        heldout=0 if prepared.heldout is None else len(prepared.heldout),
        dropped=prepared.dropped,
        pairs=prepared.counts_of_pairs,
        signals=prepared.log.signals,
        designs=tuple(spec.design for spec in prepared.specs),
        first=prepared.specs[0].estimator == "two-step",
        tokens=tokens,
        heldout_tokens=held,
        longest=int(packs.lengths.max()),
        truncated=truncated,
        max_length=trainer.core.spec.max_length,
        steps=steps,
        epochs=config.epochs,
        evaluations=evaluations if heldout is not None else 0,
        processes=trainer.args.world_size,
        largest=largest,
        how=f"attention {computed.attn}, rows {form}, {config.precision}, on {device.type}{threads}",
        memory=estimate_memory(model_config(config.model), config, tokens=largest, processes=trainer.args.world_size),
    )


def model_too_large(prepared: Prepared, config: TrainConfig, processes: int) -> str:
    """What to say where a run does not fit into memory before its first step: the estimate, and what takes less.

    Args:
        prepared: The log.
        config: The settings.
        processes: The number of processes.
    """
    estimate = estimate_memory(model_config(config.model), config, processes=processes).in_words()
    untried = _UNTRIED * (prepared.specs[0].estimator == "two-step")
    return (
        f"the model did not fit into memory, before the first step; training takes {estimate}{untried}; {_LESS_MEMORY}"
    )


def _slots(lengths: np.ndarray, packed: bool) -> int:
    """The number of tokens, and of padding if any, of a pass over rows of these lengths."""
    return int(lengths.sum() if packed else len(lengths) * lengths.max(initial=0))


def try_steps(trainer: ImplicitTrainer) -> Trial:
    """Train for a few steps, and time them. The weights change; nothing is saved.

    Args:
        trainer: A loop that is ready to train, whose folder may be written to.
    """
    args = trainer.args
    args.max_steps, args.save_strategy, args.eval_strategy = _STEPS + 1, SaveStrategy.NO, IntervalStrategy.NO
    args.load_best_model_at_end = False
    timer = _Timer()
    trainer.add_callback(timer)
    try:
        trainer.train()
    except torch.OutOfMemoryError:
        return Trial(0, None)
    packs = [trainer.packs.lengths[pack].sum() for pack in trainer.packs]
    seconds = np.diff(timer.ends)
    share = len(packs) / trainer.packs.steps  # packs of a step
    tried = sum(packs[round(share) : round(share * (1 + len(seconds)))])  # tokens, without the first step
    of_a_step = sum(packs) / trainer.packs.steps
    a_step = seconds.sum() * of_a_step / tried if tried else seconds.mean()
    peak = torch.cuda.max_memory_allocated(args.device) if args.device.type == "cuda" else 0
    return Trial(len(seconds), float(a_step), peak)


class _Timer(TrainerCallback):
    """Notes when each step ends, and ends the training after some."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.ends.append(time.perf_counter())
        if len(self.ends) > 1 and self.ends[-1] - self.ends[0] > _SECONDS:
            control.should_training_stop = True
