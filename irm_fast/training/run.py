"""The main job, as a recipe: a log of implicit feedback in, a reward model out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from irm_fast.data.log import Log
from irm_fast.evaluation.log_diagnosis import diagnose_rows
from irm_fast.evaluation.metrics_file import METRICS, read_metrics, write_metrics
from irm_fast.models.passes import default_device, resolve_precision
from irm_fast.models.processes import alone, from_main_process, joined, warned_once
from irm_fast.training.build import check_loop, trial_loop
from irm_fast.training.config import EmbeddingTrainConfig, TrainConfig
from irm_fast.training.designs import TrainedDesign, best_design, keep_design, kept_design, train_design
from irm_fast.training.plan import RunPlan, Trial, model_too_large, plan_of, try_steps
from irm_fast.training.prepare import Prepared, prepare_run, read_data
from irm_fast.training.propensities import FirstPropensities, fit_propensities, is_fitted
from irm_fast.training.reporting import leave_report
from irm_fast.training.result import TrainResult
from irm_fast.training.run_folder import close_run


@warned_once()
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

    Returns:
        A `TrainResult`: the `model`, `metrics` of the held-out part, and the `diagnosis`, which says what the reward
        rests on; see its docstring for the rest.

    Raises:
        ValueError: What is wrong with the log (`DataError`), the model, the settings or the output folder.
        RuntimeError: One process sees several GPUs, processes see different data, packed rows attend to each
            other, the training diverged, or the reward does not vary.

    Examples:
        >>> import irm_fast
        >>> config = irm_fast.TrainConfig(model="MODEL", data="log.jsonl", output="reward_model")
        >>> result = irm_fast.train(config)  # doctest: +SKIP
    """
    if isinstance(config, EmbeddingTrainConfig):
        from irm_fast.training.on_embeddings import train_on_embeddings  # needs scikit-learn, which is slow to import

        return train_on_embeddings(config)
    return train_log(read_data(config), config)


@warned_once()
def train_log(log: Log, config: TrainConfig, *, heldout: Log | None = None) -> TrainResult:
    """`train` on a log in memory; `config.data` and the settings by which a log is read have no effect.

    The output folder gets the checkpoint of the best evaluation, `irm_fast.json`, `propensity.safetensors`,
    `metrics.jsonl`, `train.yaml` and `train_data.json`, by which a resumed run knows its log. A signal that never acts
    is left out with a warning.

    Args:
        log: The log to train on.
        config: The settings.
        heldout: The log to evaluate on, instead of a part split from `log`.

    Returns:
        The same as `train`.

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

    with alone(Path(config.output), "irm-fast train", folder=True):
        return _train(log, _on_this_device(config), heldout)


def _train(log: Log, config: TrainConfig, heldout: Log | None) -> TrainResult:
    """Train on a log into a folder that no other run writes to; arguments as of `train_log`."""
    # Prepare: what can be refused is refused before the work
    prepared = prepare_run(log, config, heldout)

    # Propensities first, where the log shows them
    rows, first = prepared, None
    if prepared.specs[0].estimator == "two-step":
        if not from_main_process(lambda: is_fitted(config)):
            check_loop(prepared, config)
        first = fit_propensities(prepared, config)
        rows = first.prepared

    # Fit each propensity design, from the same weights on the same rows
    trained: list[TrainedDesign] = []
    for spec in rows.specs:
        design = kept_design(config, spec) or train_design(rows, spec, config, begins=not (first or trained))
        if spec is not rows.specs[-1]:
            keep_design(design, config)
        trained.append(design)

    # Choose by held-out likelihood
    best = best_design(trained)
    designs = {one.result.design: one.result.metrics["nll"] for one in trained if one.result.metrics}

    # Diagnose what the reward rests on
    diagnosis = diagnose_rows(
        prepared.parts,
        best.spec,
        best.heldout,
        labels_ignorable=config.labels_ignorable,
        context=first.context if first else (),
    )
    result = replace(best.result, dropped=prepared.dropped, pairs=prepared.counts_of_pairs, designs=designs).judged(
        diagnosis
    )

    # Save, and tell
    def save() -> None:
        _save(result, prepared, first, config)
        leave_report(prepared.parts, best.spec, best.heldout, config)

    from_main_process(save)
    return result


@warned_once()
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
    try:
        with trial_loop(prepared, config) as loop:
            return plan_of(prepared, config, *loop), try_steps(loop.trainer)
    except torch.OutOfMemoryError as error:  # while the model moves to the device
        raise RuntimeError(model_too_large(prepared, config, joined().num_processes)) from error


def _save(result: TrainResult, prepared: Prepared, first: FirstPropensities | None, config: TrainConfig) -> None:
    """Write what a run has found to its output folder, and remove what it kept to be resumed."""
    stratification = config.stratification if config.objective == "stratified" else None
    objective = {"objective": config.objective, "stratification": stratification}
    if first:
        first.save(config.output)
    lines = read_metrics(Path(config.output) / METRICS)
    of_design = [line for line in lines if line.get("propensity_design") == result.design]
    if of_design:  # else the file was lost
        of_design[-1].update(result.learned)  # the entry of the end of its training
    write_metrics(Path(config.output) / METRICS, lines, append=False)
    result.save(objective, prepared, config)
    close_run(config)


def _on_this_device(config: TrainConfig) -> TrainConfig:
    """The settings with the precision of this device in the place of "auto"."""
    return replace(config, precision=resolve_precision(config.precision, default_device()))
