"""Training on embeddings: a log and what `irm-fast embed` made of it in, a reward model out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from irm_fast.embeddings.shards import Shards
from irm_fast.embeddings.store import Source, open_embeddings, read_source
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.evaluation import heldout_metrics
from irm_fast.evaluation.log_diagnosis import diagnose_rows
from irm_fast.models.backbone import model_config
from irm_fast.models.heldout import HeldOut
from irm_fast.models.processes import alone, from_main_process, started
from irm_fast.training.config import EmbeddingTrainConfig
from irm_fast.training.estimation import fit_embedded
from irm_fast.training.prepare import Prepared, prepare_run, read_data
from irm_fast.training.reporting import leave_report
from irm_fast.training.result import TrainResult
from irm_fast.training.run_folder import begin_run, close_run


def train_on_embeddings(config: EmbeddingTrainConfig) -> TrainResult:
    """Fit a reward model to the log at `config.data` and its embeddings, and write it to `config.output`.

    The folder holds an `EmbeddedRewardModel`, which `irm-fast score` and `evaluate` read; where the reward is linear in
    the last token's state of a decoder, it is an ordinary sequence classifier as well. Propensities may depend on the
    embedding, on what can be seen of the response, such as its length (`data.features`), and on its position.

    Several processes of a torchrun share the passes over the embeddings, and the first one writes.

    Args:
        config: The settings.

    Raises:
        ValueError: What is wrong with the log (`DataError`), the embeddings, the model, the settings or the folder.
        RuntimeError: The processes read different logs.
    """
    with alone(Path(config.output), "irm-fast train", folder=True, distributed=started() > 1):
        return _train(config)


def _train(config: EmbeddingTrainConfig) -> TrainResult:
    """`train_on_embeddings` into a folder that no other run writes to."""
    # Prepare: what can be refused is refused before the work
    source = read_source(config.embeddings)
    source = replace(source, model=config.model or source.model)
    model_config(source.model)  # raises if there is no such model
    prepared = prepare_run(read_data(config), config)
    vectors = open_embeddings(config.embeddings, [(part.ids, part.messages) for part in prepared.parts])

    # Fit: the estimator chooses propensity designs and layers by itself
    result, predicted = _fit(prepared, vectors, config, source)

    # Save, and tell
    def save() -> None:
        _save(result, prepared, config)
        leave_report(prepared.parts, result.model.spec, predicted, config)

    from_main_process(save, distributed=started() > 1)
    return result


def _save(result: TrainResult, prepared: Prepared, config: EmbeddingTrainConfig) -> None:
    """Write what a run has found; a language model that does not load is refused before there is a folder."""
    model = result.model
    assert isinstance(model, EmbeddedRewardModel)
    model.load_checkpoint()
    begin_run(config, prepared.fingerprint)
    result.save({"objective": "marginal", "stratification": None}, prepared, config)
    close_run(config)


def _fit(
    prepared: Prepared, vectors: Shards, config: EmbeddingTrainConfig, source: Source
) -> tuple[TrainResult, HeldOut | None]:
    """Fit the estimator to the training part, and measure and diagnose it on the held-out part.

    Args:
        prepared: The log.
        vectors: The embeddings of the training rows, then of the held-out rows.
        config: The settings.
        source: The kind of the embeddings, for the model that is saved.

    Returns:
        The result, and the predictions for the held-out part, or None without one.
    """
    # Fit
    log, heldout = prepared.log, prepared.heldout
    layers = _hidden_layers(config.hidden_layers)
    model = fit_embedded(log, vectors[: len(log)], prepared.specs[0], source, config, layers)
    spec, design = model.spec, model.spec.design

    # Judgement
    if heldout is None:
        return TrainResult(model, design, {}).judged(model.estimator.diagnosis_), None
    predicted = model.predict(vectors[len(log) :], heldout)
    metrics = heldout_metrics(spec, predicted, heldout.feedback)
    diagnosis = diagnose_rows(
        [log, heldout], spec, predicted, labels_ignorable=config.labels_ignorable, context=model.context
    )
    return TrainResult(model, design, metrics).judged(diagnosis), predicted


def _hidden_layers(setting: str) -> str | tuple[int, ...]:
    """The setting `hidden_layers` as the estimator takes it."""
    if setting in ("auto", "linear"):
        return "auto" if setting == "auto" else ()
    return tuple(int(width) for width in setting.split(","))


def what_was_written(result: TrainResult) -> str:
    """One line on the kind of model that a run on embeddings has left in its output folder."""
    assert isinstance(result.model, EmbeddedRewardModel)
    if result.model.is_checkpoint:
        return "an ordinary sequence classifier, linear on the last token"
    return (
        "a reward on embeddings, for irm-fast score and evaluate; a linear one on the last token of a decoder would be "
        "an ordinary sequence classifier"
    )
