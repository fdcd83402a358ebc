"""The best of n answers by each reward, against chances that are counted by hand."""

from __future__ import annotations

from math import comb
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from irm_fast.data.simulation import stream
from irm_fast.experiments.downstream import picked
from irm_fast.experiments.downstream.rewards import REWARDS
from irm_fast.experiments.downstream.settings import SMALL, make_world
from irm_fast.experiments.made_answers import answer, conversation, quality, visible_features


def test_the_best_of_n_answers(monkeypatch) -> None:
    """They are of held-out questions, picked within each; an answer above r of the m others is the best of n with the
    chance C(r, n - 1) / C(m, n)."""
    world, asked, paid = make_world(SMALL, 0), [], {}

    def draw(questions, seed):
        rng = stream(seed, "answers of a stub")
        asked.extend(questions)
        return SimpleNamespace(conversations=[conversation(question, answer(question, rng)) for question in questions])

    def reward(name, folder, conversations):
        assert folder == Path("rewards") and conversations is world.answers

        def pay(answers):  # question by question on another level, and no two alike
            level = np.arange(len(answers)) // SMALL.drawn
            paid[name] = 100.0 * level + np.random.default_rng(REWARDS.index(name)).permutation(len(answers)) / 10
            drawn.append(answers)
            return paid[name]

        return pay

    drawn: list = []
    monkeypatch.setattr(picked.Policy, "load", lambda folder: SimpleNamespace(draw=draw))
    monkeypatch.setattr(picked, "Reward", reward)
    picks = picked.best_of_n(Path("policy"), Path("rewards"), world, SMALL, seed=0)

    assert asked == [question for question in world.held_out[: SMALL.picked] for _ in range(SMALL.drawn)]
    assert list(paid) == list(REWARDS) and all(answers is drawn[0] for answers in drawn)
    assert [(pick["reward"], pick["n"]) for pick in picks] == [(r, n) for r in REWARDS for n in (1, 2, 4, 8, 16)]
    pleases = (1 / (1 + np.exp(-quality(drawn[0])))).reshape(SMALL.picked, SMALL.drawn)
    bait = visible_features(drawn[0])[:, 2].reshape(SMALL.picked, SMALL.drawn)
    for pick in picks:
        above = paid[pick["reward"]].reshape(SMALL.picked, SMALL.drawn).argsort(axis=1).argsort(axis=1)
        chance = np.vectorize(lambda r, n=pick["n"]: comb(r, n - 1) / comb(SMALL.drawn, n))(above)
        assert pick["pleases"] == pytest.approx((chance * pleases).sum(axis=1).mean())
        assert pick["bait"] == pytest.approx((chance * bait).sum(axis=1).mean())
    assert len({round(pick["pleases"], 6) for pick in picks if pick["n"] == 16}) > 4
