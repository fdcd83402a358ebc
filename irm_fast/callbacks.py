"""What happens beside the training steps: the stratification model, the metrics file, and a check of packing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from irm_fast.config import TrainConfig
from irm_fast.evaluation import logit_inputs
from irm_fast.model import ImplicitRewardModel
from irm_fast.packing import PackSampler
from irm_fast.run_folder import read_metrics, write_metrics


class IsolationCheck(TrainerCallback):
    """Sees, before the first step, that no row of a pack can look into another.

    Some combinations of attention, model and version attend across the whole pack without a word. So the first of two
    packed rows is changed: the reward of the second must stay.

    batch: of `batches.Collator`, two packed rows.  precision: a function that gives the context of a training pass.
    """

    def __init__(self, batch: Mapping[str, Any], precision: Callable[[], Any] = nullcontext) -> None:
        self.batch, self.precision = batch, precision

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"].eval()
        changed = self.batch["input_ids"].clone()
        first = changed[:, : int(self.batch["cu_seq_lens_q"][1])]
        first.copy_(first.flip(1))
        rewards = []
        for batch in (self.batch, {**self.batch, "input_ids": changed}):
            with torch.no_grad(), self.precision():
                reward, _ = model(**send_to_device(logit_inputs(batch), args.device))
            rewards.append(reward.double().cpu())
        own, neighbour = (rewards[1] - rewards[0]).abs().tolist()
        rounding = 0.01 * rewards[0][1].abs()  # of bfloat16, where the neighbour may be computed in another order
        if neighbour > 0.05 * own + rounding:
            raise RuntimeError(
                "rows of a pack can see each other: something in this model mixes them; use --attn sdpa, which pads"
            )


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
            others = [line for line in read_metrics(self.path) if line["propensity"] != self.design]
            own = [{"propensity": self.design, **entry} for entry in state.log_history]
            write_metrics(self.path, [*others, *own], append=False)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            write_metrics(self.path, [{"propensity": self.design, **state.log_history[-1]}], append=True)
