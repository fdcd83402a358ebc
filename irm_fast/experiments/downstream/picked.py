"""The best of n answers of the starting policy by each reward, question by question."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.experiments.downstream.policy import Policy
from irm_fast.experiments.downstream.rewards import REWARDS, Reward
from irm_fast.experiments.downstream.settings import Settings, World
from irm_fast.experiments.downstream.users import outcomes
from irm_fast.experiments.reproduce.picks import COUNTS, chance_of_pick


def best_of_n(start: Path, rewards: Path, world: World, settings: Settings, seed: int) -> list[dict[str, Any]]:
    """What the best of n answers are worth in truth, for each reward and each n.

    Every held-out question gets the same answers for all rewards, and the chance of each answer to be the best of n
    that are drawn from them is exact.

    Args:
        start: The folder of the policy.
        rewards: The folder of the reward models.
        world: The questions and the users.
        settings: How many answers to how many questions.
        seed: The seed of the answers.

    Returns:
        For each reward and n: "reward", "n", and the fields of `Outcome`.
    """
    questions = np.repeat(world.held_out[: settings.picked], settings.drawn).tolist()
    answers = Policy.load(start).draw(questions, seed).conversations
    counts = [count for count in COUNTS if count <= settings.drawn]
    places = [(name, count) for name in REWARDS for count in counts]
    chances = []
    for name in REWARDS:
        by_question = Reward(name, rewards, world.answers)(answers).reshape(-1, settings.drawn)
        chances += [
            np.concatenate([chance_of_pick(some, n) for some in by_question]) / len(by_question) for n in counts
        ]
    worth = outcomes(world.users, answers, chances)
    return [{"reward": name, "n": n, **asdict(one)} for (name, n), one in zip(places, worth, strict=True)]
