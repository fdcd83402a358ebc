"""Users who act on answers that please them, the more readily the longer these are and the more they fish for it.

An answer pleases with the sigmoid of its quality. Who is pleased gives signal k with the chance
`sigmoid(b_k + w_k z)`: z are visible features of the text, in deviations of the answers of the log, w is `WEIGHTS`, and
b_k makes the mean chance over the log the target. So actions grow with length, lists and bait, and the same rule says
what these users would do with any answer that a policy may write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.data.rated import Rated
from irm_fast.data.simulation import SIGNALS, Simulation, draw_feedback, level_of, stream
from irm_fast.experiments.made_answers import FEATURES, WEIGHTS, quality, visible_features


@dataclass(frozen=True)
class Users:
    """How the users of a log act.

    Attributes:
        mean: (F,) of the visible features of the log's answers.
        deviation: (F,) of the same.
        level: (K,) b_k, logits.
    """

    mean: np.ndarray
    deviation: np.ndarray
    level: np.ndarray

    @classmethod
    def of(cls, conversations: Sequence[Messages], signals: int, target: float) -> Users:
        """The users whose mean propensity over some answers is the target.

        Args:
            conversations: The answers of the log.
            signals: The number of signals, K.
            target: The mean propensity of each.
        """
        raw = visible_features(conversations)
        users = cls(raw.mean(axis=0), raw.std(axis=0), np.zeros(signals))
        slope = users.features(conversations) @ WEIGHTS[:signals].T
        return cls(users.mean, users.deviation, np.array([level_of(column, target) for column in slope.T]))

    def features(self, conversations: Sequence[Messages]) -> np.ndarray:
        """What is seen of answers, (N, F) in the order of `FEATURES`, in deviations of the log."""
        standard: np.ndarray = (visible_features(conversations) - self.mean) / self.deviation
        return standard

    def propensity(self, conversations: Sequence[Messages]) -> np.ndarray:
        """(N, K) the chance that who is pleased gives each signal."""
        slope = self.features(conversations) @ WEIGHTS[: len(self.level)].T
        chance: np.ndarray = 1 / (1 + np.exp(-slope - self.level))
        return chance

    def log(self, conversations: Sequence[Messages], seed: int) -> Simulation:
        """Draw who is pleased by each answer, and what they do.

        Args:
            conversations: N answers.
            seed: The seed of all draws.
        """
        logit = quality(conversations)
        pleased = stream(seed, "pleased").random(len(logit)) < 1 / (1 + np.exp(-logit))
        ids = [str(row) for row in range(len(logit))]
        truth = Rated(ids, list(conversations), logit, pleased.astype(np.int8), np.full(len(logit), -1))
        propensity = self.propensity(conversations)
        log = Log(
            ids=ids,
            messages=truth.messages,
            signals=SIGNALS[: len(self.level)],
            polarity=(1,) * len(self.level),
            feedback=draw_feedback(truth.preference, propensity, seed),
            preference=np.full(len(logit), -1, np.int8),
            weight=None,
            propensity=None,
            features=None,
            feature_names=(),
            user_ids=None,
        )
        return Simulation(log, truth, propensity, None)


@dataclass(frozen=True)
class Outcome:
    """What some answers are worth on average, and what users make of them.

    Attributes:
        pleases: How often they please.
        acts: How often anybody acts.
        features: The means of the visible features, in deviations of the log.
        bait: Sentences of bait an answer.
    """

    pleases: float
    acts: float
    features: dict[str, float]
    bait: float


def outcome(users: Users, conversations: Sequence[Messages]) -> Outcome:
    """What answers come to in truth."""
    return outcomes(users, conversations, [np.full(len(conversations), 1 / len(conversations))])[0]


def outcomes(users: Users, conversations: Sequence[Messages], weights: Sequence[np.ndarray]) -> list[Outcome]:
    """What answers come to in truth, for each of several ways to give them.

    Args:
        users: The users.
        conversations: N answers.
        weights: For each way, (N,) how often each answer is given, with sum 1.
    """
    pleases = 1 / (1 + np.exp(-quality(conversations)))
    acts = pleases * (1 - np.prod(1 - users.propensity(conversations), axis=1))
    features = users.features(conversations)
    bait = visible_features(conversations)[:, -1]
    return [
        Outcome(
            float(weight @ pleases),
            float(weight @ acts),
            dict(zip(FEATURES, (weight @ features).tolist(), strict=True)),
            float(weight @ bait),
        )
        for weight in weights
    ]
