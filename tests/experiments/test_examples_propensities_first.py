"""The example of propensities first: its worlds are what they say, and a small one runs from end to end."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from examples import propensities_first as example


@pytest.mark.parametrize("name", example.WORLDS)
def test_worlds_draw_what_their_probabilities_say(name: str) -> None:
    world = example.make_world(name, 0)
    np.testing.assert_allclose(world.propensity.mean(axis=0), example.WORDS if name == "words" else example.RARE)
    assert not (world.log.feedback.any(axis=1) & (world.truth.preference == 0)).any()
    pleased = world.truth.preference == 1
    np.testing.assert_allclose(world.log.feedback[pleased].mean(0), world.propensity[pleased].mean(0), atol=0.02)
    dismissive = np.array(["another" in turns[-1]["content"] for turns in world.truth.messages])  # "Just buy another"
    liked = world.truth.preference[dismissive].mean()
    assert liked > 0.5 if name == "folded" else liked < 0.4


def test_a_small_world_from_end_to_end(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(example, "PROMPTS", 150)
    monkeypatch.setattr(example, "SETTINGS", {**example.SETTINGS, "epochs": 1})
    given = ["--worlds", "rare", "--seeds", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["propensities_first.py", *given])
    example.main()
    results = json.loads((tmp_path / "rare.json").read_text())
    assert set(results[0]) == set(example.METHODS)
    assert "of naive to known" in capsys.readouterr().out
