"""What a run trains, built from its settings: the model with new heads, and the loop around it."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException
from transformers import TrainerCallback, TrainingArguments, set_seed

from irm_fast.common.warning import warn_caller
from irm_fast.data.log import Log
from irm_fast.data.signals import RewardSpec
from irm_fast.evaluation.metrics_file import METRICS
from irm_fast.models.adapters import Lora
from irm_fast.models.batches import TokenizedRows
from irm_fast.models.computation import computing
from irm_fast.models.heads import FeaturePropensity
from irm_fast.models.liger import liger_kernels, liger_obstacle
from irm_fast.models.packed import packed_attention
from irm_fast.models.processes import joined
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.template import date_of
from irm_fast.models.tokens import first_line
from irm_fast.training.arguments import training_arguments
from irm_fast.training.callbacks import MetricsFile, Patience
from irm_fast.training.config import TrainConfig
from irm_fast.training.distributed import restored_environment, try_packing_once, whole_state
from irm_fast.training.prepare import Prepared
from irm_fast.training.progress import TrainingProgress
from irm_fast.training.propensities import with_propensities_of_half
from irm_fast.training.run_folder import CHECKPOINTS
from irm_fast.training.trainer import ImplicitTrainer
from irm_fast.training.watch import row_names


class Computed(NamedTuple):
    """How a run computes, under the names of the settings, which may say "auto".

    Attributes:
        attn: The attention.
        compile: Whether layers are compiled.
        liger: Whether Liger's kernels are taken.
    """

    attn: str
    compile: bool
    liger: bool


class Loop(NamedTuple):
    """A training loop that is ready to begin.

    Attributes:
        trainer: The loop, with its model and its rows.
        truncated: The number of training rows that were truncated.
        computed: How the model computes.
    """

    trainer: ImplicitTrainer
    truncated: int
    computed: Computed


@contextmanager
def training_loop(prepared: Prepared, spec: RewardSpec, config: TrainConfig, folder: Path) -> Iterator[Loop]:
    """A context in which the model of a propensity design is loaded, computes as the settings say, and can be trained.

    Args:
        prepared: The log.
        spec: What the model is to explain, with the propensity design.
        config: The settings.
        folder: The folder for checkpoints.

    Raises:
        ValueError: The model cannot be loaded or computed as the settings say, or as `ImplicitTrainer`.
        RuntimeError: As `ImplicitTrainer`, or layers cannot be compiled.
    """
    args = training_arguments(config, folder, evaluate=prepared.heldout is not None)
    set_seed(config.seed)
    whole, date = not config.sharded or joined().is_main_process, prepared.fingerprint.get("date")
    model = new_model(prepared.log, config, spec, weights=whole, date=date)
    if config.sharded:
        try_packing_once(model)
    with restored_environment(), computing_as_set(model, config, args.device) as computed:
        if args.device.type == "cuda" and not model.packed:
            remedy = "; --precision bfloat16 might let them be packed" if config.precision != "bfloat16" else ""
            warn_caller(f"attention {computed.attn}: rows are padded, which is slower{remedy}")
        yield Loop(*_trainer(prepared, config, model, args), computed)


@contextmanager
def trial_loop(prepared: Prepared, config: TrainConfig) -> Iterator[Loop]:
    """A context with the loop of a run's first model, to be tried out: nothing is written to the output folder.

    Args:
        prepared: The log. Propensities of one half stand in the place of those that are yet to be fitted.
        config: The settings.

    Raises:
        ValueError: As `training_loop`.
        RuntimeError: As `training_loop`.
    """
    if prepared.specs[0].estimator == "two-step":
        prepared = with_propensities_of_half(prepared)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / CHECKPOINTS
        folder.mkdir()
        trial = replace(config, output=scratch, report_to="none", progress=False, resume=False, patience=0)
        with training_loop(prepared, prepared.specs[0], trial, folder) as loop:
            yield loop


def check_loop(prepared: Prepared, config: TrainConfig) -> None:
    """Check that a run can be trained: what refuses that should do so before the propensities are fitted.

    Args:
        prepared: The log.
        config: The settings.

    Raises:
        ValueError: As `training_loop`.
        RuntimeError: As `training_loop`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when the training begins
        with trial_loop(prepared, config):
            pass
    gc.collect()  # the loop holds itself, and the model's memory


@contextmanager
def computing_as_set(model: ImplicitRewardModel, config: TrainConfig, device: torch.device) -> Iterator[Computed]:
    """A context in which a model computes as the settings say, and by default as is fastest on the device.

    It gives what was taken for settings that say auto.

    Raises:
        ValueError: The attention or Liger's kernels are wanted and not available.
        RuntimeError: Layers cannot be compiled.
    """
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    compiled = (device.type == "cuda" and not config.liger) if config.compile is None else config.compile
    obstacle = liger_obstacle(model.classifier, device)
    if config.liger and obstacle:
        raise ValueError(f"liger: not available: {obstacle}; expected auto or false")
    liger = obstacle is None and not compiled if config.liger is None else config.liger
    own = None if config.sharded else dtype  # FSDP2 casts by itself
    try:
        with (
            # A last layer that differs would be compiled once more, and kinds of layers soon are too many.
            packed_attention(model, config.attn, device, dtype, every_token=compiled) as attention,
            liger_kernels(model.classifier) if liger else nullcontext(),
            computing(model, own, recompute=config.gradient_checkpointing, compiled=compiled),
        ):
            yield Computed(attention, compiled, liger)
    except TorchDynamoException as error:
        raise RuntimeError(f"compile: torch.compile failed; use --no-compile: {first_line(error)}") from error


def new_model(
    log: Log, config: TrainConfig, spec: RewardSpec, *, weights: bool = True, date: str | None = None
) -> ImplicitRewardModel:
    """A language model, perhaps without its weights, with new heads at the rates and the features of the log."""
    frozen = config.lora_rank is not None and config.precision == "bfloat16"  # else the weights are masters
    dtype = torch.bfloat16 if frozen else torch.float32
    model = ImplicitRewardModel.from_backbone(
        config.model, spec, dtype, four_bits=config.load_in_4bit, weights=weights, date=date
    )
    if config.lora_rank:
        model.add_adapters(Lora(config.lora_rank, config.lora_alpha, config.targets), config.model)
    recorded, acted = (log.feedback >= 0).sum(axis=0), (log.feedback == 1).sum(axis=0)
    if log.signals:
        model.start_at(acted / np.maximum(recorded, 1))
    if isinstance(model.propensity_design, FeaturePropensity):
        model.propensity_design.standardise(log.features)  # type: ignore[arg-type]
    return model


def _trainer(
    prepared: Prepared, config: TrainConfig, model: ImplicitRewardModel, args: TrainingArguments
) -> tuple[ImplicitTrainer, int]:
    """The training loop on the tokens of both parts, and the number of training rows that were truncated."""

    tokens = prepared.tokens
    assert tokens is not None  # of a language model
    size = len(prepared.log)
    rows = TokenizedRows.from_log(prepared.log, tokens.log[:size])
    if prepared.pairs is not None:
        rows = rows.with_sides(tokens.log[size:], prepared.pairs.margin)
    callbacks: list[TrainerCallback] = [MetricsFile(Path(config.output) / METRICS, model.spec.design)]
    evaluation = None
    if prepared.heldout is not None and tokens.heldout is not None:
        size = len(prepared.heldout)
        evaluation = TokenizedRows.from_log(prepared.heldout, tokens.heldout[:size])
        if prepared.heldout_pairs is not None:
            evaluation = evaluation.with_sides(tokens.heldout[size:])
        if config.patience:
            callbacks.append(Patience(config.patience))
    if config.progress:
        callbacks.append(TrainingProgress(f"design {model.spec.design}"))
    held = None if prepared.heldout is None else row_names(prepared.heldout, prepared.heldout_pairs)
    names = (row_names(prepared.log, prepared.pairs), held)
    trainer = ImplicitTrainer(model, config, args, rows, evaluation, callbacks, names)
    return trainer, tokens.truncated


def unwrapped_model(trainer: ImplicitTrainer, log: Log, config: TrainConfig) -> ImplicitRewardModel:
    """The trained model on the CPU, in evaluation mode, without what the loop put around it."""
    model = trainer.core
    if trainer.is_fsdp_enabled:
        state = whole_state(model, keep=trainer.is_world_process_zero())
        if not state:
            return model  # its own part: no room for a whole one on every process
        date = date_of(model.tokenizer.get_chat_template())
        model = new_model(log, config, model.spec, weights=model.adapted, date=date)  # of adapters, it has no others
        model.load_state_dict(state, assign=True)
    model.cpu().merge_adapters(keep=config.lora_keep_adapter)
    return model.eval()
