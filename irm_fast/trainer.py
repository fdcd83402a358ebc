"""The main job: a log of implicit feedback in, a reward model out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, set_seed

from irm_fast.batches import as_dataset, tokenise
from irm_fast.config import TrainConfig
from irm_fast.data import read_log
from irm_fast.evaluation import align, check_design
from irm_fast.log import Log
from irm_fast.loop import ImplicitTrainer, MetricsFile, training_arguments
from irm_fast.model import RECORD, ImplicitRewardModel, read_record
from irm_fast.propensity import FeaturePropensity, RewardSpec, identification_note
from irm_fast.run_folder import (
    CHECKPOINTS,
    METRICS,
    begin_run,
    check_output,
    close_run,
    last_checkpoint,
    plain,
)

__all__ = ["ImplicitTrainer", "TrainResult", "train", "train_log"]


@dataclass(frozen=True)
class TrainResult:
    """A trained reward model, in evaluation mode on the CPU, and how it came about.

    design: the propensity design of the model.  metrics: of the held-out part at the best evaluation, keys as
    of `evaluation.heldout_metrics`; empty without a held-out part.  truncated: training rows that were longer
    than `max_length` and lost their beginning.  designs: `nll` of every design that was tried.
    """

    model: ImplicitRewardModel
    design: str
    metrics: Mapping[str, float]
    truncated: int
    designs: Mapping[str, float] = field(default_factory=dict)


def train(config: TrainConfig) -> TrainResult:
    """Train a reward model on the log at `config.data` and write it to `config.output`.

    Raises:
        ValueError: what is wrong with the log (`DataError`), the model, the settings or the output folder.
        RuntimeError: one process sees several GPUs, or the training diverged.
    """
    if not config.data:
        raise ValueError("data: none given; expected the path of a log")
    return train_log(
        read_log(
            config.data,
            absent=config.absent,  # type: ignore[arg-type]
            polarity=config.polarity,
            misclick=bool(config.misclick_rate),
        ),
        config,
    )


def train_log(log: Log, config: TrainConfig, *, heldout: Log | None = None) -> TrainResult:
    """`train` on a log in memory; `config.data`, `absent` and `polarity` have no effect.

    heldout: what to evaluate on, instead of a part split from the log. The output folder gets the checkpoint
    of the best evaluation, `irm_fast.json`, `propensity.safetensors`, `metrics.jsonl` and `train.yaml`.
    """
    specs = [_spec(log, config, design) for design in _designs(log, config, heldout)]
    for spec in specs:
        check_design(spec.design, log)
    _check_evidence(specs[0], log)
    _warn_of_identification(specs[0], log)
    check_output(config)
    if heldout is None and config.validation_fraction:
        log, heldout = log.split(config.validation_fraction, config.seed)
    results: list[TrainResult] = []
    for spec in specs:
        done = _finished(config, spec)
        results.append(done or _fit(log, heldout, config, spec, first=not results, last=spec is specs[-1]))
    best = min(results, key=lambda result: result.metrics.get("nll", 0.0))
    designs = {result.design: result.metrics["nll"] for result in results if result.metrics}
    result = replace(best, designs=designs)
    with _main_process() as is_main:
        if is_main:
            result.model.save(config.output, _record(result, log, config))
            close_run(config)
    return result


def _designs(log: Log, config: TrainConfig, heldout: Log | None) -> list[str]:
    """The propensity designs to train: more than one only where held-out likelihood is to choose."""
    if config.propensity != "auto":
        return [config.propensity]
    if len(log.signals) < 2:
        return ["constant"]
    if heldout is None and not config.validation_fraction:
        raise ValueError("propensity: 'auto' chooses by held-out likelihood; set validation_fraction")
    return ["constant", "hidden"]


def _spec(log: Log, config: TrainConfig, design: str) -> RewardSpec:
    rates = config.misclick_rate
    if isinstance(rates, Mapping):
        unknown = sorted(rates.keys() - set(log.signals))
        if unknown:
            known = ", ".join(log.signals) or "none"
            raise ValueError(f"misclick_rate: no signal {unknown[0]!r} in the log; expected one of: {known}")
    return RewardSpec(
        design=design,
        signals=log.signals,
        polarity=log.polarity,
        misclick_rate=tuple(
            float(rates.get(name, 0.0) if isinstance(rates, Mapping) else rates) for name in log.signals
        ),
        feature_names=log.feature_names if design == "features" else (),
        max_length=config.max_length,
    )


def _check_evidence(spec: RewardSpec, log: Log) -> None:
    """A contradiction that no misclick explains has likelihood zero; readers let it pass where any may."""
    certain = (log.feedback == 1) & (np.array(spec.misclick_rate) == 0)
    sign = np.array(spec.polarity, int)
    liked = (certain & (sign > 0)).any(axis=1) | (log.preference == 1)
    disliked = (certain & (sign < 0)).any(axis=1) | (log.preference == 0)
    if (liked & disliked).any():
        row = log.ids[int(np.argmax(liked & disliked))]
        raise ValueError(f"feedback: row {row!r} contradicts itself; expected one side, or a misclick rate")


def _warn_of_identification(spec: RewardSpec, log: Log) -> None:
    if len(spec.signals) == 1 and spec.design in ("hidden", "features"):
        note = identification_note(spec, bool((log.preference >= 0).any()))
        warnings.warn(f"propensity {spec.design!r}, signal {spec.signals[0]!r}: {note}", stacklevel=3)


def _fit(
    log: Log, heldout: Log | None, config: TrainConfig, spec: RewardSpec, *, first: bool, last: bool
) -> TrainResult:
    """Train one design; unless it is the last, leave its model among the checkpoints for a resumed run."""
    folder = Path(config.output) / CHECKPOINTS / spec.design
    set_seed(config.seed)
    model = _new_model(log, config, spec)
    trainer, truncated = _trainer(log, heldout, config, model, folder)
    with _main_process() as is_main:
        if is_main and first:  # only now: a run that cannot start leaves no folder behind
            begin_run(config)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder) if config.resume else None)
    metrics = _best_metrics(trainer) if heldout is not None else {}
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    result = TrainResult(model.cpu().eval(), spec.design, metrics, truncated)
    if not last and trainer.is_world_process_zero():
        model.save(folder / "model", {"metrics": plain(metrics), "truncated": truncated})
    return result


def _finished(config: TrainConfig, spec: RewardSpec) -> TrainResult | None:
    """What `_fit` left of this design before the run was interrupted."""
    folder = Path(config.output) / CHECKPOINTS / spec.design / "model"
    if not config.resume or not (folder / RECORD).is_file():
        return None
    record, model = read_record(folder), ImplicitRewardModel.load(folder)
    return TrainResult(model, spec.design, record["metrics"], record["truncated"])


@contextmanager
def _main_process() -> Iterator[bool]:
    """Whether this is the process that writes; all processes wait for each other before and after."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    state.wait_for_everyone()
    yield state.is_main_process
    state.wait_for_everyone()


def _new_model(log: Log, config: TrainConfig, spec: RewardSpec) -> ImplicitRewardModel:
    model = ImplicitRewardModel.from_backbone(config.model, spec)
    if config.gradient_checkpointing:
        enable = getattr(model.classifier, "activation_checkpointing_enable", None)  # since transformers 5.2x
        (enable or model.classifier.gradient_checkpointing_enable)()
    recorded, acted = (log.feedback >= 0).sum(axis=0), (log.feedback == 1).sum(axis=0)
    if log.signals:
        model.start_at(acted / np.maximum(recorded, 1))
    if isinstance(model.propensity, FeaturePropensity):
        model.propensity.standardise(log.features)  # type: ignore[arg-type]
    return model


def _trainer(
    log: Log, heldout: Log | None, config: TrainConfig, model: ImplicitRewardModel, folder: Path
) -> tuple[ImplicitTrainer, int]:
    length = model.spec.max_length
    input_ids, truncated = tokenise(model.tokenizer, log.messages, length)
    evaluation = None
    if heldout is not None:
        heldout = align(heldout, model.spec)
        heldout_ids, _ = tokenise(model.tokenizer, heldout.messages, length)
        order = np.argsort([len(ids) for ids in heldout_ids], kind="stable")  # little padding
        evaluation = as_dataset(heldout.subset(order), [heldout_ids[i] for i in order])
    callbacks: list[TrainerCallback] = [MetricsFile(Path(config.output) / METRICS, model.spec.design)]
    if heldout is not None and config.patience:
        callbacks.append(EarlyStoppingCallback(config.patience))
    args = training_arguments(config, folder, evaluate=heldout is not None)
    trainer = ImplicitTrainer(model, config, args, as_dataset(log, input_ids), evaluation, callbacks)
    if not config.progress:
        trainer.remove_callback(PrinterCallback)  # transformers prints where it draws no bar
    return trainer, truncated


def _best_metrics(trainer: ImplicitTrainer) -> dict[str, float]:
    """Metrics of the evaluation whose weights were kept."""
    best = trainer.state.best_global_step  # None if no evaluation was finite, or none came before the end
    entries = [e for e in trainer.state.log_history if "eval_nll" in e and e["step"] == best]
    entry = entries[0] if entries else trainer.evaluate()
    if not np.isfinite(entry["eval_nll"]):
        raise RuntimeError(
            f"training diverged: the held-out likelihood is {entry['eval_nll']}; lower learning_rate or "
            "head_learning_rate, and start anew with --overwrite"
        )
    signals = trainer.core.spec.signals
    names = ["nll", *(f"{name}_{kind}" for name in signals for kind in ("observed", "predicted"))]
    return {name: entry[f"eval_{name}"] for name in names}


def _record(result: TrainResult, log: Log, config: TrainConfig) -> dict[str, Any]:
    """What irm_fast.json says beside the model's own spec."""
    return {
        "objective": config.objective,
        "stratification": config.stratification if config.objective == "stratified" else None,
        "identification": identification_note(result.model.spec, bool((log.preference >= 0).any())),
        "metrics": plain(result.metrics),
        "designs": dict(result.designs),
        "truncated": result.truncated,
        "training": asdict(config),
    }
