"""Training on embeddings: checkpoints that equal the estimator, folders that are none, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.features import text_features
from irm_fast.data.read import read_log
from irm_fast.data.writing.manifest import damage
from irm_fast.embeddings import blocks, inputs
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.store import read_embeddings
from irm_fast.embeddings.text_model import EmbeddedRewardModel, propensity_features, typical_position
from irm_fast.embeddings.writing import write_embeddings
from irm_fast.evaluation.evaluation import evaluate
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.record import read_record
from irm_fast.publish.names import CARD
from irm_fast.training.config import EmbeddingTrainConfig, load_config
from irm_fast.training.on_embeddings import train_on_embeddings
from tests.training import embedded_run, forked


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def data(make_log, tmp_path_factory):
    """A log of 400 rows, two signals that depend on one feature each way, and known propensities."""
    path = tmp_path_factory.mktemp("data") / "log.jsonl"
    log, rng = make_log(400), np.random.default_rng(1)
    with path.open("w") as file:
        for i, (question, answer) in enumerate(log.messages):
            row = {"id": f"r{i}", "prompt": question["content"], "completion": answer["content"]}
            row["feedback"] = dict(zip(log.signals, log.feedback[i].tolist(), strict=True))
            row["propensity"] = dict.fromkeys(log.signals, 0.6)
            row["features"] = {"position": int(rng.integers(4))}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def vectors(data, tiny_model, tmp_path_factory):
    """Paths of embeddings of the log by pooling."""
    folder, log = tmp_path_factory.mktemp("vectors"), read_log(data)
    paths = {}
    for pooling in ("last", "mean"):
        paths[pooling] = folder / f"{pooling}.safetensors"
        write_embeddings(log.ids, log.messages, Embedder(tiny_model, pooling=pooling), paths[pooling])
    return paths


@pytest.fixture
def settings(data, vectors, tmp_path):
    """A function that makes settings for a quick training run on embeddings."""

    def make(pooling: str = "last", **more) -> EmbeddingTrainConfig:
        base = {"data": data, "embeddings": vectors[pooling], "output": tmp_path / "out", "hidden_layers": "linear"}
        return load_config(None, **{**base, "propensity_design": "constant", **more})

    return make


@pytest.mark.parametrize("design", ["constant", "hidden", "features", "known"])
def test_checkpoint_equals_the_estimator(settings, vectors, data, tmp_path, design):
    result = train_on_embeddings(settings(propensity_design=design))
    model = result.model
    assert model.is_checkpoint
    assert result.design == design
    saved, log = load(tmp_path / "out"), read_log(data)
    inputs = read_embeddings(vectors["last"], log.ids, log.messages)
    logit = model.estimator.decision_function(inputs)
    assert np.std(logit) > 0.5
    rewards = score(saved, log.messages)
    np.testing.assert_allclose(rewards, logit - model.estimator.intercept_, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "out" / CARD).read_text()
    assert "AutoModelForSequenceClassification" in card and damage(tmp_path / "out") == ""
    assert float(saved.reward_bias.detach()) == pytest.approx(model.estimator.intercept_)
    if design == "hidden":
        features = text_features(log.messages)
        assert model.estimator.predict_propensity(inputs, features).std(0).min() > 0.01
    # Likelihood and action rates: the propensities are those of the estimator too.
    heldout = model.predict(inputs, log)
    metrics = evaluate(tmp_path / "out", data)
    assert metrics["nll"] == pytest.approx(float(heldout.loss.mean()), rel=1e-4)
    own, m = 1 / (1 + np.exp(-heldout.reward[:, None])), 1 / (1 + np.exp(-heldout.propensity))
    assert [metrics[f"{name}_predicted"] for name in log.signals] == pytest.approx((own * m).mean(0).tolist(), rel=1e-4)


@pytest.fixture(scope="module")
def placed(data, tmp_path_factory):
    """The log without features, whose users act in nine of ten rows at position 0 and in three of ten at 9.

    Every tenth row does not say where it was; sessions of four rows each, a minute a row.
    """
    path = tmp_path_factory.mktemp("placed") / "log.jsonl"
    rng = np.random.default_rng(2)
    with path.open("w") as file:
        for i, row in enumerate(map(json.loads, data.read_text().splitlines())):
            place, good = int(rng.integers(10)), row["completion"].startswith("good")
            row["feedback"] = {name: int(good and rng.random() < 0.9 - place / 15) for name in ("copy", "share")}
            context = {"position": None if i % 10 == 0 else place, "session_id": i // 4, "timestamp": 1.7e9 + 60 * i}
            file.write(json.dumps({name: row[name] for name in ("id", "prompt", "completion", "feedback")} | context))
            file.write("\n")
    return path


def test_propensities_read_positions(settings, placed, vectors, tmp_path):
    model = train_on_embeddings(settings(data=placed, propensity_design="hidden", validation_fraction=0)).model
    log, saved = read_log(placed), load(tmp_path / "out")
    assert model.position == saved.position == pytest.approx(np.nanmean(log.positions))
    assert model.estimator.n_propensity_features_ == 6
    inputs = read_embeddings(vectors["last"], log.ids, log.messages)

    def acts(**fields) -> np.ndarray:
        return 1 / (1 + np.exp(-saved.predict(inputs, replace(log, **fields)).propensity))

    first, last = (acts(positions=np.full(400, place)) for place in (0.0, 9.0))
    assert ((first - last).mean(0) > 0.3).all()  # .6 in truth
    # Unknown positions are the mean one, in some rows or in all
    typical = acts(positions=np.full(400, saved.position))
    mixed = acts(positions=np.where(np.arange(400) < 200, np.nan, 9.0))
    np.testing.assert_allclose(mixed, np.where(np.arange(400)[:, None] < 200, typical, last), rtol=1e-5)
    with pytest.warns(UserWarning, match=r"position: the log has none; .* those at 4\.\d+, the mean of the training"):
        np.testing.assert_allclose(acts(positions=None), typical, rtol=1e-5)


def test_a_model_judges_logs_with_and_without_positions(settings, data, placed, tmp_path):
    with_places, without, logs = tmp_path / "out", tmp_path / "bare", {}
    train_on_embeddings(settings(data=placed, propensity_design="auto"))
    train_on_embeddings(settings(propensity_design="auto", output=without))
    assert load(with_places).position == pytest.approx(4.5, abs=0.5) and load(without).position is None
    for model in (with_places, without):
        for log in (data, placed):
            logs[model, log] = evaluate(model, log)["nll"]
            run("diagnose", "--data", log, "--model", model, "--json")
    assert all(0 < nll < 2 for nll in logs.values())
    assert logs[with_places, placed] < logs[without, placed]


def test_what_a_log_knows_reaches_the_fit(settings, placed, monkeypatch):
    seen, fit = {}, EmbeddingRewardModel.fit
    monkeypatch.setattr(
        EmbeddingRewardModel, "fit", lambda *args, **kwargs: seen.update(kwargs) or fit(*args, **kwargs)
    )
    train_on_embeddings(settings(data=placed, propensity_design="constant", validation_fraction=0))
    assert seen["sessions"] == [str(i // 4) for i in range(400)]
    assert seen["times"].tolist() == [1.7e9 + 60 * i for i in range(400)]
    assert seen["propensity_features"] is None


def test_positions_that_are_all_alike_are_not_read(make_log):
    log = make_log(6)
    alike = replace(log, positions=np.array([3.0, np.nan, 3.0, 3.0, np.nan, 3.0]))
    differ = replace(log, positions=np.array([3.0, np.nan, 1.0, np.nan, np.nan, np.nan]))
    assert typical_position(log, "auto") is typical_position(alike, "auto") is None
    assert typical_position(differ, "features") is typical_position(differ, "constant") is None
    assert typical_position(differ, "hidden") == 2.0
    assert propensity_features(differ, "hidden", 2.0)[:, 5].tolist() == [3, 2, 1, 2, 2, 2]


def test_checkpoint_is_an_ordinary_classifier(settings, data, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    result = train_on_embeddings(settings())
    log, folder = read_log(data), tmp_path / "out"
    classifier, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    inputs = tokenizer.apply_chat_template(log.messages[:8], return_tensors="pt", return_dict=True, padding=True)
    with torch.no_grad():
        logits = classifier(**inputs).logits[:, 0]
    np.testing.assert_allclose(logits, score(result.model, log.messages[:8]), rtol=1e-4, atol=1e-4)
    record = read_record(folder)
    assert record["diagnosis"]["kind"]
    assert record["training"]["embeddings"].endswith("last.safetensors")
    assert record["metrics"]["nll"] == pytest.approx(result.metrics["nll"])
    assert record["max_length"] == 256


@pytest.mark.parametrize("more", [{"pooling": "mean"}, {"hidden_layers": "8"}])
def test_other_rewards_are_scored_by_the_same_commands(settings, data, tmp_path, more):
    result = train_on_embeddings(settings(**more))
    assert isinstance(result.model, EmbeddedRewardModel)
    out, scores = tmp_path / "out", tmp_path / "scores.jsonl"
    log = read_log(data)
    run("score", "--model", out, "--data", data, "--out", scores)
    rewards = [json.loads(line)["reward"] for line in scores.read_text().splitlines()]
    vectors, _ = result.model.embedder.embed(log.messages)
    np.testing.assert_allclose(rewards, result.model.estimator.decision_function(vectors), rtol=1e-4, atol=1e-4)
    heldout = result.model.predict(vectors.numpy(), log)
    metrics = json.loads(run("evaluate", "--model", out, "--data", data, "--json").stdout)
    assert metrics["nll"] == pytest.approx(float(heldout.loss.mean()), rel=1e-4)
    rated = tmp_path / "rated.jsonl"
    rows = [{"prompt": q["content"], "completion": a["content"], "rating": len(a["content"])} for q, a in log.messages]
    rated.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert json.loads(run("evaluate", "--model", out, "--data", rated, "--json").stdout)["n"] == 400
    run("diagnose", "--data", data, "--model", out)


def test_commands_from_log_to_scores(data, tiny_model, tmp_path):
    vectors, out = tmp_path / "e.safetensors", tmp_path / "out"
    run("embed", "--data", data, "--model", tiny_model, "--out", vectors)
    command = ["train", "--data", data, "--embeddings", vectors, "--output", out, "--hidden-layers", "linear"]
    trained = run(*command)
    assert "held-out nll" in trained.stdout
    assert "ordinary sequence classifier" in trained.stdout
    assert "identified" in trained.stdout
    assert "holds a finished run; --overwrite" in run(*command, code=2).stderr
    run(*command, "--overwrite")
    run("score", "--model", out, "--data", data, "--out", tmp_path / "scores.jsonl")


def test_lower_rewards(settings, data, tmp_path):
    """Below the rewards by 1.28 deviations, in a checkpoint and in a folder that is none; refused without intervals."""
    log = read_log(data)
    for pooling in ("last", "mean"):
        result = train_on_embeddings(settings(pooling, output=tmp_path / pooling))
        rewards, lower = score(load(tmp_path / pooling), log.messages, lower=0.1)
        np.testing.assert_array_equal(rewards, score(load(tmp_path / pooling), log.messages))
        ends = result.model.estimator.predict_interval(result.model.embedder.embed(log.messages)[0].numpy(), 0.8)
        np.testing.assert_allclose(2 * (rewards - lower), ends[1] - ends[0], rtol=1e-3, atol=1e-4)

    out = tmp_path / "scores.jsonl"
    run("score", "--model", tmp_path / "mean", "--data", data, "--out", out, "--lower", 0.1)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(line.keys() == {"id", "reward", "reward_lower"} for line in lines)
    np.testing.assert_allclose([line["reward_lower"] for line in lines], lower, rtol=1e-6)
    for value in (0, 0.5, 10):
        with pytest.raises(ValueError, match=f"lower: got {value}.*expected a probability above 0 and below 0.5"):
            score(load(tmp_path / "mean"), log.messages, lower=value)
    train_on_embeddings(settings(output=tmp_path / "net", hidden_layers="8"))
    with pytest.raises(ValueError, match="the reward is a network"):
        score(load(tmp_path / "net"), log.messages, lower=0.1)


def test_a_better_ranking_than_chance(settings, data):
    """The text says which responses are good; embeddings of a random model hold some of it."""
    result = train_on_embeddings(settings(propensity_design="auto", hidden_layers="auto"))
    log = read_log(data)
    good = np.array([answer["content"].startswith("good") for _, answer in log.messages])
    rewards = score(result.model, log.messages)
    assert (rewards[good][:, None] > rewards[~good]).mean() > 0.9


def test_explicit_preferences_alone(data, vectors, settings, tmp_path):
    log = read_log(data)
    path = tmp_path / "labelled.jsonl"
    with path.open("w") as file:
        for name, (question, answer) in zip(log.ids, log.messages, strict=True):
            row = {"id": name, "prompt": question["content"], "completion": answer["content"]}
            file.write(json.dumps({**row, "preference": int(answer["content"].startswith("good"))}) + "\n")
    result = train_on_embeddings(settings(data=path))
    assert result.model.spec.signals == ()
    assert result.metrics["nll"] < 0.6
    assert evaluate(tmp_path / "out", path)["nll"] < 0.6


def test_without_a_held_out_part(settings):
    result = train_on_embeddings(settings(validation_fraction=0))
    assert result.metrics == {}
    assert result.diagnosis is not None


def test_moved_and_changed_models(settings, tiny_model, tmp_path, save_llama, save_tokenizer):
    import shutil

    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(tiny_model, moved)
    save_llama(other, save_tokenizer(other), seed=3)
    assert train_on_embeddings(settings(model=moved)).model.is_checkpoint
    for name, words in ((other, "not those that made the embeddings"), (tmp_path / "gone", "no such folder")):
        with pytest.raises(ValueError, match=words):
            train_on_embeddings(settings(model=name, output=tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_two_processes_train_on_a_folder_of_shards(data, tiny_model, tmp_path, settings, monkeypatch):
    """The log's rows lie in another order than those of the files, and its held-out rows among the others."""
    log, shards = read_log(data), tmp_path / "shards"
    order = np.random.default_rng(0).permutation(len(log))
    mixed = log.subset(order)
    write_embeddings(mixed.ids, mixed.messages, Embedder(tiny_model), shards, shard_rows=150)
    monkeypatch.setattr(blocks, "ROWS", embedded_run.BLOCK)
    monkeypatch.setattr(inputs, "HELD", 0)
    alone = train_on_embeddings(settings(embeddings=f"{shards}/*.safetensors", propensity_design="auto"))
    forked.run((str(data), str(shards), str(tmp_path / "two")), 2, tmp_path, embedded_run.main)
    one, two = (load(tmp_path / name) for name in ("out", "two"))
    np.testing.assert_array_equal(score(two, log.messages), score(one, log.messages))
    assert np.std(score(two, log.messages)) > 0.1
    assert read_record(tmp_path / "two")["metrics"] == alone.metrics


def test_embeddings_of_another_log(settings, data, tmp_path):
    changed = tmp_path / "changed.jsonl"
    changed.write_text(data.read_text().replace("question 7 ", "question seven ", 1))
    with pytest.raises(ValueError, match=r"no embedding of row 'r7'.*1 of 400"):
        train_on_embeddings(settings(data=changed))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"epochs": 5}, "epochs: got 5, which has no effect with embeddings"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"hidden_layers": "wide"}, "hidden_layers: got 'wide'; expected auto, linear, or widths"),
        ({"hidden_layers": "0"}, "hidden_layers: got '0'"),
        ({"embeddings": "", "model": "m"}, "hidden_layers: got 'linear', which has no effect without embeddings"),
    ],
)
def test_settings_without_effect_are_refused(settings, more, words):
    with pytest.raises(ValueError, match=words):
        settings(**more)


def test_widths(settings):
    assert [settings(hidden_layers=given).hidden_layers for given in (128, "128,64", [128, 64], "auto")] == [
        "128",
        "128,64",
        "128,64",
        "auto",
    ]
    assert replace(settings()).model == ""


@pytest.fixture
def one_signal(data, vectors, tmp_path):
    """A function that writes the log with the signal copy alone, and trains on it with further settings."""

    def make(change=lambda row: row, **more):
        rows = [json.loads(line) for line in data.read_text().splitlines()]
        rows = [change({**row, "propensity": None, "feedback": {"copy": row["feedback"]["copy"]}}) for row in rows]
        path = tmp_path / "one.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        base = {"data": path, "embeddings": vectors["last"], "hidden_layers": "linear", "overwrite": True}
        return load_config(None, **{**base, "output": tmp_path / "out", **more})

    return make


def without_features(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "features"}


def test_features_of_one_signal_are_those_that_the_log_names(one_signal, tmp_path):
    """Without a label nothing chooses: what can be seen of the text is no assumption that anybody made."""
    with pytest.warns(UserWarning, match="the propensity features alone"):
        named = train_on_embeddings(one_signal())
    assert named.design == "features" and named.model.spec.feature_names == ("position",)
    assert named.model.estimator.n_propensity_features_ == 1
    saved, log = load(tmp_path / "out"), read_log(tmp_path / "one.jsonl")
    assert evaluate(tmp_path / "out", tmp_path / "one.jsonl")["n"] == len(log) and saved.spec == named.model.spec

    with pytest.raises(ValueError, match="is the only signal"):
        train_on_embeddings(one_signal(without_features))
    nothing = train_on_embeddings(one_signal(without_features, propensity_design="constant"))
    assert nothing.design == "constant" and nothing.model.estimator.n_propensity_features_ == 0


def test_features_of_signals_that_hardly_act_together_are_those_that_the_log_names(data, settings, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        if all(row["feedback"].values()):
            row["feedback"] |= {"share": 0}
    path = tmp_path / "apart.jsonl"
    for change, design, read in ((lambda row: row, "features", 1), (without_features, "constant", 0)):
        path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))
        with pytest.warns(UserWarning, match=r"fewer than 10 co-actions \((copy|signal 1) 0, (share|signal 2) 0\)"):
            found = train_on_embeddings(settings(data=path, overwrite=True, propensity_design="auto"))
        assert found.design == design and found.model.estimator.n_propensity_features_ == read


def test_labels_are_drawn_filled_in_and_choose(one_signal, tmp_path):
    """The whole way: train, draw rows to have rated, rate them, merge, train again."""
    first = train_on_embeddings(one_signal(without_features, propensity_design="constant"))
    assert first.diagnosis.kind == "not identified"
    options = ["--data", tmp_path / "one.jsonl", "--model", tmp_path / "out", "--out", tmp_path / "labels.jsonl"]
    shown = run("label", "--next", 80, *options).stdout
    assert "80 of 400 rows" in shown and "--labels-ignorable" in shown
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    chances = np.array([row["label_probability"] for row in rows])
    assert chances.std() > 0.01 and chances.min() >= 0.2 * 80 / 400 - 1e-9 and chances.max() <= 1

    filled = [row | {"preference": int(row["completion"].startswith("good"))} for row in rows]
    filled[70:] = rows[70:]  # ten rows stay without a rating
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in filled))
    merge = ["--merge", tmp_path / "rated.jsonl", "--data", tmp_path / "one.jsonl", "--out", tmp_path / "merged.jsonl"]
    shown = run("label", *merge).stdout
    assert "70 ratings merged into 400 rows" in shown and "10 rows" in shown
    merged, log = read_log(tmp_path / "merged.jsonl", misclick=True), read_log(tmp_path / "one.jsonl")
    assert (merged.ids, merged.messages) == (log.ids, log.messages) and (merged.feedback == log.feedback).all()
    assert (merged.preference >= 0).sum() == 70
    drawn = {row["id"]: row["label_probability"] for row in rows[:70]}
    assert {merged.ids[i]: merged.label_probability[i] for i in np.flatnonzero(merged.preference >= 0)} == drawn

    def train(**more: object):
        given = {"data": tmp_path / "merged.jsonl", "contradictions": "drop"}
        return train_on_embeddings(one_signal(without_features, **given, **more))

    again = train(labels_ignorable=True)
    assert again.model.estimator.labels_ignorable
    assert again.diagnosis.kind == again.model.estimator.diagnosis_.kind == "identified"
    assert "by the explicit labels" in again.diagnosis.verdict
    assert train().diagnosis.kind == "not identified"
    options[1] = tmp_path / "merged.jsonl"
    left = run("label", "--next", 331, *options, "--overwrite", code=2)
    assert "next: got 331; expected 1 to 330, the rows without a preference" in left.stderr


def test_contradictory_rows_are_left_out_on_demand(one_signal, tmp_path):
    def change(row: dict) -> dict:
        contradicts = row["id"] in ("r0", "r1", "r2", "r3") and row["feedback"]["copy"]
        return row | ({"preference": 0} if contradicts else {})

    with pytest.raises(ValueError, match="contradict each other"):
        train_on_embeddings(one_signal(change, propensity_design="constant"))
    with pytest.warns(UserWarning, match=r"left out \d of 400 rows that contradict themselves; if the labels are"):
        result = train_on_embeddings(one_signal(change, propensity_design="constant", contradictions="drop"))
    assert (tmp_path / "out" / "irm_fast.json").exists() and result.design == "constant"


def test_the_run_leaves_a_page(settings):
    config = settings()
    train_on_embeddings(config)
    page = (Path(config.output) / "report.html").read_text(encoding="utf-8")
    for heading in ("Rewards of rows that acted", "How likely pleased users act", "What a policy would exploit"):
        assert heading in page
    assert "a fit on embeddings is solved at once" in page and "Held-out loss" not in page
    assert page.count("<bdi") >= 20  # questions and answers, the best and the worst
