"""The made world: questions, the quality of answers, and how users act."""

from __future__ import annotations

import numpy as np
import pytest

from irm_fast.experiments.downstream.settings import SMALL, make_world
from irm_fast.experiments.downstream.users import outcome, outcomes
from irm_fast.experiments.made_answers import BAIT, conversation, prompts, quality, sentences_of, visible_features

LAMP = "7. How do I fix my lamp?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First unplug the lamp.", 4.0),
        ("First unplug the lamp. First unplug the lamp.", 2.0),  # said twice
        ("Clean the bulb with a cloth. Clean the plug with a cloth.", 4.0),
        ("First unplug the oven.", 0.0),  # not what was asked
        ("First unplug", 0.0),  # nobody knows it
        ("- First unplug the lamp.\n- There are many colours.", 2.0),
        ("First unplug the lamp. Share it with a friend!", 0.0),  # bait takes back what helps
        ("Your bulb is your fault.", -4.0),
        ("", -4.0),
        ("-", -4.0),
    ],
)
def test_quality_is_read_off_the_text(text, expected) -> None:
    assert quality([conversation(LAMP, text)]).tolist() == [expected]


def test_every_made_sentence_is_read_back() -> None:
    """The marks of a list and the places of bait do not change what a sentence is."""
    world = make_world(SMALL, 0)
    for turns in world.answers[:200]:
        for sentence in sentences_of(turns[1]["content"]):
            assert sentence in BAIT or (not sentence.startswith("-") and sentence.endswith("."))
    visible = visible_features(world.answers)
    said = np.array([sum(turns[1]["content"].count(bait) for bait in BAIT) for turns in world.answers])
    np.testing.assert_array_equal(visible[:, 2], said)
    assert 0.2 < visible[:, 1].mean() < 0.5 and 0.8 < visible[:, 2].mean() < 1.2


def test_signals_are_independent_once_an_answer_pleases() -> None:
    """Who is pleased acts as often as the propensity says, and both signals together as often as their product."""
    for seed in range(3):
        simulation = make_world(SMALL, seed).simulation
        pleased = simulation.truth.preference == 1
        chance, acted = simulation.propensity[pleased], simulation.log.feedback[pleased]
        for p, f in ((chance[:, 0], acted[:, 0]), (chance[:, 1], acted[:, 1]), (chance.prod(1), acted.prod(1))):
            assert abs((f - p).sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_users_act_only_when_pleased_and_at_the_rate() -> None:
    world = make_world(SMALL, 0)
    simulation = world.simulation
    assert not simulation.log.feedback[simulation.truth.preference == 0].any()
    np.testing.assert_allclose(simulation.propensity.mean(axis=0), SMALL.rate, atol=1e-9)
    pleased = simulation.truth.preference.mean()
    assert pleased == pytest.approx((1 / (1 + np.exp(-quality(world.answers)))).mean(), abs=0.05)
    plain, fishing = (
        conversation(LAMP, text) for text in ("First unplug the lamp.", "First unplug the lamp. " + BAIT[1])
    )
    assert (world.users.propensity([fishing]) > 2 * world.users.propensity([plain])).all()


def test_worlds_differ_by_seed_alone() -> None:
    first, again, other = (make_world(SMALL, seed) for seed in (0, 0, 1))
    assert first.answers == again.answers and (first.simulation.log.feedback == again.simulation.log.feedback).all()
    assert first.answers != other.answers
    assert not set(first.asked) & set(first.held_out)
    assert prompts(3, 0) == prompts(3, 0) and len(set(prompts(300, 0))) == 300


def test_outcomes_are_weighted() -> None:
    world = make_world(SMALL, 0)
    best, worst = conversation(LAMP, "First unplug the lamp."), conversation(LAMP, "Your bulb is your fault.")
    mean, first, second = outcomes(world.users, [best, worst], [np.array(w) for w in ([0.5, 0.5], [1, 0], [0, 1])])
    assert mean == outcome(world.users, [best, worst])
    assert first.pleases == pytest.approx(1 / (1 + np.exp(-4))) and second.pleases == pytest.approx(1 / (1 + np.exp(4)))
    assert mean.pleases == pytest.approx((first.pleases + second.pleases) / 2)
    act = 1 - np.prod(1 - world.users.propensity([best]))
    assert first.acts == pytest.approx(first.pleases * act) and first.bait == 0
