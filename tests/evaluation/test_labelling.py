"""Rows to have rated: probabilities that are right, and files that come back as a log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data import read
from irm_fast.data.declarations import Declarations
from irm_fast.data.log import Log
from irm_fast.data.read import DataError, read_log
from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation import scoring
from irm_fast.evaluation.labelling import draw, inclusion_probabilities, rows_to_label, write_labels
from irm_fast.models.passes import Passes
from irm_fast.models.reward_model import ImplicitRewardModel


def embedded(apart: dict[str, float]) -> EmbeddedRewardModel:
    """A model whose candidates disagree by these numbers, by the text of the response."""
    vectors = SimpleNamespace(
        embed=lambda conversations, batch_size: (
            torch.tensor([[apart[turns[-1]["content"]]] for turns in conversations]),
            0,
        )
    )
    estimator = SimpleNamespace(predict_disagreement=lambda x: x[:, 0])
    model = EmbeddedRewardModel(estimator, RewardSpec("constant"), SimpleNamespace())
    model.__dict__["embedder"] = vectors
    return model


@pytest.fixture
def log(make_log) -> Log:
    """Ten rows with the responses 0 to 9; row 2 has a preference, row 3 the weight 0."""
    log = make_log(10)
    messages = [[turns[0], {"role": "assistant", "content": str(i)}] for i, turns in enumerate(log.messages)]
    preference = np.where(np.arange(10) == 2, 1, -1).astype(np.int8)
    weight = np.where(np.arange(10) == 3, 0, 1).astype(np.float32)
    return replace(log, messages=messages, preference=preference, weight=weight)


def test_probabilities_have_a_floor_a_ceiling_and_the_right_sum() -> None:
    apart = np.array([0, 0, 1, 3, 4])
    got = inclusion_probabilities(apart, 2)
    assert got == pytest.approx((apart + 0.4) / 10 * 2)  # the floor: a quarter of the mean 1.6
    assert got.min() == pytest.approx(0.2 * 2 / 5)
    # 8.25 of 9.25 would be 1.8 of 2: one row for certain, the rest shared as before
    steep = inclusion_probabilities(np.array([0, 0, 0, 0, 1000.0]), 2)
    assert steep.tolist() == pytest.approx([0.25] * 4 + [1])
    assert inclusion_probabilities(np.zeros(8), 2).tolist() == [0.25] * 8
    assert inclusion_probabilities(apart, 5).tolist() == [1] * 5
    rng = np.random.default_rng(0)
    for count in (1, 50, 199):
        many = inclusion_probabilities(rng.exponential(size=200) ** 4, count)
        assert many.sum() == pytest.approx(count) and many.max() <= 1 and many.min() >= 0.2 * count / 200 - 1e-12


def test_every_row_is_drawn_as_often_as_its_probability_says() -> None:
    probability = inclusion_probabilities(np.arange(12.0) ** 2, 5)
    assert (probability == 1).sum() == 1
    drawn = np.zeros(12)
    for seed in range(4000):
        rows = draw(probability, seed)
        assert len(set(rows.tolist())) == 5
        drawn[rows] += 1
    error = np.sqrt(probability * (1 - probability) / 4000)
    assert (np.abs(drawn / 4000 - probability) <= 4 * error).all()
    assert draw(probability, 3).tolist() == draw(probability, 3).tolist() != draw(probability, 4).tolist()


def test_rows_on_which_candidates_disagree_are_favoured(log: Log) -> None:
    apart = {str(i): float(i == 7) for i in range(10)}
    drawn = {}
    for seed in range(200):
        rows, probability = rows_to_label(embedded(apart), log, 1, seed)
        drawn.setdefault(int(rows[0]), []).append(float(probability[0]))
    assert set(drawn) == {0, 1, 4, 5, 6, 7, 8, 9}  # neither the labelled row nor that of weight 0
    assert drawn[0] == pytest.approx([0.025] * len(drawn[0]))  # 1 / 32 of 40 / 32
    assert drawn[7] == pytest.approx([0.825] * len(drawn[7]))
    assert len(drawn[7]) == pytest.approx(165, abs=20)


def test_passes_are_as_the_command_says(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, precisions = embedded({str(i): 1.0 for i in range(10)}), [], []
    embed = model.embedder.embed
    monkeypatch.setattr(model.embedder, "embed", lambda rows, passes: seen.append(passes) or embed(rows, passes))
    monkeypatch.setattr(scoring, "load", lambda path, *, precision: precisions.append(precision) or model)
    monkeypatch.setattr(scoring, "declared_for", lambda path, declared: Declarations())
    monkeypatch.setattr(read, "read_declared", lambda path, declared: log)
    (tmp_path / "log.jsonl").touch()
    where = ["--data", str(tmp_path / "log.jsonl"), "--model", str(tmp_path), "--out", str(tmp_path / "out.jsonl")]
    how = ["--batch-size", "3", "--token-budget", "99", "--precision", "bfloat16"]
    assert CliRunner().invoke(app, ["label", "--next", "2", *where, *how]).exit_code == 0
    assert seen == [Passes(3, 99, progress=True)] and precisions == ["bfloat16"]


def test_an_end_to_end_model_draws_uniformly_and_says_so(log: Log, tiny_model: str) -> None:
    model = ImplicitRewardModel.from_backbone(tiny_model, RewardSpec("constant", ("copy", "share"), (1, 1), (0.0, 0.0)))
    with pytest.warns(UserWarning, match="all rows are equally likely: a model that was trained end to end"):
        rows, probability = rows_to_label(model, log, 4)
    assert probability.tolist() == [0.5] * 4 and not {2, 3} & set(rows.tolist())


@pytest.mark.parametrize("count", [0, 9])
def test_more_rows_than_there_are(log: Log, count: int) -> None:
    with pytest.raises(ValueError, match=f"next: got {count}; expected 1 to 8, the rows without a preference"):
        rows_to_label(embedded({str(i): 1.0 for i in range(10)}), log, count)


def test_the_first_of_them_are_a_draw_too(log: Log) -> None:
    """Whoever stops half way has labelled no special half."""
    model = embedded({str(i): 1.0 for i in range(10)})
    firsts = [int(rows_to_label(model, log, 8, seed)[0][0]) for seed in range(300)]
    assert np.bincount(firsts, minlength=10)[[0, 9]] == pytest.approx([37.5] * 2, abs=20)


CONVERSATIONS = [
    [("user", "é?"), ("assistant", "a\nb")],
    [("system", "be brief"), ("user", "why"), ("assistant", "so")],
    [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")],
    [("user", "look"), ("assistant", "calls"), ("tool", "found"), ("assistant", "there")],
]


def test_the_file_comes_back_as_a_log_once_filled_in(make_log, tmp_path: Path) -> None:
    messages = [[{"role": role, "content": text} for role, text in turns] for turns in CONVERSATIONS]
    log = replace(make_log(4), messages=messages)
    path = tmp_path / "labels.jsonl"
    write_labels(path, log, np.array([2, 0, 1, 3]), np.array([0.1, 0.2, 1 / 3, 1]))
    with pytest.raises(DataError, match=r"labels.jsonl:1: feedback: nothing recorded and no preference"):
        read_log(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[1] == {
        "id": "row-0",
        "prompt": "é?",
        "completion": "a\nb",
        "label_probability": 0.2,
        "preference": None,
    }
    assert [set(row) & {"prompt", "messages"} for row in rows] == [{"prompt"}] * 3 + [{"messages"}]
    filled = [row | {"preference": i % 2} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in filled))
    read = read_log(path)
    assert read.ids == ["row-2", "row-0", "row-1", "row-3"]
    assert read.messages == [messages[i] for i in (2, 0, 1, 3)]
    assert read.preference.tolist() == [0, 1, 0, 1]
    assert read.label_probability.tolist() == [0.1, 0.2, 1 / 3, 1]


def test_labels_are_not_overwritten_unasked(log: Log, tiny_model: str, tmp_path: Path) -> None:
    spec = RewardSpec("constant", ("copy", "share"), (1, 1), (0.0, 0.0))
    ImplicitRewardModel.from_backbone(tiny_model, spec).save(tmp_path / "model")
    rows = [
        {"id": name, "prompt": turns[0]["content"], "completion": turns[1]["content"], "feedback": {"copy": i % 2}}
        for i, (name, turns) in enumerate(zip(log.ids, log.messages, strict=True))
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "labels.jsonl"
    command = ["label", "--next", "3", "--data", str(tmp_path / "log.jsonl"), "--model", str(tmp_path / "model")]
    shown = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert shown.exit_code == 0 and "3 of 10 rows" in shown.stdout and "--labels-ignorable" in shown.stdout
    written = out.read_text()
    assert [json.loads(line)["label_probability"] for line in written.splitlines()] == [0.3] * 3
    again = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert again.exit_code == 2 and "exists already; --overwrite replaces it" in again.stderr
    assert CliRunner().invoke(app, [*command, "--out", str(out), "--overwrite"]).exit_code == 0
    assert out.read_text() == written  # the same seed, the same rows
    other = CliRunner().invoke(app, [*command, "--out", str(out), "--overwrite", "--seed", "1"])
    assert other.exit_code == 0 and out.read_text() != written
    wrong = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "labels.csv")])
    assert wrong.exit_code == 2 and "ends in .jsonl" in wrong.stderr
