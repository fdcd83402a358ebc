"""Callbacks of the training loop: packing is checked, the sampler's epoch, patience, stratification, the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from irm_fast.evaluation.metrics_file import read_metrics, write_metrics
from irm_fast.models.packed import check_isolation
from irm_fast.models.packing import PackSampler
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.config import TrainConfig


class IsolationCheck(TrainerCallback):
    """Runs `packed.check_isolation` before the first step, when the model is in its final place and precision.

    Args:
        core: The model that is trained, within `packed_attention`.
    """

    def __init__(self, core: ImplicitRewardModel) -> None:
        self.core = core

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        check_isolation(self.core, kwargs["model"].eval())


class EpochOfPacks(TrainerCallback):
    """Tells the sampler its epoch, which transformers does not do in the epoch within which a run is resumed.

    Args:
        packs: The sampler of the training rows.
    """

    def __init__(self, packs: PackSampler) -> None:
        self.packs = packs

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.packs.set_epoch(int(state.epoch or 0))


class Patience(EarlyStoppingCallback):
    """Stops after some evaluations without a gain, of which a resumed run remembers those before its checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step:
            states: Any = state.stateful_callbacks
            earlier = states[type(self).__name__]
            self.early_stopping_patience_counter = earlier["attributes"]["early_stopping_patience_counter"]
            control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


class StratificationModel(TrainerCallback):
    """Keeps the separate model whose posteriors the stratified form takes (arXiv:2603.23184, section 3).

    The kind `ema` follows the trained model after every optimiser step. The kind `frozen` is a copy taken as each epoch
    begins, which makes the training the classical EM algorithm with an epoch for each M step.

    Args:
        model: The model that is trained, before it is wrapped.
        config: The settings; `stratification` is "ema" or "frozen".
    """

    def __init__(self, model: ImplicitRewardModel, config: TrainConfig) -> None:
        self.kind = config.stratification
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.average.requires_grad_(False).eval()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.kind == "ema":
            self.average.update_parameters(kwargs["model"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        resumed_within = state.global_step % (state.max_steps // state.num_train_epochs)
        if self.kind == "frozen" and not resumed_within:
            self.average.module.load_state_dict(kwargs["model"].state_dict())


class MetricsFile(TrainerCallback):
    """Appends every entry of the loop's log to a file of JSON lines, with the propensity design that is trained.

    A resumed run first removes the lines that were written after its checkpoint.

    Args:
        path: The file.
        design: The propensity design.
    """

    def __init__(self, path: Path, design: str) -> None:
        self.path, self.design = path, design

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            others = [line for line in read_metrics(self.path) if line.get("propensity_design") != self.design]
            own = [{"propensity_design": self.design, **entry} for entry in state.log_history]
            write_metrics(self.path, [*others, *own], append=False)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            write_metrics(self.path, [{"propensity_design": self.design, **state.log_history[-1]}], append=True)
