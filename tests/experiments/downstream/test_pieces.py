"""The real pieces of a run: which log, settings and folders each gives to what trains, optimises or picks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from irm_fast.experiments import tiny_decoder
from irm_fast.experiments.downstream import grpo, picked, policy, rewards
from irm_fast.experiments.downstream.rewards import EXPLICIT, KNOWN, NAIVE, OURS, PAIRS, PAPER, REWARDS, TRAINED
from irm_fast.experiments.downstream.run import _PIECES, Job
from irm_fast.experiments.downstream.settings import SMALL, World, make_world
from irm_fast.training import run as training

SETTINGS = replace(SMALL, prompts=60, held_out=8, policy_epochs=3, reward_epochs=7, width=64)
SEED = 3


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(SETTINGS, SEED)


def _do(kind: str, place: Path, name: str = "") -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    _PIECES[kind](Job(kind, SEED, name, place), SETTINGS)


def _is_that(found: World, expected: World) -> bool:
    return (found.asked, found.held_out, found.answers) == (expected.asked, expected.held_out, expected.answers)


OWN = {  # propensity design and objective
    NAIVE: ("constant", "marginal"),
    PAPER: ("hidden", "stratified"),
    OURS: ("auto", "marginal"),
    KNOWN: ("known", "marginal"),
    EXPLICIT: ("constant", "marginal"),
}


@pytest.mark.parametrize("name", OWN)
def test_what_each_method_is_trained_on(name, world, tmp_path, monkeypatch) -> None:
    """Labels of actions, one signal, all of them, their true propensities, or the truth: to each method its own."""
    given = []
    monkeypatch.setattr(training, "train_log", lambda log, config: given.append((log, config)))
    place = tmp_path / "rewards" / name
    _do("reward", place, name)
    [(log, config)] = given

    simulation = world.simulation
    feedback, signals = simulation.log.feedback, simulation.log.signals
    acted, pleased = (feedback == 1).any(axis=1), simulation.truth.preference
    assert (acted != pleased).mean() > 0.2 and len(signals) == 2 and (feedback[:, 0] != feedback[:, 1]).any()
    seen = {NAIVE: 0, EXPLICIT: 0, PAPER: 1}.get(name, 2)  # signals
    labels = {NAIVE: acted, EXPLICIT: pleased}.get(name, np.full(len(log), -1))
    np.testing.assert_array_equal(log.feedback, feedback[:, :seen])
    np.testing.assert_array_equal(log.preference, labels)
    assert log.signals == signals[:seen] and log.polarity == (1,) * seen and log.messages == world.answers
    assert log.features is None and (log.propensity is not None) == (name == KNOWN)
    if log.propensity is not None:
        np.testing.assert_allclose(log.propensity, simulation.propensity, rtol=1e-6)

    assert (config.propensity_design, config.objective) == OWN[name]
    assert (config.model, config.output) == (str(tmp_path / "decoder"), str(place))
    assert (config.epochs, config.seed) == (7, SEED)
    assert (config.batch_size, config.learning_rate, config.head_learning_rate) == (64, 2e-3, 2e-2)


def test_what_pairs_are_trained_on(world, tmp_path, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(rewards, "train_on_pairs", lambda *arguments: given.append(arguments))
    place = tmp_path / "rewards" / PAIRS
    _do("reward", place, PAIRS)
    [(log, *others)] = given
    assert set(TRAINED) == {*OWN, PAIRS}
    np.testing.assert_array_equal(log.feedback, world.simulation.log.feedback)
    assert (log.preference == -1).all() and log.messages == world.answers
    assert others == [tmp_path / "decoder", place, 7, SEED]


def test_what_the_policy_starts_from(world, tmp_path, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(
        tiny_decoder, "make_tiny_decoder", lambda texts, folder, **how: given.append((list(texts), folder, how))
    )
    monkeypatch.setattr(policy, "train_policy", lambda answers, folder, **how: given.append((answers, folder, how)))
    _do("start", tmp_path / "policy")
    texts = [turn["content"] for turns in world.answers for turn in turns]
    assert given[0] == (texts, tmp_path / "decoder", {"seed": SEED})
    assert given[1] == (world.answers, tmp_path / "policy", {"width": 64, "epochs": 3, "seed": SEED})


@pytest.mark.parametrize("name", REWARDS)
def test_which_reward_a_policy_is_optimised_against(name, world, tmp_path, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(rewards, "Reward", lambda *arguments: arguments)
    monkeypatch.setattr(grpo, "optimise", lambda *arguments: given.append(arguments) or [{"step": 0}])
    _do("policy", tmp_path / "policies" / "one.json", name)
    [(start, reward, asked, how, seed)] = given
    assert reward == (name, tmp_path / "rewards", world.answers)
    assert (start, how, seed) == (tmp_path / "policy", SETTINGS.optimisation, SEED) and _is_that(asked, world)
    assert json.loads((tmp_path / "policies" / "one.json").read_text()) == [{"step": 0}]


def test_from_what_the_best_are_picked(world, tmp_path, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(picked, "best_of_n", lambda *arguments: given.append(arguments) or [{"n": 1}])
    _do("best of n", tmp_path / "best_of_n.json")
    [(start, folder, asked, *others)] = given
    assert (start, folder) == (tmp_path / "policy", tmp_path / "rewards") and others == [SETTINGS, SEED]
    assert _is_that(asked, world) and json.loads((tmp_path / "best_of_n.json").read_text()) == [{"n": 1}]
