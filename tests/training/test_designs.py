"""Propensity designs and signals: which are tried, which is chosen, and what a log must have for them."""

from dataclasses import replace

import numpy as np
import pytest

from irm_fast.evaluation.evaluation import evaluate_log
from irm_fast.models.backbone import load_backbone
from irm_fast.models.tokens import encode
from irm_fast.training import designs
from irm_fast.training.run import train_log


def test_hidden_must_be_better_beyond_noise(make_log, make_config, monkeypatch):
    chosen = {}
    for gain, error in [(0.2, 0.1), (0.2, 0.3), (-0.2, 0.1)]:
        monkeypatch.setattr(designs, "paired_difference", lambda *losses, got=(gain, error): got)
        config = make_config(f"{gain}-{error}", propensity_design="auto", estimator="joint", epochs=1)
        chosen[gain, error] = train_log(make_log(), config).design
    assert list(chosen.values()) == ["hidden", "constant", "constant"]


def test_losses_of_the_kept_model(make_log, make_config, monkeypatch):
    """What designs are compared by is the held-out likelihood that is reported."""
    seen = []
    monkeypatch.setattr(designs, "paired_difference", lambda *losses: seen.append(losses) or (0.0, 1.0))
    result = train_log(make_log(), make_config(propensity_design="auto", estimator="joint"))
    constant, hidden, weight = seen[0]
    assert constant.sum() / weight.sum() == pytest.approx(result.designs["constant"], rel=1e-5)
    assert hidden.sum() / weight.sum() == pytest.approx(result.designs["hidden"], rel=1e-5)


def test_known_propensities(make_log, make_config):
    log = make_log(40)
    with pytest.raises(ValueError, match=r"propensity\.copy.*'row-0'.*known"):
        train_log(log, make_config(propensity_design="known"))
    given = np.full(log.feedback.shape, 0.6, np.float32)
    given[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"propensity\.share.*'row-3'.*1 lack"):
        train_log(replace(log, propensity=given), make_config(propensity_design="known"))
    feedback = log.feedback.copy()
    feedback[3, 1] = -1
    log = replace(log, feedback=feedback, propensity=given)
    assert np.isfinite(train_log(log, make_config(propensity_design="known")).metrics["nll"])


def test_features(make_log, make_config):
    with pytest.raises(ValueError, match="features"):
        train_log(make_log(), make_config(propensity_design="features"))
    log = make_log(signals=("copy",))
    features = np.random.default_rng(0).normal(5, 3, (len(log), 2)).astype(np.float32)
    log = replace(log, features=features, feature_names=("length", "hour"))
    with pytest.warns(UserWarning, match=r"features.*not identified without assuming.*length, hour only"):
        result = train_log(log, make_config(propensity_design="features"))
    swapped = replace(log, features=features[:, ::-1], feature_names=("hour", "length"))
    assert evaluate_log(result.model, swapped) == evaluate_log(result.model, log)
    with pytest.raises(ValueError, match=r"features: the log has none"):
        evaluate_log(result.model, make_log(signals=("copy",)))
    with pytest.raises(ValueError, match=r"signals: the log lacks copy.*has share.*trained on copy"):
        evaluate_log(result.model, make_log(signals=("share",)))


def test_one_signal_with_hidden_propensity_warns(make_log, make_config):
    with pytest.warns(UserWarning, match=r"'hidden'.*not identified without assuming that the fit split"):
        train_log(make_log(signals=("copy",)), make_config(propensity_design="hidden", epochs=1))


def test_signal_that_never_acts_is_left_out(make_log, make_config):
    log = make_log(160)
    feedback = log.feedback.copy()
    feedback[:, 0] = 0
    dead = replace(log, feedback=feedback, propensity=np.full(feedback.shape, 0.6, np.float32))
    config = make_config(propensity_design="constant", misclick_rate={"copy": 0.1})
    with pytest.warns(UserWarning, match="copy: never acts"):
        result = train_log(dead, config)
    assert result.design == "constant"
    assert not set(result.designs) - {"constant"}
    assert result.model.spec.signals == ("share",)
    assert result.diagnosis.kind == "not identified"
    with pytest.warns(UserWarning, match="left out copy"):
        assert evaluate_log(result.model, dead)["share_observed"] == pytest.approx(feedback[:, 1].mean())
    with pytest.warns(UserWarning, match="act in the same rows"):
        twice = replace(log, feedback=log.feedback[:, [0, 0]])
        train_log(twice, make_config("twice", epochs=1), heldout=twice)


def test_signals_of_dropped_rows_alone_are_left_out(make_log, make_config):
    log = make_log(60)
    _, tokenizer = load_backbone(make_config().model)
    lengths = np.array([len(row) for row in encode(tokenizer, log.messages, 1000)[0]])
    limit = int(np.quantile(lengths, 0.7))
    log.feedback[lengths <= limit, 1] = 0
    with pytest.warns(UserWarning, match="share: never acts"):
        result = train_log(log, make_config(epochs=1, max_length=limit, overlong="drop"))
    assert result.model.spec.signals == ("copy",)
