"""Evaluating saved models on files, and reading what is only to be scored."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as judge
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.conversations import read_conversations
from irm_fast.data.read import DataError, Rated
from irm_fast.data.reading import sources
from irm_fast.data.signals import RewardSpec, align
from irm_fast.diagnostics.metrics import paired_difference, reward_metrics
from irm_fast.evaluation.evaluation import evaluate, evaluate_rated, rated_metrics
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.reward_model import ImplicitRewardModel


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """A saved model of two signals, untrained, with a bias that shows."""
    import torch

    torch.manual_seed(0)
    spec = RewardSpec("constant", ("copy", "share"), (1, 1), (0.0, 0.0))
    model = ImplicitRewardModel.from_backbone(tiny_model, spec)
    torch.nn.init.constant_(model.reward_bias, 1.5)
    folder = tmp_path_factory.mktemp("saved")
    model.save(folder)
    return folder


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(log):
    for name, messages in zip(log.ids, log.messages, strict=True):
        yield {"id": name, "prompt": messages[0]["content"], "completion": messages[1]["content"]}


def test_evaluate_rated_file(saved, make_log, tmp_path):
    log = make_log(20)
    rows = [row | {"rating": i % 5} for i, row in enumerate(rows_of(log))]
    got = evaluate(saved, write(tmp_path / "rated.jsonl", rows))
    rewards = score(load(saved), log.messages)
    preference = np.arange(20) % 5 > 2
    of_metrics = reward_metrics(rewards + 1.5, preference.astype(int))
    assert {name: got[name] for name in of_metrics} == pytest.approx(of_metrics, nan_ok=True)
    assert got.keys() - of_metrics.keys() == {"auroc_low", "auroc_high", "auroc_length_alone"}
    assert got["auroc_low"] <= got["auroc"] <= got["auroc_high"]
    assert got["mae"] != pytest.approx(reward_metrics(rewards, preference.astype(int))["mae"], abs=0.01)


def test_evaluate_log_file(saved, make_log, tmp_path):
    log = make_log(20)
    feedback = [dict(zip(("share", "copy"), map(int, row), strict=True)) for row in log.feedback[:, ::-1]]
    rows = [row | {"feedback": given} for row, given in zip(rows_of(log), feedback, strict=True)]
    got = evaluate(saved, write(tmp_path / "log.jsonl", rows))
    assert got["n"] == 20
    assert got["copy_observed"] == pytest.approx(log.feedback[:, 0].mean())
    assert got["share_observed"] == pytest.approx(log.feedback[:, 1].mean())

    rows = [row | {"feedback": {"copy": given["copy"]}} for row, given in zip(rows, feedback, strict=True)]
    with pytest.raises(ValueError, match="signals: the log lacks share; it has copy"):
        evaluate(saved, write(tmp_path / "less.jsonl", rows))


def test_evaluate_tells_logs_from_ratings(saved, make_log, tmp_path):
    rows = list(rows_of(make_log(6)))
    label, action = {"preference": 1}, {"feedback": {"copy": 1, "share": 0}}
    mixed = [row | (label if i < 5 else action) for i, row in enumerate(rows)]
    mixed[0] = rows[0] | {"feedback": {"copy": 0, "share": 0}}
    assert evaluate(saved, write(tmp_path / "late.jsonl", mixed[1:] + mixed[:1]))["n"] == 6
    weighted = [row | {"preference": i % 2, "weight": 2.0} for i, row in enumerate(rows)]
    with pytest.raises(ValueError, match="the log lacks copy, share"):
        evaluate(saved, write(tmp_path / "weighted.jsonl", weighted))
    with pytest.raises(DataError, match=r"read as a log, as row 1 has 'feedback'"):
        evaluate(saved, write(tmp_path / "both.jsonl", [row | action | {"rating": 1} for row in rows]))
    with pytest.raises(DataError, match=r"read as rated responses, as no row has feedback"):
        evaluate(saved, write(tmp_path / "typo.jsonl", [row | {"feedbak": 1} for row in rows]))
    with pytest.raises(ValueError, match="all 6 rows are preferred"):
        evaluate(saved, write(tmp_path / "liked.jsonl", [row | label for row in rows]))


def test_evaluate_reads_a_file_once(saved, make_log, tmp_path, monkeypatch):
    opened, read_stream = [], sources.read_stream
    monkeypatch.setattr(sources, "read_stream", lambda file: opened.append(file.name) or read_stream(file))
    rows = [row | {"rating": i % 5} for i, row in enumerate(rows_of(make_log(6)))]
    path = write(tmp_path / "rated.jsonl", rows)
    assert evaluate(saved, path)["n"] == 6
    assert opened == [str(path)]


def test_align_leaves_out_further_signals(make_log):
    log = make_log(4)
    with pytest.warns(UserWarning, match="left out copy"):
        got = align(log, RewardSpec("constant", ("share",), (1,), (0.0,)))
    assert (got.feedback == log.feedback[:, 1:]).all()
    with (
        pytest.warns(UserWarning, match="left out copy, share"),
        pytest.raises(ValueError, match="no preference in 4 rows"),
    ):
        align(log, RewardSpec("constant"))
    disliked = RewardSpec("constant", ("share", "copy"), (1, -1), (0.0, 0.0))
    with pytest.raises(ValueError, match="'row-0' contradicts itself"):
        align(replace(log, feedback=np.ones_like(log.feedback)), disliked)


def test_paired_difference():
    rng = np.random.default_rng(0)
    one, other, ones = rng.random(50), rng.random(50), np.ones(50)
    mean, error = paired_difference(one, other, ones)
    assert mean == pytest.approx((one - other).mean())
    assert error == pytest.approx((one - other).std(ddof=1) / 50**0.5)
    weight = np.repeat([1.0, 0.0], 25)  # rows without weight do not count
    mean, error = paired_difference(one * weight, other * weight, weight)
    assert mean == pytest.approx((one - other)[:25].mean())
    assert error == pytest.approx((one - other)[:25].std(ddof=1) / 5, rel=0.02)
    assert paired_difference(one[:1], other[:1], ones[:1])[1] == np.inf


def test_pairs_are_counted(saved, make_log):
    log = make_log(8)
    rated = Rated(log.ids, log.messages, np.arange(8.0), np.arange(8) % 2, np.arange(8) // 2)
    assert 0 <= evaluate_rated(load(saved), rated)["pair_accuracy"] <= 1


def rated_of(log, preference, *, users=None, models=None, prompts=None, pair=None) -> Rated:
    """Rows of a log with these preferences, and other prompts if any are given."""
    rows = len(preference)
    messages = [[{"role": "user", "content": "a"} if prompts is None else prompts[i], log[i]] for i in range(rows)]
    pair = np.full(rows, -1) if pair is None else pair
    names = [str(i) for i in range(rows)]
    return Rated(names, messages, preference.astype(float), preference, pair, users, models)


def test_rated_metrics_tell_users_prompts_models_and_length_apart():
    """A reward that knows the user alone: a good pooled AUROC, chance within users. Length ranks within prompts."""
    rng = np.random.default_rng(0)
    users, models = np.repeat(np.arange(100), 20), np.tile(np.arange(4), 500)
    generous = rng.random(100)[users]
    preference = (rng.random(2000) < 0.8 * generous + 0.05 * models).astype(int)
    answers = [
        {"role": "assistant", "content": "a" * (1 + 2 * int(level) + int(rng.integers(3)))} for level in preference
    ]
    prompts = [{"role": "user", "content": f"prompt {number}"} for number in rng.integers(0, 400, 2000)]
    rated = rated_of(
        answers, preference, users=[f"u{i}" for i in users], models=[f"m{i}" for i in models], prompts=prompts
    )
    got = rated_metrics(generous + rng.normal(size=2000) / 1e3, rated)
    assert got["auroc"] > 0.72 and got["auroc_within_user"] == pytest.approx(0.5, abs=0.03)
    assert got["auroc_within_prompt"] == pytest.approx(got["auroc"], abs=0.04)
    assert got["auroc_user_alone"] == pytest.approx(got["auroc"], abs=0.04)
    assert got["auroc_model_alone"] == pytest.approx(0.56, abs=0.03)
    lengths = np.array([len(answer["content"]) for answer in answers])
    assert got["auroc_length_alone"] == pytest.approx(judge.roc_auc_score(preference, lengths))
    assert got["auroc_high"] - got["auroc_low"] > 0.03  # of 100 users, not of 2,000 rows
    assert "pair_accuracy_low" not in got


def test_rated_metrics_of_pairs():
    """Prompts are the groups. The model alone: of pairs of one model half, of the others as often as it wins."""
    preference, pair = np.tile([1, 0], 200), np.repeat(np.arange(200), 2)
    models = ["good", "bad"] * 100 + ["good", "good"] * 100
    answers = [{"role": "assistant", "content": "a" * (2 - i % 2)} for i in range(400)]
    prompts = [{"role": "user", "content": str(number)} for number in pair]
    got = rated_metrics(
        np.tile([1.0, 0.0, 0.0, 1.0], 100), rated_of(answers, preference, models=models, prompts=prompts, pair=pair)
    )
    assert (
        got["pair_accuracy"] == 0.5 and 0.4 < got["pair_accuracy_low"] < 0.47 < 0.53 < got["pair_accuracy_high"] < 0.6
    )
    assert got["pair_accuracy_model_alone"] == 0.75 and got["pair_accuracy_length_alone"] == 1
    assert got["auroc_within_prompt"] == 0.5 and "auroc_within_user" not in got and "auroc_user_alone" not in got


def test_evaluate_reads_users_and_models(saved, make_log, tmp_path):
    rows = [
        row | {"rating": i % 5, "user_id": f"u{i % 3}", "model": f"m{i % 2}"}
        for i, row in enumerate(rows_of(make_log(30)))
    ]
    got = evaluate(saved, write(tmp_path / "rated.jsonl", rows))
    assert {"auroc_within_user", "auroc_user_alone", "auroc_model_alone"} <= got.keys()
    shown = CliRunner().invoke(app, ["evaluate", "--model", str(saved), "--data", str(tmp_path / "rated.jsonl")]).stdout
    line = next(line for line in shown.splitlines() if line.startswith("auroc "))
    assert line.endswith(f"  {got['auroc']:.4f}  90% interval {got['auroc_low']:.4f} to {got['auroc_high']:.4f}")
    assert "auroc_low" not in shown


def test_a_model_trained_end_to_end_has_no_lower_rewards(saved, make_log):
    with pytest.raises(ValueError, match=r"lower: the model was trained end to end.*irm-fast train --embeddings"):
        score(load(saved), make_log(2).messages, lower=0.1)


def test_score_does_not_depend_on_batches(saved, make_log):
    model, messages = load(saved), make_log(11).messages
    one = np.concatenate([score(model, [row]) for row in messages])
    np.testing.assert_allclose(score(model, messages, batch_size=4), one, atol=1e-5)
    assert score(model, []).shape == (0,)


def test_align_reorders(make_log):
    log = replace(make_log(4), propensity=np.tile(np.float32([0.1, 0.2]), (4, 1)))
    spec = RewardSpec("known", ("share", "copy"), (1, 1), (0.0, 0.0))
    got = align(log, spec)
    assert got.signals == ("share", "copy")
    assert (got.feedback == log.feedback[:, ::-1]).all()
    assert got.propensity[0].tolist() == pytest.approx([0.2, 0.1])


def test_read_conversations(tmp_path):
    rows = [
        {"question": "a", "answer": "b", "anything": 1},
        {"id": "x", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]},
        {"chosen": "\n\nHuman: a\n\nAssistant: d", "rejected": "\n\nHuman: a\n\nAssistant: e"},
    ]
    names, conversations = read_conversations(write(tmp_path / "bare.jsonl", rows))
    assert len(set(names)) == 4
    assert names[:2] == ["row-1", "x"]
    assert [turns[-1]["content"] for turns in conversations] == ["b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        ([], ["bare.jsonl", "empty"]),
        ([{"prompt": "a"}], ["bare.jsonl:1", "completion"]),
        ([{"prompt": "a", "completion": " "}], ["bare.jsonl:1", "completion", "empty"]),
        ([{"id": "x", "prompt": "a", "completion": "b"}] * 2, ["bare.jsonl:2", "id", "'x'"]),
    ],
)
def test_unreadable_conversations(tmp_path, rows, fragments):
    with pytest.raises(DataError) as error:
        read_conversations(write(tmp_path / "bare.jsonl", rows))
    assert all(fragment in str(error.value) for fragment in fragments), error.value
