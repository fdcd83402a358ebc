"""The main job: a log of implicit feedback in, a reward model out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from irm_fast.data.log import Log
from irm_fast.data.read import read_log
from irm_fast.data.signals import RewardSpec, align, check_design, check_evidence
from irm_fast.diagnostics.metrics import paired_difference
from irm_fast.evaluation.log_diagnosis import diagnose_rows
from irm_fast.models.batches import as_dataset
from irm_fast.models.heads import FeaturePropensity
from irm_fast.models.record import RECORD, read_record
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.tokens import tokenise
from irm_fast.training.callbacks import MetricsFile
from irm_fast.training.config import TrainConfig
from irm_fast.training.distributed import check_same_log, whole_state
from irm_fast.training.prepare import (
    check_misclick_names,
    check_parts,
    designs_to_try,
    live_signals,
    spec_of,
    warn_of_identification,
    without_overlong,
)
from irm_fast.training.result import TrainResult
from irm_fast.training.run_folder import (
    CHECKPOINTS,
    METRICS,
    begin_run,
    check_output,
    check_plan,
    close_run,
    describe,
    keep_plan,
    last_checkpoint,
    plain,
)
from irm_fast.training.throughput import typical
from irm_fast.training.trainer import ImplicitTrainer, training_arguments

__all__ = ["ImplicitTrainer", "TrainResult", "train", "train_log"]


_KEPT = ("truncated", "attention", "throughput")  # of a design that is trained, while others are


def train(config: TrainConfig) -> TrainResult:
    """Train a reward model on the log at `config.data` and write it to `config.output`.

    With `config.embeddings` the language model stays as it is, see `embedding.training`.

    Raises:
        ValueError: what is wrong with the log (`DataError`), the model, the settings or the output folder.
        RuntimeError: one process sees several GPUs, processes see different data, rows of a pack see each other, or
            the training diverged.
    """
    if config.embeddings:
        from irm_fast.training.on_embeddings import train_on_embeddings

        return train_on_embeddings(config)
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
    of the best evaluation, `irm_fast.json`, `propensity.safetensors`, `metrics.jsonl`, `train.yaml` and
    `train_data.json`, by which a resumed run knows its log. A signal that never acts is left out with a warning.
    """
    data = describe(log, heldout)
    check_same_log(data)
    check_misclick_names(log, config)
    rows = len(log)
    if config.overlong == "drop":
        log = without_overlong(log, config)
        heldout = None if heldout is None else without_overlong(heldout, config)
    dropped = rows - len(log)
    log, heldout = live_signals(log, heldout)
    specs = [spec_of(log, config, design) for design in designs_to_try(log, config, heldout)]
    for spec in specs:
        check_design(spec.design, log)
    check_evidence(specs[0], log)
    warn_of_identification(specs[0], log)
    check_output(config, data)
    if heldout is None and config.validation_fraction:
        log, heldout = log.split(config.validation_fraction, config.seed)
    check_parts(log, heldout)
    fits: list[_Fit] = []
    for spec in specs:
        fits.append(_finished(config, spec) or _fit(log, heldout, config, spec, data, len(specs), len(fits)))
    designs = {fit.result.design: fit.result.metrics["nll"] for fit in fits if fit.result.metrics}
    best = _choose(fits)
    spec = best.result.model.spec
    parts, logits = ([log], None) if heldout is None else ([log, align(heldout, spec)], best.heldout[2:].T)
    result = replace(best.result, dropped=dropped, designs=designs, diagnosis=diagnose_rows(parts, spec, logits))
    with _main_process() as is_main:
        if is_main:
            result.model.save(config.output, _record(result, config))
            close_run(config)
    return result


def _choose(fits: Sequence[_Fit]) -> _Fit:
    """The first design, unless a later one's held-out loss is lower by more than one standard error."""
    best = fits[0]
    for fit in fits[1:]:
        gain, error = paired_difference(best.heldout[0], fit.heldout[0], fit.heldout[1])
        best = fit if gain > error else best
    return best


@dataclass(frozen=True)
class _Fit:
    """One trained design.  heldout: of `ImplicitTrainer.heldout_predictions`, in the log's order; or empty."""

    result: TrainResult
    heldout: np.ndarray


def _fit(
    log: Log,
    heldout: Log | None,
    config: TrainConfig,
    spec: RewardSpec,
    data: Mapping[str, Any],
    designs: int,
    number: int,
) -> _Fit:
    """Train design `number` of `designs`; unless it is the last, leave it among the checkpoints for a resumed run.

    data: of `run_folder.describe`.
    """
    folder = Path(config.output) / CHECKPOINTS / spec.design
    set_seed(config.seed)
    model = _new_model(log, config, spec)
    args = training_arguments(config, folder, evaluate=heldout is not None)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    with model.attention(config.attn, args.device, dtype) as attention:
        if args.device.type == "cuda" and not model.packed:
            remedy = "; --precision bfloat16 might let them be packed" if dtype == torch.float32 else ""
            warnings.warn(f"attention {attention}: rows are padded, which is slower{remedy}", stacklevel=3)
        trainer, truncated = _trainer(log, heldout, config, model, args)
        plan = trainer.packs.plan
        if config.resume:
            check_plan(folder, plan)
        with _main_process() as is_main:
            if is_main and number == 0:  # only now: a run that cannot start writes nothing
                begin_run(config, data)
            if is_main:
                keep_plan(folder, plan)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder) if config.resume else None)
        metrics = _best_metrics(trainer) if heldout is not None else {}
        predictions = np.empty((2, 0)) if heldout is None else trainer.heldout_predictions()
    speed = typical(trainer.state.log_history)
    plain_model = _plain_model(trainer, log, config)
    result = TrainResult(plain_model, spec.design, metrics, truncated, attention=attention, throughput=speed)
    if number + 1 < designs and trainer.is_world_process_zero():
        record = {name: getattr(result, name) for name in _KEPT}
        record |= {"metrics": plain(metrics), "heldout": predictions.tolist()}
        plain_model.save(folder / "model", record)
    return _Fit(result, predictions)


def _finished(config: TrainConfig, spec: RewardSpec) -> _Fit | None:
    """What `_fit` left of this design before the run was interrupted."""
    folder = Path(config.output) / CHECKPOINTS / spec.design / "model"
    if not config.resume or not (folder / RECORD).is_file():
        return None
    record, model = read_record(folder), ImplicitRewardModel.load(folder)
    kept = {name: record[name] for name in _KEPT}
    return _Fit(TrainResult(model, spec.design, record["metrics"], **kept), np.array(record["heldout"]))


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
        model.recompute_activations()
    recorded, acted = (log.feedback >= 0).sum(axis=0), (log.feedback == 1).sum(axis=0)
    if log.signals:
        model.start_at(acted / np.maximum(recorded, 1))
    if isinstance(model.propensity, FeaturePropensity):
        model.propensity.standardise(log.features)  # type: ignore[arg-type]
    return model


def _trainer(
    log: Log, heldout: Log | None, config: TrainConfig, model: ImplicitRewardModel, args: TrainingArguments
) -> tuple[ImplicitTrainer, int]:
    """The loop, and the number of training rows that were truncated."""
    length = model.spec.max_length
    input_ids, truncated = tokenise(model.tokenizer, log.messages, length)
    evaluation = None
    if heldout is not None:
        heldout = align(heldout, model.spec)
        evaluation = as_dataset(heldout, tokenise(model.tokenizer, heldout.messages, length)[0])
    callbacks: list[TrainerCallback] = [MetricsFile(Path(config.output) / METRICS, model.spec.design)]
    if heldout is not None and config.patience:
        callbacks.append(EarlyStoppingCallback(config.patience))
    trainer = ImplicitTrainer(model, config, args, as_dataset(log, input_ids), evaluation, callbacks)
    if not config.progress:
        trainer.remove_callback(PrinterCallback)  # transformers prints where it draws no bar
    return trainer, truncated


def _plain_model(trainer: ImplicitTrainer, log: Log, config: TrainConfig) -> ImplicitRewardModel:
    """The trained model on the CPU, in evaluation mode, without what the loop put around it."""
    model = trainer.core
    if trainer.is_fsdp_enabled:
        state = whole_state(model, keep=trainer.is_world_process_zero())
        if not state:
            return model  # its own part: no room for a whole one on every process
        model = _new_model(log, config, model.spec)
        model.load_state_dict(state, assign=True)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return model.cpu().eval()


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


def _record(result: TrainResult, config: TrainConfig) -> dict[str, Any]:
    """What irm_fast.json says beside the model's own spec."""
    return {
        "objective": config.objective,
        "stratification": config.stratification if config.objective == "stratified" else None,
        "diagnosis": None if result.diagnosis is None else result.diagnosis.to_dict(),
        "metrics": plain(result.metrics),
        "designs": dict(result.designs),
        "truncated": result.truncated,
        "dropped": result.dropped,
        "attention": result.attention,
        "throughput": dict(result.throughput),
        "training": asdict(config),
    }
