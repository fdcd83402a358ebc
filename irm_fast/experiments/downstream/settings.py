"""The sizes of a run, and its worlds: each seed has questions, answers, users and a log of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from irm_fast.data.messages import Messages
from irm_fast.data.simulation import Simulation, stream
from irm_fast.experiments.downstream.users import Users
from irm_fast.experiments.made_answers import answer, conversation, prompts

ANSWERS, SIGNALS = 3, 2  # answers to each question of the log; signals of its users


@dataclass(frozen=True)
class Optimisation:
    """How a policy is optimised.

    Attributes:
        steps: Optimiser steps.
        every: Steps between two measurements.
        questions: Questions of a step.
        answers: Answers to each.
        learning_rate: The learning rate, which is constant.
        penalty: The weight of the divergence from the starting policy.
        measured: Answers of a measurement, each to a held-out question.
    """

    steps: int = 60
    every: int = 10
    questions: int = 8
    answers: int = 8
    learning_rate: float = 3e-4
    penalty: float = 0.1
    measured: int = 256


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run, beside the number of seeds.

    Attributes:
        prompts: Questions of the log, with three answers each.
        held_out: Other questions, to measure on.
        rate: The mean propensity of each signal.
        policy_epochs: Passes of the starting policy over the log.
        reward_epochs: Passes of the reward models over it.
        width: The width of the policy.
        drawn: Answers to each held-out question of which the best are picked.
        picked: Held-out questions for which answers are picked.
        optimisation: How policies are optimised.
    """

    prompts: int = 2500
    held_out: int = 256
    rate: float = 0.15
    policy_epochs: int = 2
    reward_epochs: int = 4
    width: int = 96
    drawn: int = 64
    picked: int = 64
    optimisation: Optimisation = field(default_factory=Optimisation)


SMALL = Settings(  # minutes instead of an hour: it shows that everything runs, and its numbers mean little
    prompts=300,
    held_out=32,
    policy_epochs=1,
    reward_epochs=1,
    width=32,
    drawn=16,
    picked=8,
    optimisation=Optimisation(steps=4, every=2, questions=2, answers=4, measured=32),
)


@dataclass(frozen=True)
class World:
    """The questions, the users and the log of a seed.

    Attributes:
        asked: The questions of the log.
        held_out: Other questions.
        answers: The answers of the log.
        users: The users.
        simulation: The log and its truth.
    """

    asked: Sequence[str]
    held_out: Sequence[str]
    answers: Sequence[Messages]
    users: Users
    simulation: Simulation


def make_world(settings: Settings, seed: int) -> World:
    """The world of a seed, the same each time it is made."""
    questions, rng = prompts(settings.prompts + settings.held_out, seed), stream(seed, "answers")
    asked, held_out = questions[: settings.prompts], questions[settings.prompts :]
    answers = [conversation(question, answer(question, rng)) for question in asked for _ in range(ANSWERS)]
    users = Users.of(answers, SIGNALS, settings.rate)
    return World(asked, held_out, answers, users, users.log(answers, seed))
