"""What each method sees of a log and is trained with, and what its reward pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from irm_fast.experiments.downstream import rewards
from irm_fast.experiments.downstream.pairs import Classifier, pairs_of, train_on_pairs
from irm_fast.experiments.downstream.policy import prompt_of
from irm_fast.experiments.downstream.rewards import (
    NAIVE,
    PENALISED,
    Reward,
)
from irm_fast.experiments.downstream.settings import SMALL, make_world
from irm_fast.experiments.made_answers import quality, visible_features
from irm_fast.experiments.tiny_decoder import make_tiny_decoder


def test_length_is_taken_out(monkeypatch) -> None:
    """Over the log's answers the penalised reward does not go with length; the naive one does."""
    answers = make_world(SMALL, 0).answers
    length = visible_features(answers)[:, 0]
    asked = []
    monkeypatch.setattr(rewards, "load", lambda folder: asked.append(folder))
    monkeypatch.setattr(rewards, "score", lambda model, rows: 3 * visible_features(rows)[:, 0] + quality(rows))
    naive, penalised = (Reward(name, Path("rewards"), answers)(answers) for name in (NAIVE, PENALISED))
    assert abs(np.corrcoef(naive, length)[0, 1]) > 0.3 and abs(np.corrcoef(penalised, length)[0, 1]) < 1e-9
    assert asked == [Path("rewards") / NAIVE] * 2


def test_pairs_are_of_one_question() -> None:
    log = make_world(SMALL, 0).simulation.log
    pairs = pairs_of(log)
    texts = [prompt_of(messages[0]["content"]) + messages[1]["content"] for messages in log.messages]
    acted = dict(zip(texts, log.feedback.max(axis=1), strict=True))
    assert len(pairs["chosen"]) == len(pairs["rejected"]) > 20
    for chosen, rejected in zip(pairs["chosen"], pairs["rejected"], strict=True):
        assert chosen.split("\n")[0] == rejected.split("\n")[0]
        assert (acted[chosen], acted[rejected]) == (1, 0)


def test_trl_ranks_by_its_pairs(tmp_path) -> None:
    """Trained on pairs of long against short answers it prefers long ones, padded in a batch or alone."""
    pytest.importorskip("trl")
    world = make_world(SMALL, 0)
    length = visible_features(world.answers)[:, 0]
    log = replace(world.simulation.log, feedback=(length > np.median(length))[:, None].astype(np.int8))
    texts = (turn["content"] for turns in world.answers for turn in turns)
    make_tiny_decoder(texts, tmp_path / "decoder", hidden_size=32)
    train_on_pairs(log, tmp_path / "decoder", tmp_path / "rm", epochs=2, seed=0)
    classifier = Classifier(tmp_path / "rm")
    found = classifier(world.answers)
    assert np.corrcoef(found, length)[0, 1] > 0.5
    np.testing.assert_allclose([classifier([answer])[0] for answer in world.answers[:5]], found[:5], atol=1e-5)
