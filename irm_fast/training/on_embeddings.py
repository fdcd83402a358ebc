"""Training on embeddings: a log and what `irm-fast embed` made of it in, a reward model out."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from irm_fast.data.log import Log, _groups
from irm_fast.data.read import read_log
from irm_fast.data.signals import check_design, check_evidence
from irm_fast.embeddings.store import Source, read_embeddings, read_source
from irm_fast.embeddings.text_model import EmbeddedRewardModel, propensity_features
from irm_fast.evaluation.evaluation import heldout_metrics
from irm_fast.evaluation.log_diagnosis import diagnose_rows
from irm_fast.evaluation.scoring import action_rates
from irm_fast.models.backbone import model_config
from irm_fast.training.config import TrainConfig
from irm_fast.training.prepare import check_misclick_names, check_parts, live_signals, spec_of
from irm_fast.training.result import TrainResult
from irm_fast.training.run_folder import begin_run, check_output, close_run, describe, plain

if TYPE_CHECKING:
    from irm_fast.embeddings.estimator import EmbeddingRewardModel


def train_on_embeddings(config: TrainConfig) -> TrainResult:
    """Train a reward model on the log at `config.data` and its embeddings, and write it to `config.output`.

    The folder holds an `EmbeddedRewardModel`, which `irm-fast score` and `evaluate` read; where the reward is linear in
    the last token's state of a decoder, it is an ordinary sequence classifier as well. Propensities may depend on the
    embedding and on what can be seen of the response, such as its length (`text_features`).

    Raises:
        ValueError: what is wrong with the log (`DataError`), the embeddings, the model, the settings or the folder.
    """
    if not config.data:
        raise ValueError("data: none given; expected the path of a log")
    source = read_source(config.embeddings)
    source = replace(source, model=config.model or source.model)
    model_config(source.model)  # before the work, not after it
    misclick = bool(config.misclick_rate)
    log = read_log(config.data, absent=config.absent, polarity=config.polarity, misclick=misclick)  # type: ignore[arg-type]
    data = describe(log, None)
    check_misclick_names(log, config)
    log, _ = live_signals(log, None)
    if config.propensity != "auto":
        check_design(config.propensity, log)
    check_evidence(spec_of(log, config, config.propensity), log)
    check_output(config, data)
    vectors = read_embeddings(config.embeddings, log.ids, log.messages)
    result = _fit(log, vectors, config, source)
    _ = result.model.checkpoint  # type: ignore[union-attr]  # a language model that does not load leaves no folder
    begin_run(config, data)
    result.model.save(config.output, _record(result, config))
    close_run(config)
    return result


def _fit(log: Log, vectors: np.ndarray, config: TrainConfig, source: Source) -> TrainResult:
    """The fitted model, with metrics and diagnosis by the held-out part."""
    part, heldout = log.split(config.validation_fraction, config.seed) if config.validation_fraction else (log, None)
    check_parts(part, heldout)
    place = {name: i for i, name in enumerate(log.ids)}
    estimator = _new_estimator(part, config)
    # The estimator takes no empty signal axis: explicit preferences alone get one that is always missing.
    feedback = part.feedback if part.signals else np.full((len(part), 1), -1, np.int8)
    estimator.fit(vectors[[place[name] for name in part.ids]], feedback, **_evidence(part, config))
    design = _design(estimator)
    model = EmbeddedRewardModel(estimator, replace(spec_of(part, config, design), max_length=source.max_length), source)
    if heldout is None:
        return TrainResult(model, design, {}, 0, diagnosis=estimator.diagnosis_)  # type: ignore[arg-type]
    losses, logits = model.predict(vectors[[place[name] for name in heldout.ids]], heldout)
    weight = np.ones(len(heldout)) if heldout.weight is None else heldout.weight
    rates = action_rates(model, logits)
    metrics = heldout_metrics(model.spec.signals, losses, weight, rates, heldout.feedback)
    diagnosis = diagnose_rows([part, heldout], model.spec, logits)
    return TrainResult(model, design, metrics, 0, diagnosis=diagnosis)  # type: ignore[arg-type]


def _new_estimator(log: Log, config: TrainConfig) -> EmbeddingRewardModel:
    from irm_fast.embeddings.estimator import EmbeddingRewardModel

    return EmbeddingRewardModel(
        hidden_layers=_hidden_layers(config.hidden_layers),
        propensity=config.propensity,
        estimator=config.estimator,
        polarity=log.polarity or None,
        misclick_rate=spec_of(log, config, "constant").misclick_rate or None,
        random_state=config.seed,
    )


def _hidden_layers(setting: str) -> str | tuple[int, ...]:
    if setting in ("auto", "linear"):
        return "auto" if setting == "auto" else ()
    return tuple(int(width) for width in setting.split(","))


def _evidence(log: Log, config: TrainConfig) -> dict[str, Any]:
    """What the log holds beside feedback, as arguments of `EmbeddingRewardModel.fit`."""
    return {
        "propensity": log.propensity if config.propensity == "known" else None,
        "propensity_features": propensity_features(log, config.propensity),
        "preference": log.preference,
        "sample_weight": log.weight,
        "users": log.user_ids,
        "groups": _groups(log),
    }


def what_was_written(result: TrainResult) -> str:
    """The kind of model in the output folder, in a line."""
    if result.model.is_checkpoint:  # type: ignore[union-attr]
        return "an ordinary sequence classifier, linear on the last token"
    return (
        "a reward on embeddings, for irm-fast score and evaluate; a linear one on the last token of a decoder would be "
        "an ordinary sequence classifier"
    )


def _design(estimator: EmbeddingRewardModel) -> str:
    """One name for the designs of all signals; constant is a case of the others."""
    designs = set(estimator.propensity_designs_)
    return next(iter(designs - {"constant"} or designs or {"constant"}))


def _record(result: TrainResult, config: TrainConfig) -> dict[str, Any]:
    """What irm_fast.json says beside the model's own spec."""
    return {
        "objective": "marginal",
        "stratification": None,
        "diagnosis": None if result.diagnosis is None else result.diagnosis.to_dict(),
        "metrics": plain(result.metrics),
        "designs": dict(result.designs),
        "truncated": result.truncated,
        "training": asdict(config),
    }
