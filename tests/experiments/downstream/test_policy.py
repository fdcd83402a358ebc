"""The policy: its samples, its way towards a reward, and the best of n of its answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from irm_fast.experiments.downstream.policy import prompt_of
from irm_fast.experiments.downstream.settings import SMALL, make_world
from irm_fast.experiments.downstream.users import outcome
from irm_fast.experiments.made_answers import quality, visible_features

LAMP = "7. How do I fix my lamp?"


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory) -> Path:
    pytest.importorskip("trl")
    from irm_fast.experiments.downstream.policy import train_policy

    folder = tmp_path_factory.mktemp("policy") / "policy"
    train_policy(make_world(SMALL, 0).answers[:480], folder, width=32, epochs=6, seed=0)
    return folder


def test_divergence_is_that_of_the_drawn_tokens(policy_folder) -> None:
    """Each answer alone, without padding, has the probability that the block gives it."""
    import torch

    from irm_fast.experiments.downstream.policy import Policy

    policy = Policy.load(policy_folder)
    questions = [LAMP, "My bike is broken.", "12. Help with a router, please."]
    drawn = policy.draw(questions, seed=1)
    assert [turns[0]["content"] for turns in drawn.conversations] == questions
    assert (
        drawn.conversations == policy.draw(questions, seed=1).conversations != policy.draw(questions, 2).conversations
    )
    found = policy.log_probability(drawn)
    pad = policy.tokenizer.pad_token_id
    for row, question in enumerate(questions):
        prompt = policy.tokenizer(prompt_of(question), return_tensors="pt")["input_ids"][0]
        answer = drawn.tokens[0][row, drawn.asked[0] :]
        answer = answer[answer != pad]
        with torch.no_grad():
            logits = policy.model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        alone = logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum()
        assert found[row] == pytest.approx(float(alone), abs=1e-3)


def test_a_policy_moves_towards_its_reward(policy_folder, monkeypatch) -> None:
    """Short answers are paid: they get shorter, the divergence grows from 0, and what was asked for is measured, on
    other questions than those that it is trained on."""
    from irm_fast.experiments.downstream import grpo

    how = replace(SMALL.optimisation, steps=8, every=4, questions=8, answers=8, learning_rate=1e-2, penalty=0.0)
    how = replace(how, measured=40)
    world, paid, measured = make_world(SMALL, 0), [], []

    def reward(rows):
        paid.append([turns[0]["content"] for turns in rows])
        return -visible_features(rows)[:, 0]

    def worth(users, rows):
        assert users is world.users
        measured.append(rows)
        return outcome(users, rows)

    monkeypatch.setattr(grpo, "outcome", worth)
    points = grpo.optimise(policy_folder, reward, world, how, seed=0)
    assert [point["step"] for point in points] == [0, 4, 8]
    assert points[0]["divergence"] == pytest.approx(0, abs=1e-4) and points[-1]["divergence"] > 0.05
    assert points[-1]["score"] > points[0]["score"] + 0.1
    assert points[-1]["features"]["log length"] < points[0]["features"]["log length"]

    held_out = [*world.held_out, *world.held_out[:8]]  # of 32, for 40 answers
    assert [[turns[0]["content"] for turns in rows] for rows in measured] == [held_out] * 3
    trained_on = [questions for questions in paid if questions != held_out]
    assert len(paid) - len(trained_on) == 3 and len(trained_on) == 8
    assert all(len(questions) == 64 and len(set(questions)) == 8 for questions in trained_on)
    assert {question for questions in trained_on for question in questions} <= set(world.asked)
    for point, rows in zip(points, measured, strict=True):
        assert point["score"] == pytest.approx(-visible_features(rows)[:, 0].mean(), abs=1e-4)
        assert point["pleases"] == pytest.approx((1 / (1 + np.exp(-quality(rows)))).mean())
