"""The rewards that a policy is optimised against: a language model each, from the same weights on the same log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.data.simulation import Simulation
from irm_fast.evaluation.scoring import load, score
from irm_fast.experiments.demo import SETTINGS, labelled
from irm_fast.experiments.downstream.pairs import Classifier, train_on_pairs
from irm_fast.experiments.made_answers import visible_features

NAIVE, PENALISED, PAIRS = "naive", "naive, length taken out", "pairs (TRL)"
PAPER, OURS = "paper, one signal", "irm_fast"
KNOWN, EXPLICIT = "known propensities", "explicit labels"
TRAINED = (OURS, NAIVE, PAPER, KNOWN, EXPLICIT, PAIRS)  # the one that trains longest first
REWARDS = (NAIVE, PENALISED, PAIRS, PAPER, OURS, KNOWN, EXPLICIT)


def seen(name: str, simulation: Simulation) -> tuple[Log, Mapping[str, Any]]:
    """What a method sees of a log, and its own settings of `TrainConfig`.

    Args:
        name: The method, of `TRAINED` but `PAIRS`, which sees `pairs_of` the log.
        simulation: The log and its truth.
    """
    log = simulation.log
    if name == NAIVE:  # any action is a label
        return labelled(log, log.feedback.max(axis=1)), {"propensity_design": "constant"}
    if name == PAPER:
        one = replace(log, signals=log.signals[:1], polarity=(1,), feedback=log.feedback[:, :1])
        return one, {"propensity_design": "hidden", "objective": "stratified"}
    if name == OURS:
        return log, {}
    if name == KNOWN:
        return replace(log, propensity=simulation.propensity.astype(np.float32)), {"propensity_design": "known"}
    return labelled(log, simulation.truth.preference), {"propensity_design": "constant"}


def train_reward(name: str, simulation: Simulation, decoder: Path, folder: Path, epochs: int, seed: int) -> None:
    """Train a reward model.

    Args:
        name: The method, of `TRAINED`.
        simulation: The log and its truth.
        decoder: The folder of the model to start from.
        folder: The folder to write.
        epochs: Passes over the log.
        seed: The seed of heads and batches.
    """
    from irm_fast.training.config import TrainConfig
    from irm_fast.training.run import train_log

    if name == PAIRS:
        train_on_pairs(simulation.log, decoder, folder, epochs, seed)
        return
    log, own = seen(name, simulation)
    settings = {**SETTINGS, "epochs": epochs, "seed": seed, **own}
    train_log(log, TrainConfig(model=str(decoder), output=str(folder), **settings))


class Reward:
    """What a method pays for answers; `PENALISED` pays what naive does, less what length is worth to it.

    Args:
        name: The method, of `REWARDS`.
        folder: The folder of the reward models of a log, each in a folder of its name.
        conversations: The answers of the log, over which a reward does not go with length once it is taken out.
    """

    def __init__(self, name: str, folder: Path, conversations: Sequence[Messages]) -> None:
        self._rewards: Callable[[Sequence[Messages]], np.ndarray]
        if name == PAIRS:
            self._rewards = Classifier(folder / name)
        else:
            self._rewards = partial(score, load(folder / (NAIVE if name == PENALISED else name)))
        self._of_length = 0.0
        if name == PENALISED:
            self._of_length = float(np.polyfit(_length(conversations), self(conversations), 1)[0])

    def __call__(self, conversations: Sequence[Messages]) -> np.ndarray:
        """The rewards (N,) of answers."""
        return self._rewards(conversations) - self._of_length * _length(conversations)


def _length(conversations: Sequence[Messages]) -> np.ndarray:
    """The logarithm (N,) of the number of characters of each answer."""
    return visible_features(conversations)[:, 0]
