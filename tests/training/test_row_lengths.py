"""Rows by their length: truncated, dropped, and within a token budget."""

import json
from pathlib import Path

import numpy as np
import pytest

from irm_fast.models.backbone import load_backbone
from irm_fast.models.tokens import encode
from irm_fast.training.run import train_log
from tests.training.training_cases import largest_difference, metrics_of


def test_overlong_rows_are_truncated_or_dropped(make_log, make_config):
    log = make_log(60)
    _, tokenizer = load_backbone(make_config().model)
    lengths = np.array([len(row) for row in encode(tokenizer, log.messages, 1000)[0]])
    limit = int(np.quantile(lengths, 0.7))
    settings = {"epochs": 1, "max_length": limit}
    cut = train_log(log, make_config("cut", **settings))
    assert (cut.truncated > 0, cut.dropped) == (True, 0)
    dropped = train_log(log, make_config("dropped", overlong="drop", **settings))
    assert (dropped.truncated, dropped.dropped) == (0, (lengths > limit).sum())
    record = json.loads((Path(make_config("dropped").output) / "irm_fast.json").read_text())
    assert record["dropped"] == dropped.dropped
    kept = train_log(log.subset(np.flatnonzero(lengths <= limit)), make_config("kept", **settings))
    assert largest_difference(dropped, kept) == 0
    with pytest.raises(ValueError, match=r"overlong: all 60 rows are longer than 3 tokens.*max_length"):
        train_log(log, make_config("none", overlong="drop", max_length=3))


def test_token_budget(make_log, make_config):
    with pytest.raises(ValueError, match=r"token_budget: got 20; the longest row has \d+ tokens"):
        train_log(make_log(), make_config(batch_size=None, token_budget=20))
    assert not any(path.is_file() for path in Path(make_config().output).rglob("*"))
    result = train_log(make_log(), make_config(batch_size=None, token_budget=400))
    entries = [entry for entry in metrics_of(make_config()) if "loss" in entry]
    assert {"examples_per_second", "tokens_per_second", "non_padding"} <= entries[0].keys()
    assert result.throughput["non_padding"] == 1
    assert result.throughput["tokens_per_second"] > 10 * result.throughput["examples_per_second"]
    padded = train_log(make_log(), make_config("padded", batch_size=None, token_budget=400, attn="sdpa"))
    assert 0.4 < padded.throughput["non_padding"] < 1


def test_held_out_rows_must_fit_the_budget_too(make_log, make_config):
    long = make_log(4)
    long.messages[0][-1]["content"] = "good " * 60
    with pytest.raises(ValueError, match=r"token_budget: got 200; the longest row has 256 tokens"):
        train_log(make_log(), make_config(batch_size=None, token_budget=200, max_length=500), heldout=long)
    assert not any(path.is_file() for path in Path(make_config().output).rglob("*"))
    config = make_config(batch_size=None, token_budget=200, max_length=200, overlong="drop")
    assert train_log(make_log(), config, heldout=long).metrics  # the folder counts as new
