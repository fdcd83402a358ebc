"""Evaluating saved models on files, and reading what is only to be scored."""

import json
from dataclasses import replace

import numpy as np
import pytest

from irm_fast.data import read
from irm_fast.data.rated import read_conversations
from irm_fast.data.read import DataError, Rated
from irm_fast.data.signals import RewardSpec, align
from irm_fast.diagnostics.metrics import paired_difference, reward_metrics
from irm_fast.evaluation.evaluation import evaluate, evaluate_rated
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
    assert got == pytest.approx(reward_metrics(rewards + 1.5, preference.astype(int)), nan_ok=True)
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
    opened, read_file = [], read.read_file
    monkeypatch.setattr(read, "read_file", lambda path: opened.append(path) or read_file(path))
    rows = [row | {"rating": i % 5} for i, row in enumerate(rows_of(make_log(6)))]
    path = write(tmp_path / "rated.jsonl", rows)
    assert evaluate(saved, path)["n"] == 6
    assert opened == [path]


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
