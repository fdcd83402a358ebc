"""Training on embeddings: a log and what `irm-fast embed` made of it in, a reward model out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from irm_fast.data.log import Log
from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.one_signal import labels_choose
from irm_fast.embeddings.store import Source, read_embeddings, read_source
from irm_fast.embeddings.text_model import EmbeddedRewardModel, propensity_features, typical_position
from irm_fast.evaluation.evaluation import heldout_metrics
from irm_fast.evaluation.log_diagnosis import diagnose_rows
from irm_fast.models.backbone import model_config
from irm_fast.training.config import EmbeddingTrainConfig
from irm_fast.training.prepare import Prepared, prepare_run, read_data
from irm_fast.training.result import TrainResult
from irm_fast.training.run_folder import begin_run, close_run


def train_on_embeddings(config: EmbeddingTrainConfig) -> TrainResult:
    """Fit a reward model to the log at `config.data` and its embeddings, and write it to `config.output`.

    The folder holds an `EmbeddedRewardModel`, which `irm-fast score` and `evaluate` read; where the reward is linear in
    the last token's state of a decoder, it is an ordinary sequence classifier as well. Propensities may depend on the
    embedding, on what can be seen of the response, such as its length (`data.features`), and on its position.

    Args:
        config: The settings.

    Raises:
        ValueError: What is wrong with the log (`DataError`), the embeddings, the model, the settings or the folder.
    """
    # Prepare: what can be refused is refused before the work
    source = read_source(config.embeddings)
    source = replace(source, model=config.model or source.model)
    model_config(source.model)  # raises if there is no such model
    prepared = prepare_run(read_data(config), config)
    ids = [name for part in prepared.parts for name in part.ids]
    messages = [turns for part in prepared.parts for turns in part.messages]
    vectors = read_embeddings(config.embeddings, ids, messages)

    # Fit: the estimator chooses propensity designs and layers by itself
    result = _fit(prepared, vectors, config, source)

    # Save: a language model that does not load is refused before there is a folder
    model = result.model
    assert isinstance(model, EmbeddedRewardModel)
    model.load_checkpoint()
    begin_run(config, prepared.fingerprint)
    model.save(config.output, {"objective": "marginal", "stratification": None} | result.record(config))
    close_run(config)
    return result


def _fit(prepared: Prepared, vectors: np.ndarray, config: EmbeddingTrainConfig, source: Source) -> TrainResult:
    """Fit the estimator to the training part, and measure and diagnose it on the held-out part.

    Args:
        prepared: The log.
        vectors: The embeddings (N, D) of the training rows, then of the held-out rows.
        config: The settings.
        source: The kind of the embeddings, for the model that is saved.
    """
    # Fit
    log, heldout = prepared.log, prepared.heldout
    estimator = _new_estimator(prepared.specs[0], config)
    reads = _reads(log, config.propensity_design)
    position = typical_position(log, reads)
    # The estimator takes no empty signal axis: explicit preferences alone get one that is always missing.
    feedback = log.feedback if log.signals else np.full((len(log), 1), -1, np.int8)
    estimator.fit(vectors[: len(log)], feedback, **_fit_arguments(log, reads, position))

    # Model
    features = log.feature_names if reads == "features" else ()
    design = _design(estimator)
    if design == "features" and not features:  # of the text, which the state shows too
        design = "hidden"
    spec = replace(prepared.specs[0], design=design, feature_names=features, max_length=source.max_length)
    model = EmbeddedRewardModel(estimator, spec, source, position)

    # Judgement
    if heldout is None:
        return TrainResult(model, design, {}, diagnosis=estimator.diagnosis_)
    predicted = model.predict(vectors[len(log) :], heldout)
    metrics = heldout_metrics(spec, predicted, heldout.feedback)
    diagnosis = diagnose_rows(
        [log, heldout], spec, predicted, labels_ignorable=config.labels_ignorable, context=model.context
    )
    return TrainResult(model, design, metrics, diagnosis=diagnosis)


def _new_estimator(spec: RewardSpec, config: EmbeddingTrainConfig) -> EmbeddingRewardModel:
    """An unfitted estimator with the settings of the run."""
    return EmbeddingRewardModel(
        hidden_layers=_hidden_layers(config.hidden_layers),
        propensity_design=config.propensity_design,
        estimator=config.estimator,
        polarity=spec.polarity or None,
        misclick_rate=spec.misclick_rate or None,
        labels_ignorable=config.labels_ignorable,
        random_state=config.seed,
    )


def _hidden_layers(setting: str) -> str | tuple[int, ...]:
    """The setting `hidden_layers` as the estimator takes it."""
    if setting in ("auto", "linear"):
        return "auto" if setting == "auto" else ()
    return tuple(int(width) for width in setting.split(","))


def _reads(log: Log, design: str) -> str:
    """Return the propensity design by which the estimator is given features.

    Of one signal whose design is to be chosen, features of the log are what its owner says that propensities read; what
    can be seen of the text, such as its length, may move the preference too, and is tried where labels choose.
    """
    if design != "auto" or len(log.signals) != 1:
        return design
    return "features" if log.feature_names or not labels_choose(log.preference) else "hidden"


def _fit_arguments(log: Log, reads: str, position: float | None) -> dict[str, Any]:
    """Arguments of `EmbeddingRewardModel.fit`: all that a log holds beside feedback."""
    return {
        "propensity": log.propensity if reads == "known" else None,
        "propensity_features": propensity_features(log, reads, position),
        "preference": log.preference,
        "sample_weight": log.weight,
        "users": log.user_ids,
        "sessions": log.session_ids,
        "times": log.times,
        "groups": log.groups(),
        "label_probability": log.label_probability,
    }


def what_was_written(result: TrainResult) -> str:
    """One line on the kind of model that a run on embeddings has left in its output folder."""
    assert isinstance(result.model, EmbeddedRewardModel)
    if result.model.is_checkpoint:
        return "an ordinary sequence classifier, linear on the last token"
    return (
        "a reward on embeddings, for irm-fast score and evaluate; a linear one on the last token of a decoder would be "
        "an ordinary sequence classifier"
    )


def _design(estimator: EmbeddingRewardModel) -> str:
    """One name for the propensity designs of all signals; "constant" is a special case of the others."""
    designs = set(estimator.propensity_designs_)
    return next(iter(designs - {"constant"} or designs or {"constant"}))
