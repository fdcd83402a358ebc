"""Random numbers of one seed: what is drawn beside a log's actions takes streams of its own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from irm_fast.data.simulation import draw_feedback, stream

ROOT = Path(__file__).parents[2]
DRAW_THEMSELVES = ("worlds.py", "assumptions.py", "real_logs.py")  # actions, of examples/identification
BY_NUMBER = re.compile(r"default_rng\(\[\s*seed\s*,\s*[\w.]+\s*\]\)")


@pytest.mark.parametrize("name", ["pleased", "answers", "questions", "log"])
def test_a_stream_is_independent_of_all_actions(name) -> None:
    count = 20_000
    drawn = stream(3, name).random(count)
    half = draw_feedback(np.ones(count, np.int8), np.full((count, 4), 0.5), 3)
    for acted in half.T:
        assert abs(np.corrcoef(drawn, acted)[0, 1]) < 4 / np.sqrt(count)


def test_streams_are_told_apart_and_come_again() -> None:
    assert stream(1, "a").random() == stream(1, "a").random()
    assert len({stream(seed, name).random() for seed in (0, 1) for name in ("a", "b", "ab")}) == 6


def test_who_draws_actions_numbers_no_other_stream() -> None:
    """`draw_feedback` takes [seed, 1], [seed, 2] and so on: a preference from one of these would be a signal's twin."""
    files = [*(ROOT / "irm_fast").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    assert sum("draw_feedback" in text for text in texts.values()) > 3
    found = {path.name: BY_NUMBER.findall(text) for path, text in texts.items()}
    theirs = {name: marks for name, marks in found.items() if marks and name not in DRAW_THEMSELVES}
    assert theirs == {"simulation.py": ["default_rng([seed, k])"], "contest.py": ["default_rng([seed, 7])"]}
