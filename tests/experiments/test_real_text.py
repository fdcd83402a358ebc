"""The commands of the README on real dialogues: simulate, validate, train, evaluate, score.

HH_RLHF names a file in the layout of Anthropic's hh-rlhf (JSONL of chosen and rejected); without it this is skipped.
"""

from __future__ import annotations

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.read import read_rated
from irm_fast.experiments.tiny_decoder import make_tiny_decoder

SOURCE = Path(os.environ.get("HH_RLHF", "harmless-base.test.jsonl.gz"))
pytestmark = pytest.mark.skipif(not SOURCE.is_file(), reason="HH_RLHF names no file")


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_from_pairs_to_rewards(tmp_path) -> None:
    pairs, log, model = tmp_path / "pairs.jsonl", tmp_path / "log.jsonl", tmp_path / "model"
    with gzip.open(SOURCE, "rt", encoding="utf-8") as lines:
        pairs.write_text("".join(islice(lines, 150)), encoding="utf-8")
    command("simulate", pairs, "--out", log, "--protocol", "feature", "--signals", 2, "--test-fraction", 0.2)
    assert "0 problems" in command("validate", log) or "no problems" in command("validate", log)

    truth = read_rated(tmp_path / "log.truth.jsonl")
    texts = [turn["content"] for messages in truth.messages for turn in messages]
    decoder = make_tiny_decoder(texts, tmp_path / "decoder", hidden_size=32, vocab_size=600)
    quick = ("--max-length", 96, "--epochs", 1, "--learning-rate", 1e-3, "--no-progress")
    command("train", "--data", log, "--model", decoder, "--output", model, "--propensity-design", "hidden", *quick)

    rated = json.loads(command("evaluate", "--model", model, "--data", tmp_path / "log.test.jsonl", "--json"))
    assert 0 < rated["auroc"] < 1 and 0 <= rated["pair_accuracy"] <= 1
    held = json.loads(command("evaluate", "--model", model, "--data", log, "--json"))
    assert abs(held["click_predicted"] - held["click_observed"]) < 0.1
    command("score", "--model", model, "--data", pairs, "--out", tmp_path / "rewards.jsonl")
    lines = (tmp_path / "rewards.jsonl").read_text(encoding="utf-8").splitlines()
    rewards = [json.loads(line)["reward"] for line in lines]
    assert len(rewards) >= 290 and len(set(rewards)) > 200
