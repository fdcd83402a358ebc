"""The main job, as a recipe: a log of implicit feedback in, a reward model out."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, set_seed

from irm_fast.data.log import Log
from irm_fast.data.rows import Messages
from irm_fast.data.signals import RewardSpec
from irm_fast.diagnostics.metrics import paired_difference
from irm_fast.evaluation.log_diagnosis import diagnose_rows
from irm_fast.models.adapters import Lora
from irm_fast.models.backbone import first_line
from irm_fast.models.batches import TokenizedRows
from irm_fast.models.computation import computing
from irm_fast.models.heads import FeaturePropensity
from irm_fast.models.heldout import HeldOut
from irm_fast.models.liger import liger_kernels, liger_obstacle
from irm_fast.models.packed import packed_attention
from irm_fast.models.passes import default_device, resolve_precision
from irm_fast.models.processes import from_main_process, joined
from irm_fast.models.record import RECORD, read_record
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.tokens import tokenise
from irm_fast.training.arguments import training_arguments
from irm_fast.training.callbacks import MetricsFile
from irm_fast.training.config import EmbeddingTrainConfig, TrainConfig
from irm_fast.training.distributed import restored_environment, try_packing_once, whole_state
from irm_fast.training.plan import RunPlan, Trial, model_too_large, plan_of, try_steps
from irm_fast.training.prepare import Prepared, prepare_run, read_data
from irm_fast.training.progress import TrainingProgress, tell
from irm_fast.training.propensities import FirstPropensities, fit_propensities, is_fitted, with_propensities_of_half
from irm_fast.training.result import TrainResult
from irm_fast.training.run_folder import (
    CHECKPOINTS,
    METRICS,
    begin_run,
    check_plan,
    close_run,
    keep_plan,
    last_checkpoint,
    plain,
)
from irm_fast.training.throughput import typical
from irm_fast.training.trainer import ImplicitTrainer

_KEPT = ("truncated", "attention", "throughput", "trained")  # of the result of a design, for a run that is resumed


def train(config: TrainConfig | EmbeddingTrainConfig) -> TrainResult:
    """Train a reward model on the log at `config.data` and write it to `config.output`.

    In order: read the log; check it and the settings, and split off held-out rows; fit the propensities, where the log
    shows them, to states of the untrained model; train one model for each propensity design that comes into question
    (one, where propensities were fitted); choose the design by held-out likelihood; diagnose what the reward rests on;
    save the model and remove the checkpoints. What can be refused is refused before the first of these begins to write.

    With an `EmbeddingTrainConfig` the language model stays as it is, and a reward is fitted to its embeddings: see
    `training.on_embeddings`.

    Args:
        config: The settings: of training a language model, or of a reward on embeddings of a frozen one.

    Raises:
        ValueError: What is wrong with the log (`DataError`), the model, the settings or the output folder.
        RuntimeError: One process sees several GPUs, processes see different data, packed rows attend to each
            other, or the training diverged.

    Examples:
        >>> import irm_fast
        >>> config = irm_fast.TrainConfig(model="PATH_OR_HUB_ID", data="log.jsonl", output="reward_model")
        >>> result = irm_fast.train(config)  # doctest: +SKIP
    """
    if isinstance(config, EmbeddingTrainConfig):
        from irm_fast.training.on_embeddings import train_on_embeddings  # needs scikit-learn, which is slow to import

        return train_on_embeddings(config)
    return train_log(read_data(config), config)


def train_log(log: Log, config: TrainConfig, *, heldout: Log | None = None) -> TrainResult:
    """`train` on a log in memory; `config.data`, `absent` and `polarity` have no effect.

    The output folder gets the checkpoint of the best evaluation, `irm_fast.json`, `propensity.safetensors`,
    `metrics.jsonl`, `train.yaml` and `train_data.json`, by which a resumed run knows its log. A signal that never acts
    is left out with a warning.

    Args:
        log: The log to train on.
        config: The settings.
        heldout: The log to evaluate on, instead of a part split from `log`.

    Raises:
        TypeError: The settings are those of another program.
        ValueError: As `train`.
        RuntimeError: As `train`.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"config: got {type(config).__name__}; expected TrainConfig. A log in memory has no embeddings on disk: "
            "save it and call train(config), or fit irm_fast.EmbeddingRewardModel to arrays"
        )

    # Prepare: what can be refused is refused before the work
    config = _on_this_device(config)
    prepared = prepare_run(log, config, heldout)

    # Propensities first, where the log shows them
    rows, first = prepared, None
    if prepared.specs[0].estimator == "two-step":
        if not is_fitted(config):
            _rehearse(prepared, config)
        first = fit_propensities(prepared, config)
        rows = first.prepared

    # Fit each propensity design, from the same weights on the same rows
    fits: list[_Fit] = []
    for spec in rows.specs:
        fit = _finished(config, spec)
        if fit is None:
            fit = _fit(rows, spec, config, begins=not (first or fits))
        if spec is not rows.specs[-1]:
            _keep(fit, config)
        fits.append(fit)

    # Choose by held-out likelihood
    best = _choose(fits)
    designs = {fit.result.design: fit.result.metrics["nll"] for fit in fits if fit.result.metrics}

    # Diagnose what the reward rests on
    diagnosis = diagnose_rows(
        prepared.parts,
        best.spec,
        best.heldout,
        labels_ignorable=config.labels_ignorable,
        context=first.context if first else (),
    )
    result = replace(
        best.result, dropped=prepared.dropped, pairs=prepared.counts_of_pairs, designs=designs, diagnosis=diagnosis
    )

    # Save
    from_main_process(lambda: _save(result, first, config))
    return result


def dry_run(config: TrainConfig) -> tuple[RunPlan, Trial]:
    """Find out what `train` would do and what it would cost, by a few steps of training; nothing is written.

    Args:
        config: The settings of the run. All checks of `train` are made.

    Returns:
        The size of the run, and the steps that were tried.

    Raises:
        ValueError: As `train`.
        RuntimeError: As `train`, or the model does not fit into memory; then the text has the estimate.
    """
    config = _on_this_device(config)
    prepared = prepare_run(read_data(config), config)
    tried = prepared
    if prepared.specs[0].estimator == "two-step":
        tried = with_propensities_of_half(prepared)
    with TemporaryDirectory() as scratch:
        (Path(scratch) / CHECKPOINTS).mkdir()
        trial = replace(config, output=scratch, report_to="none", progress=False, resume=False, patience=0)
        try:
            with _ready(tried, tried.specs[0], trial, Path(scratch) / CHECKPOINTS) as ready:
                return plan_of(prepared, config, *ready), try_steps(ready.trainer)
        except torch.OutOfMemoryError as error:  # while it moves to the device
            raise RuntimeError(model_too_large(prepared, config, joined().num_processes)) from error


def _save(result: TrainResult, first: FirstPropensities | None, config: TrainConfig) -> None:
    """Write what a run has found to its output folder, and remove what it kept to be resumed."""
    stratification = config.stratification if config.objective == "stratified" else None
    objective = {"objective": config.objective, "stratification": stratification}
    if first:
        first.save(config.output)
    result.model.save(config.output, objective | result.record(config))
    close_run(config)


def _on_this_device(config: TrainConfig) -> TrainConfig:
    """The settings with the precision of this device in the place of "auto"."""
    return replace(config, precision=resolve_precision(config.precision, default_device()))


class _Fit(NamedTuple):
    """One trained propensity design.

    Attributes:
        result: What the run returns if it chooses this design, but for what is known of all designs.
        model: The model of the result.
        heldout: Predictions for the held-out rows, in the order of their log, or None without such rows.
    """

    result: TrainResult
    model: ImplicitRewardModel
    heldout: HeldOut | None

    @property
    def spec(self) -> RewardSpec:
        """What the model explains; its `max_length` is what the language model allows."""
        return self.model.spec


def _choose(fits: Sequence[_Fit]) -> _Fit:
    """The first design, unless a later one's held-out loss is lower by more than one standard error."""
    best = fits[0]
    for fit in fits[1:]:
        assert best.heldout is not None and fit.heldout is not None  # several designs are tried with a held-out part
        gain, error = paired_difference(best.heldout.loss, fit.heldout.loss, fit.heldout.weight)
        best = fit if gain > error else best
    return best


def _fit(prepared: Prepared, spec: RewardSpec, config: TrainConfig, *, begins: bool) -> _Fit:
    """Train one propensity design.

    Args:
        prepared: The log.
        spec: What the model is to explain, with the propensity design.
        config: The settings.
        begins: Whether the run begins with it, so that its folder is to be made.
    """
    folder = _folder(config, spec)
    with _ready(prepared, spec, config, folder) as (trainer, truncated, attention):
        # Loop
        plan = trainer.packs.plan
        if config.resume:
            check_plan(folder, plan)

        def begin() -> None:
            if config.progress and spec is prepared.specs[0]:
                tell(plan_of(prepared, config, trainer, truncated, attention).in_short())
            if begins:  # only now: a run that cannot start writes nothing
                begin_run(config, prepared.fingerprint)
            keep_plan(folder, plan)

        from_main_process(begin)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder) if config.resume else None)

        # Judgement
        has_heldout = prepared.heldout is not None
        metrics = _best_metrics(trainer) if has_heldout else {}
        heldout = trainer.heldout_predictions() if has_heldout else None
        parts = trainer.what_is_trained()
    speed = typical(trainer.state.log_history)
    trained = _plain_model(trainer, prepared.log, config)
    result = TrainResult(trained, spec.design, metrics, truncated, attention=attention, throughput=speed, trained=parts)
    return _Fit(result, trained, heldout)


class _Ready(NamedTuple):
    """A training loop that is ready to begin, the number of training rows that were truncated, and the attention."""

    trainer: ImplicitTrainer
    truncated: int
    attention: str


@contextmanager
def _ready(prepared: Prepared, spec: RewardSpec, config: TrainConfig, folder: Path) -> Iterator[_Ready]:
    """A context in which the model of a propensity design is loaded and computes as the settings say.

    Args:
        prepared: The log.
        spec: What the model is to explain, with the propensity design.
        config: The settings.
        folder: The folder for checkpoints.
    """
    args = training_arguments(config, folder, evaluate=prepared.heldout is not None)
    set_seed(config.seed)
    model = _new_model(prepared.log, config, spec, weights=not config.sharded or joined().is_main_process)
    if config.sharded:
        try_packing_once(model)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    with (
        restored_environment(),
        packed_attention(model, config.attn, args.device, dtype) as attention,
        computing_as_set(model, config, args.device),
    ):
        if args.device.type == "cuda" and not model.packed:
            remedy = "; --precision bfloat16 might let them be packed" if dtype == torch.float32 else ""
            warnings.warn(f"attention {attention}: rows are padded, which is slower{remedy}", stacklevel=6)
        yield _Ready(*_trainer(prepared, config, model, args), attention)


def _rehearse(prepared: Prepared, config: TrainConfig) -> None:
    """Make the training ready and give it up: what refuses it should do so before the pass for the propensities."""
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when the training begins
        trial = replace(config, output=scratch, report_to="none", progress=False, resume=False)
        with _ready(with_propensities_of_half(prepared), prepared.specs[0], trial, Path(scratch) / CHECKPOINTS):
            pass
    gc.collect()  # the loop holds itself, and the model's memory


@contextmanager
def computing_as_set(model: ImplicitRewardModel, config: TrainConfig, device: torch.device) -> Iterator[None]:
    """A context in which the backbone computes as the settings say, and by default as is fastest on the device.

    Raises:
        ValueError: Liger's kernels are wanted and not available.
        RuntimeError: Layers cannot be compiled.
    """
    dtype = torch.bfloat16 if config.precision == "bfloat16" and not config.sharded else None
    compiled = (device.type == "cuda" and not config.liger) if config.compile is None else config.compile
    obstacle = liger_obstacle(model.classifier, device)
    if config.liger and obstacle:
        raise ValueError(f"liger: not available: {obstacle}; expected auto or false")
    liger = obstacle is None and not compiled if config.liger is None else config.liger
    try:
        with (
            liger_kernels(model.classifier) if liger else nullcontext(),
            computing(model, dtype, recompute=config.gradient_checkpointing, compiled=compiled),
        ):
            yield
    except TorchDynamoException as error:
        raise RuntimeError(f"compile: torch.compile failed; use --no-compile: {first_line(error)}") from error


def _folder(config: TrainConfig, spec: RewardSpec) -> Path:
    """The folder for the checkpoints of a propensity design."""
    return Path(config.output) / CHECKPOINTS / spec.design


def _keep(fit: _Fit, config: TrainConfig) -> None:
    """Leave a trained design among the checkpoints, for a run that is interrupted while it trains the others."""
    folder = _folder(config, fit.spec) / "model"

    def keep() -> None:
        record = {name: getattr(fit.result, name) for name in _KEPT} | {"metrics": plain(fit.result.metrics)}
        if fit.heldout is not None:
            record["heldout"] = {name: values.tolist() for name, values in fit.heldout._asdict().items()}
        if not (folder / RECORD).is_file():
            fit.model.save(folder, record)

    from_main_process(keep)


def _finished(config: TrainConfig, spec: RewardSpec) -> _Fit | None:
    """The trained design that `_keep` left before the run was interrupted, or None."""
    folder = _folder(config, spec) / "model"
    if not config.resume or not (folder / RECORD).is_file():
        return None
    record, model = read_record(folder), ImplicitRewardModel.load(folder)
    metrics = {name: np.nan if value is None else value for name, value in record["metrics"].items()}
    result = TrainResult(model, spec.design, metrics, **{name: record[name] for name in _KEPT if name in record})
    return _Fit(result, model, HeldOut(**{name: np.array(values) for name, values in record["heldout"].items()}))


def _new_model(log: Log, config: TrainConfig, spec: RewardSpec, *, weights: bool = True) -> ImplicitRewardModel:
    """A language model, perhaps without its weights, with new heads at the rates and the features of the log."""
    frozen = config.lora_rank is not None and config.precision == "bfloat16"  # else the weights are masters
    dtype = torch.bfloat16 if frozen else torch.float32
    model = ImplicitRewardModel.from_backbone(config.model, spec, dtype, four_bits=config.load_in_4bit, weights=weights)
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

    def tokens(conversations: list[Messages]) -> tuple[list[np.ndarray], int]:
        return tokenise(model.tokenizer, conversations, model.spec.max_length)

    input_ids, truncated = tokens(prepared.log.messages)
    rows = TokenizedRows.from_log(prepared.log, input_ids)
    if prepared.pairs is not None:
        sides, longer = tokens(prepared.pairs.sides)
        rows, truncated = rows.with_sides(sides, prepared.pairs.margin), truncated + longer
    callbacks: list[TrainerCallback] = [MetricsFile(Path(config.output) / METRICS, model.spec.design)]
    evaluation = None
    if prepared.heldout is not None:
        evaluation = TokenizedRows.from_log(prepared.heldout, tokens(prepared.heldout.messages)[0])
        if prepared.heldout_pairs is not None:
            evaluation = evaluation.with_sides(tokens(prepared.heldout_pairs.sides)[0])
        if config.patience:
            callbacks.append(EarlyStoppingCallback(config.patience))
    if config.progress:
        callbacks.append(TrainingProgress(f"design {model.spec.design}"))
    trainer = ImplicitTrainer(model, config, args, rows, evaluation, callbacks)
    return trainer, truncated


def _plain_model(trainer: ImplicitTrainer, log: Log, config: TrainConfig) -> ImplicitRewardModel:
    """The trained model on the CPU, in evaluation mode, without what the loop put around it."""
    model = trainer.core
    if trainer.is_fsdp_enabled:
        state = whole_state(model, keep=trainer.is_world_process_zero())
        if not state:
            return model  # its own part: no room for a whole one on every process
        model = _new_model(log, config, model.spec, weights=model.adapted)  # of adapters, the state has no others
        model.load_state_dict(state, assign=True)
    model.cpu().merge_adapters(keep=config.lora_keep_adapter)
    return model.eval()


def _best_metrics(trainer: ImplicitTrainer) -> dict[str, float]:
    """The metrics of the evaluation whose weights were kept.

    Raises:
        RuntimeError: The training diverged.
    """
    best = trainer.state.best_global_step  # None if no evaluation was finite, or none came before the end
    entries = [e for e in trainer.state.log_history if "eval_nll" in e and e["step"] == best]
    entry = entries[0] if entries else trainer.evaluate()
    if not np.isfinite(entry["eval_nll"]):
        raise RuntimeError(
            f"training diverged: the held-out likelihood is {entry['eval_nll']}; lower learning_rate or "
            "head_learning_rate, and start anew with --overwrite"
        )
    signals = trainer.core.spec.signals
    names = ["nll", *(f"{name}_{kind}" for name in signals for kind in ("observed", "predicted")), "pairs_accuracy"]
    return {name: entry[f"eval_{name}"] for name in names if f"eval_{name}" in entry}
