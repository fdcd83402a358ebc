"""What happens beside the training steps: the stratification model, the metrics file, and a check of packing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from irm_fast.models.packed import check_isolation
from irm_fast.models.packing import PackSampler
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.config import TrainConfig
from irm_fast.training.run_folder import read_metrics, write_metrics


class IsolationCheck(TrainerCallback):
    """`packed.check_isolation` before the first step: now the model is where, and as, it will be trained.

    precision: a function that gives the context of a training pass.
    """

    def __init__(self, core: ImplicitRewardModel, precision: Callable[[], Any] = nullcontext) -> None:
        self.core, self.precision = core, precision

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_isolation(self.core, kwargs["model"].eval(), self.precision)


class EpochOfPacks(TrainerCallback):
    """Tells the sampler its epoch: transformers does not reach it in the epoch within which a run is resumed."""

    def __init__(self, packs: PackSampler) -> None:
        self.packs = packs

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.packs.set_epoch(int(state.epoch or 0))


class StratificationModel(TrainerCallback):
    """The separate model whose posteriors the stratified form takes (arXiv:2603.23184, section 3).

    `ema` follows the trained model after every optimiser step; `frozen` is a copy taken as each epoch begins,
    which makes the training the classical EM algorithm with an epoch for each M step.
    """

    def __init__(self, model: ImplicitRewardModel, config: TrainConfig) -> None:
        self.kind = config.stratification
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.average.requires_grad_(False).eval()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.kind == "ema":
            self.average.update_parameters(kwargs["model"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        resumed_within = state.global_step % (state.max_steps // state.num_train_epochs)
        if self.kind == "frozen" and not resumed_within:
            self.average.module.load_state_dict(kwargs["model"].state_dict())


class MetricsFile(TrainerCallback):
    """Appends every log entry to a file of JSON lines, each with the propensity design that is trained.

    A resumed run first takes back what was written after its checkpoint.
    """

    def __init__(self, path: Path, design: str) -> None:
        self.path, self.design = path, design

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            others = [line for line in read_metrics(self.path) if line["propensity_design"] != self.design]
            own = [{"propensity_design": self.design, **entry} for entry in state.log_history]
            write_metrics(self.path, [*others, *own], append=False)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            write_metrics(self.path, [{"propensity_design": self.design, **state.log_history[-1]}], append=True)
