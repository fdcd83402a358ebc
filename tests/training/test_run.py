"""The main job on tiny models and a few steps: what it learns, keeps and refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from irm_fast.evaluation.evaluation import evaluate_log, evaluate_rated
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.passes import Passes
from irm_fast.training.config import EmbeddingTrainConfig, TrainConfig
from irm_fast.training.run import dry_run, train, train_log
from tests.training.training_cases import metrics_of, write_log


def test_learns_and_saves(make_log, make_config):
    config = make_config(epochs=12, propensity_design="auto", estimator="joint")
    log = make_log(160)
    result = train_log(log, config)
    names = {path.name for path in Path(config.output).iterdir()}
    assert {"model.safetensors", "irm_fast.json", "metrics.jsonl", "train.yaml"} <= names
    assert not names & {"checkpoints", "training_args.bin"}

    assert set(result.designs) == {"constant", "hidden"}
    assert result.metrics["nll"] == result.designs[result.design]
    record = json.loads((Path(config.output) / "irm_fast.json").read_text())
    assert record["designs"] == pytest.approx(dict(result.designs))
    assert record["design"] == result.design
    assert record["training"]["epochs"] == 12

    fresh = make_log(60, seed=5)
    good = np.array([turns[-1]["content"].startswith("good") for turns in fresh.messages])
    rewards = score(load(config.output), fresh.messages)
    assert rewards[good].min() > rewards[~good].max()
    np.testing.assert_allclose(rewards, score(result.model, fresh.messages), atol=1e-6)

    rate = 0.5 * 0.6  # of a log in which half the responses please and 0.6 of the users act
    naive = -2 * (rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert evaluate_log(result.model, fresh)["nll"] < naive - 0.2


def test_the_record_says_what_the_settings_stood_for_and_on_which_machine(make_log, tiny_model, tmp_path, monkeypatch):
    write_log(make_log(48), tmp_path / "log.jsonl")
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(
        model=tiny_model, data="log.jsonl", output="run", propensity_design="constant", epochs=1, progress=False
    )
    result = train(config)
    record = json.loads(Path("run/irm_fast.json").read_text())
    given, used = record["training"], record["used"]
    assert (given["batch_size"], given["learning_rate"], given["attn"], given["data"]) == (
        None,
        None,
        "auto",
        "log.jsonl",
    )
    assert (used["batch_size"], used["learning_rate"], used["max_length"]) == (16, 2e-5, result.model.spec.max_length)
    assert (used["attn"], used["compile"], used["liger"]) == (result.attention, False, False)
    assert used["data"] == str(tmp_path / "log.jsonl") and used["output"] == str(tmp_path / "run")
    assert used.keys() == given.keys() and used["epochs"] == given["epochs"] == 1
    assert used["estimator"] == record["estimator"] != "auto"
    assert record["machine"]["cores"] >= 1 and record["machine"]["gpus"] == []
    assert record["versions"]["torch"] == torch.__version__
    assert TrainConfig.load("run/train.yaml").to_dict() == given
    assert "irm_fast.json says" in Path("run/train.yaml").read_text().splitlines()[0]


def test_eval_nll_is_the_marginal_likelihood(make_log, make_config):
    """Whatever the objective, evaluation in the loop, after it, and by hand agree."""
    config = make_config(objective="stratified", stratification="ema", ema_decay=0.5)
    heldout = make_log(13, seed=1)
    weight = np.linspace(0, 2, 13, dtype=np.float32)
    heldout = replace(heldout, weight=weight)
    result = train_log(make_log(), config, heldout=heldout)
    again = evaluate_log(result.model, heldout, Passes(batch_size=4))
    assert again["nll"] == pytest.approx(result.metrics["nll"], rel=1e-5)
    assert again["copy_observed"] == pytest.approx(heldout.feedback[:, 0].mean())

    bias = float(result.model.reward_bias.detach())
    propensity = result.model.propensity_design.bias.detach().double()
    g = torch.sigmoid(torch.from_numpy(score(result.model, heldout.messages)).double() + bias)
    m, f = torch.sigmoid(propensity), torch.from_numpy(heldout.feedback)
    likelihood = g * torch.where(f == 1, m, 1 - m).prod(1) + (1 - g) * (f == 0).all(1)
    expected = -(likelihood.log().numpy() * weight).sum() / weight.sum()
    assert again["nll"] == pytest.approx(expected, rel=1e-5)
    assert again["copy_predicted"] == pytest.approx(float((g * m[0]).mean()), rel=1e-5)


def test_early_stopping_keeps_the_best(make_log, make_config):
    log = make_log(64)
    noise = np.random.default_rng(0).integers(0, 2, log.feedback.shape).astype(np.int8)
    log = replace(log, feedback=noise)  # nothing to learn: the held-out likelihood soon gets worse
    config = make_config(epochs=40, patience=2, learning_rate=1e-2)
    result = train_log(log, config)
    evaluations = [entry["eval_nll"] for entry in metrics_of(config) if "eval_nll" in entry]
    assert len(evaluations) < 40
    assert int(np.argmin(evaluations)) == len(evaluations) - 3
    assert result.metrics["nll"] == min(evaluations)
    _, heldout = log.split(config.validation_fraction, config.seed)
    assert evaluate_log(result.model, heldout)["nll"] == pytest.approx(min(evaluations), rel=1e-5)


def test_explicit_preferences_only(make_log, make_config):
    log = make_log(160, signals=())
    result = train_log(log, make_config(epochs=10, propensity_design="auto", estimator="joint"))
    assert result.design == "constant"
    assert set(result.metrics) == {"nll"}
    assert result.metrics["nll"] < 0.3
    from irm_fast.data.read import Rated

    rated = Rated(log.ids, log.messages, log.preference.astype(float), log.preference, np.full(160, -1))
    assert evaluate_rated(result.model, rated)["auroc"] > 0.99


@pytest.mark.parametrize(("ignorable", "kind"), [(True, "identified"), (False, "not identified")])
def test_labels_fix_the_scale_where_their_choice_is_ignorable(make_log, make_config, ignorable: bool, kind: str):
    config = make_config(epochs=1, propensity_design="constant", labels_ignorable=ignorable)
    found = train_log(make_log(160, signals=()), config).diagnosis
    assert found.kind == kind
    assert any("you say so" in line for line in found.assumed) is ignorable
    assert TrainConfig.load(Path(config.output) / "train.yaml").labels_ignorable is ignorable


def test_misclicks(make_log, make_config):
    log = replace(make_log(), signals=("copy", "dislike"), polarity=(1, -1))
    with pytest.raises(ValueError, match=r"row 'row-\d+' contradicts itself"):
        train_log(log, make_config())
    with pytest.raises(ValueError, match=r"misclick_rate: no signal 'clik'.*copy, dislike"):
        train_log(log, make_config(misclick_rate={"clik": 0.1}))
    result = train_log(log, make_config(misclick_rate={"copy": 0.1}))
    assert result.model.spec.misclick_rate == (0.1, 0.0)
    assert np.isfinite(result.metrics["nll"])


def test_parts_without_evidence(make_log, make_config):
    log = make_log(16)
    _, heldout = log.split(0.25, 0)
    in_heldout = np.isin(log.ids, heldout.ids)
    config = make_config(seed=0)
    silent = replace(log, feedback=np.stack([in_heldout, in_heldout], axis=1).astype(np.int8))
    with pytest.raises(ValueError, match=r"no action and no preference in the training part.*--seed"):
        train_log(silent, config)
    with pytest.raises(ValueError, match=r"weight: no row of the held-out part.*--validation-fraction"):
        train_log(replace(log, weight=(~in_heldout).astype(np.float32)), config)
    with pytest.raises(ValueError, match=r"weight: no row of the training part"):
        train_log(replace(log, weight=in_heldout.astype(np.float32)), config)


def test_run_that_cannot_start_leaves_nothing(make_log, make_config, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        train_log(make_log(), replace(make_config(), model=str(tmp_path / "nowhere")))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_had_is_said_before_anything_is_written(make_log, make_config):
    with pytest.raises(ValueError, match=r"attn: not available: flash_attention_2: its package is not installed"):
        train_log(make_log(), make_config(attn="flash_attention_2"))
    with pytest.raises(ValueError, match=r"fsdp: one process has nothing to shard over; expected several"):
        train_log(make_log(), make_config(fsdp=True))
    assert not any(path.is_file() for path in Path(make_config().output).rglob("*"))


def test_a_held_out_log_is_fitted_to_the_other_before_anything_is_written(make_log, make_config, tmp_path):
    other = make_log(16, ("share", "click", "copy"), seed=1)
    with pytest.warns(UserWarning, match="left out click") as given:
        swapped = train_log(make_log(), make_config("swapped", epochs=1), heldout=other)
    assert sum("left out" in str(warning.message) for warning in given) == 1
    assert {"copy_observed", "share_observed"} < swapped.metrics.keys()
    with pytest.raises(ValueError, match=r"signals: the log lacks copy"):
        train_log(make_log(), make_config("lacking"), heldout=make_log(16, ("share",)))
    assert not (tmp_path / "lacking").exists()


def test_settings_of_another_program_are_refused(make_log):
    config = EmbeddingTrainConfig(embeddings="e.safetensors", data="log.jsonl", output="out")
    with pytest.raises(TypeError, match=r"got EmbeddingTrainConfig; expected TrainConfig.* train\(config\)"):
        train_log(make_log(), config)


def test_several_gpus_in_one_process_are_refused(make_log, make_config, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(RuntimeError, match="torchrun"):
        train_log(make_log(), make_config())


def test_divergence_is_an_error(make_log, make_config):
    steep = {"learning_rate": 100, "head_learning_rate": 100, "optim": "sgd", "trainer": {"max_grad_norm": 0}}
    with pytest.raises(RuntimeError, match="diverged at step"):
        train_log(make_log(160), make_config(validation_fraction=0, **steep))
    with pytest.raises(RuntimeError, match=r"the reward is .*learning_rate"):
        train_log(make_log(), make_config("dead", learning_rate=100))


def test_warnings_name_the_line_that_began_the_run(make_log, make_config, tmp_path):
    log = make_log(40)
    log.feedback[:, 1] = 0
    write_log(log, tmp_path / "log.jsonl")
    config = make_config(data=str(tmp_path / "log.jsonl"), output="")  # which holds the log, and is refused after it
    for run in (train, lambda config: train_log(log, config), dry_run):
        with pytest.warns(UserWarning, match="share: never acts") as said, pytest.raises(ValueError, match="output"):
            run(config)
        assert [one.filename for one in said] == [__file__]
