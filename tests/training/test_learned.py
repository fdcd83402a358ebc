"""A dead reward is an error; one that is not better than constant rates says so wherever it is spoken of."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from irm_fast.models.heads import Heads
from irm_fast.training.run import train_log
from tests.training.training_cases import metrics_of


def record_of(config) -> dict:
    return json.loads((Path(config.output) / "irm_fast.json").read_text())


def kill_head(monkeypatch, value: float) -> None:
    """Make the reward of every row this value."""
    logits = Heads.logits

    def dead(self, *args, **kwargs):
        reward, propensity = logits(self, *args, **kwargs)
        return type(logits(self, *args, **kwargs))(torch.full_like(reward, value), propensity)

    monkeypatch.setattr(Heads, "logits", dead)


@pytest.mark.parametrize("value", [0.0, -0.3574, 444.7])
@pytest.mark.parametrize("heldout", [0, 0.25])
def test_a_dead_reward_is_an_error(make_log, make_config, monkeypatch, value, heldout):
    kill_head(monkeypatch, value)
    config = make_config(validation_fraction=heldout, epochs=1)
    with pytest.raises(RuntimeError, match=r"the reward is .* rows.*Lower learning_rate \(0\.001\).*max_len"):
        train_log(make_log(), config)
    assert not (Path(config.output) / "irm_fast.json").exists()


def test_a_model_that_learned_nothing_says_so(make_log, make_config):
    """Feedback that nothing in the text foretells."""
    rng = np.random.default_rng(4)
    log = make_log(160)
    log = replace(log, feedback=rng.integers(0, 2, log.feedback.shape).astype(np.int8))
    config = make_config(epochs=1, validation_fraction=0.4)
    result = train_log(log, config)
    gain, error = result.learned["gain_over_constant"], result.learned["gain_over_constant_error"]
    assert gain < 1.645 * error and 0 < error < 0.1
    assert (
        result.learned["learned"] == record_of(config)["learned"] == metrics_of(config)[-1]["learned"] == "not learned"
    )
    assert "not learned: it foretells actions no better than constant rates do" in result.diagnosis.verdict
    assert "not learned" in result.diagnosis.summary()


def test_a_model_that_learned_says_so(make_log, make_config):
    config = make_config(epochs=4, validation_fraction=0.4, learning_rate=3e-3)
    result = train_log(make_log(160), config)
    assert result.learned["gain_over_constant"] > 2 * result.learned["gain_over_constant_error"]
    assert result.learned["learned"] == record_of(config)["learned"] == metrics_of(config)[-1]["learned"] == "learned"
    assert "not learned" not in result.diagnosis.summary()


def test_without_heldout_rows_it_is_not_tested(make_log, make_config):
    config = make_config(epochs=1, validation_fraction=0)
    result = train_log(make_log(), config)
    assert (
        result.learned["learned"] == record_of(config)["learned"] == metrics_of(config)[-1]["learned"] == "not tested"
    )
    assert "not tested on held-out rows whether it was learned" in result.diagnosis.summary()


def test_preferences_alone_are_tested_by_their_labels(make_log, make_config):
    config = make_config(epochs=4, validation_fraction=0.4, learning_rate=3e-3)
    result = train_log(make_log(160, signals=()), config)
    assert result.learned["learned"] == "learned" and result.learned["gain_over_constant"] > 0.1


@pytest.mark.parametrize("known", [1e-30, 0.02])
def test_known_propensities_that_the_log_contradicts_are_told(make_log, make_config, known):
    log = make_log(160)
    log = replace(log, propensity=np.full(log.feedback.shape, known, np.float32))
    with pytest.warns(UserWarning, match=r"known': .* acts in .*; its known propensities there allow .* will be wrong"):
        result = train_log(log, make_config(epochs=1, propensity_design="known"))
    assert result.diagnosis.kind == "contradicted" and "identified" not in result.diagnosis.verdict


def test_weights_that_overflow_are_refused(make_log, make_config):
    log = make_log()
    weight = np.ones(48, np.float32)
    weight[7] = 3e38
    with pytest.raises(ValueError, match=r"weight: got 3e\+38 in row .row-7. .*; expected at most 1e\+09"):
        train_log(replace(log, weight=weight), make_config(validation_fraction=0))


def test_rows_of_the_same_tokens_are_refused(make_log, make_config):
    config = make_config(max_length=1)
    with pytest.raises(ValueError, match="max_length: got 1, and all 36 rows are the same 1 tokens"):
        train_log(make_log(), config)
    assert not Path(config.output).exists()
