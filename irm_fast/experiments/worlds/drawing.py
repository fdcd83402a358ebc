"""The log of a world.

An answer pleases with the sigmoid of its quality + liked z_0. Who is pleased gives signal k with the propensity

    sigmoid(b_k + drivers w_k z + topics t + users u + sessions s + moods e),

where z are length, lists and bait, w is `made_answers.WEIGHTS`, t, u, s and e are standard normal for each topic,
user, session and row, and b_k makes the mean the rate. Every answer is shown once. A user sees 10 answers in two
sessions of 5; answers to one question are seen by different users, as a rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irm_fast.data.simulation import level_of, stream
from irm_fast.experiments.made_answers import WEIGHTS
from irm_fast.experiments.reproduce.population import Log, Redraw, Truth
from irm_fast.experiments.worlds.knobs import World
from irm_fast.experiments.worlds.texts import Texts

PER_USER, PER_SESSION = 10, 5  # rows
FOLLOWS = 0.5  # the mean propensity of the second signal of a funnel, after the first
FLATTERED = 0.9  # how readily who rewards flattery gives each signal to an answer that holds bait


@dataclass(frozen=True)
class Drawn:
    """The log of a world, and what only some methods read.

    Attributes:
        redraw: Log, truth and test set. The propensity of the truth is the chance to act of who is pleased, and in a
            funnel that of the second signal is meant after the first.
        recorded: (n, K) int8, the feedback with -1 where a signal of a funnel could not act.
        please: (m,) the chances of the answers of the test set to please.
        users: (n,) user names.
        sessions: (n,) session names.
    """

    redraw: Redraw
    recorded: np.ndarray
    please: np.ndarray
    users: np.ndarray
    sessions: np.ndarray


def draw_log(world: World, texts: Texts, rows: int, seed: int) -> Drawn:
    """Draw the log of a world on some answers; those before them, to other questions, are the test set.

    Args:
        world: The world.
        texts: The answers.
        rows: The number of rows of the log; the answers before these are the test set, and belong to whole questions.
        seed: The seed of users and actions.
    """
    total = len(texts.quality)
    test, logged = slice(0, total - rows), slice(total - rows, total)
    rng = stream(seed, "log")
    quality = texts.quality + world.liked * texts.drivers[:, 0]
    please = 1 / (1 + np.exp(-quality))
    pleased = rng.random(total) < please
    order = rng.permutation(rows)
    user, session = order // PER_USER, order // PER_SESSION

    # Who would act
    activity = (
        world.users * rng.normal(size=rows)[user]
        + world.sessions * rng.normal(size=rows)[session]
        + world.moods * rng.normal(size=rows)
    )
    draw = stream(seed, "topics").normal(size=texts.topic.max() + 1)[texts.topic[logged]]
    propensity = np.empty((rows, world.signals))
    for signal in range(world.signals):
        slope = world.drivers * texts.drivers[logged] @ WEIGHTS[signal] + world.topics * draw + activity
        target = FOLLOWS if world.funnel and signal else world.rate
        propensity[:, signal] = 1 / (1 + np.exp(-slope - level_of(slope, target)))
    if world.escape is not None:
        propensity[quality[logged] >= world.escape] = 0
    active = rng.random(propensity.shape) < propensity

    # Who acts
    by_mistake = rng.random(propensity.shape) < world.misclicks
    acts = active & (pleased[logged, None] | by_mistake)
    flattered = (rng.random(rows) < world.flatterers)[user] & texts.bait[logged]
    acts = np.where(flattered[:, None], rng.random(propensity.shape) < FLATTERED, acts)
    feedback = acts.astype(np.int8)
    recorded = feedback.copy()
    if world.funnel:
        feedback[:, 1] &= feedback[:, 0]
        recorded[:, 1] = np.where(feedback[:, 0] == 1, feedback[:, 1], -1)

    log = Log(texts.X[logged], texts.features[logged], feedback, texts.group[logged] - texts.group[logged][0])
    return Drawn(
        Redraw(
            log,
            Truth(pleased[logged].astype(np.int8), propensity),
            texts.X[test],
            pleased[test].astype(np.int8),
            texts.features[test],
        ),
        recorded,
        please[test],
        user.astype(str),
        session.astype(str),
    )
