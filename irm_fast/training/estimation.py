"""The estimator on embeddings, as both programs fit it to a log by the settings of a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from irm_fast.data.log import Log
from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.one_signal import labels_choose
from irm_fast.embeddings.shards import Shards
from irm_fast.embeddings.store import Source
from irm_fast.embeddings.text_model import EmbeddedRewardModel, propensity_features, typical_position
from irm_fast.training.config import RunConfig
from irm_fast.training.specs import shows_propensities


def fit_embedded(
    log: Log,
    vectors: np.ndarray | Shards,
    spec: RewardSpec,
    source: Source,
    config: RunConfig,
    hidden_layers: str | tuple,
) -> EmbeddedRewardModel:
    """Fit the estimator to a log, with all that the log holds beside feedback.

    Args:
        log: N rows.
        vectors: Their embeddings of shape (N, D).
        spec: What the model is to explain; its design may be "auto".
        source: How the embeddings were made.
        config: The settings of the run.
        hidden_layers: As of `EmbeddingRewardModel`.

    Returns:
        The fitted model, whose spec has the design that was chosen.

    Raises:
        ValueError: As `EmbeddingRewardModel.fit`.
    """
    estimator = EmbeddingRewardModel(
        hidden_layers=hidden_layers,
        propensity_design=spec.design,
        estimator=config.estimator,
        polarity=spec.polarity or None,
        misclick_rate=spec.misclick_rate or None,
        labels_ignorable=config.labels_ignorable,
        random_state=config.seed,
    )
    reads = _reads(log, spec.design)
    position = typical_position(log, reads)
    estimator.fit(
        vectors,
        # The estimator takes no empty signal axis: explicit preferences alone get one that is always missing
        log.feedback if log.signals else np.full((len(log), 1), -1, np.int8),
        propensity=log.propensity if reads == "known" else None,
        propensity_features=propensity_features(log, reads, position),
        preference=log.preference,
        sample_weight=log.weight,
        users=log.user_ids,
        sessions=log.session_ids,
        times=log.times,
        groups=log.groups(),
        label_probability=log.label_probability,
    )
    features = log.feature_names if reads == "features" else ()
    design = _design(estimator)
    if design == "features" and not features:  # of the text, which the state shows too
        design = "hidden"
    chosen = replace(spec, design=design, feature_names=features, max_length=source.max_length)
    return EmbeddedRewardModel(estimator, chosen, source, position)


def _reads(log: Log, design: str) -> str:
    """Return the propensity design by which the estimator is given features.

    Where neither co-actions nor labels show what moves a propensity, features of the log are what its owner says that
    propensities read; what can be seen of the text, such as its length, may move the preference too.
    """
    if design != "auto" or not log.signals:
        return design
    if len(log.signals) > 1:
        return design if shows_propensities(log) else "features"
    return "features" if log.feature_names or not labels_choose(log.preference) else "hidden"


def _design(estimator: EmbeddingRewardModel) -> str:
    """One name for the propensity designs of all signals; "constant" is a special case of the others."""
    designs = set(estimator.propensity_designs_)
    return next(iter(designs - {"constant"} or designs or {"constant"}))
