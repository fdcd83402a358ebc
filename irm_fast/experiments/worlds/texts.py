"""The answers of a seed: the same in all worlds, whose users alone differ."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from irm_fast.data.messages import Messages
from irm_fast.data.simulation import standard_features, stream
from irm_fast.experiments.made_answers import answer, conversation, prompts, quality, topic_of, visible_features
from irm_fast.experiments.made_text import TOPICS
from irm_fast.experiments.reproduce.population import standardised
from irm_fast.experiments.worlds.knobs import ANSWERS

WIDTH = 64  # of embeddings
_TOPICS = list(TOPICS)
_WORD = r"(?u)\b\w+\b|[!?-]"


@dataclass(frozen=True)
class Texts:
    """N answers, three to each question.

    Attributes:
        X: (N, D) float32, embeddings: the leading directions of the weights of words and marks (tf-idf), of the answers
            of log and test set together; labels have no part in them.
        features: (N, F) float32, the visible features that `irm-fast train --embeddings` reads, standardised.
        drivers: (N, 3) what moves the users to act, standardised: length, lists and bait.
        bait: (N,) bool, whether an answer holds bait.
        quality: (N,) the logit of the chance to please.
        topic: (N,) the number of the topic.
        group: (N,) the number of the question.
    """

    X: np.ndarray
    features: np.ndarray
    drivers: np.ndarray
    bait: np.ndarray
    quality: np.ndarray
    topic: np.ndarray
    group: np.ndarray


@lru_cache(maxsize=1)
def make_texts(rows: int, seed: int) -> Texts:
    """The answers of a seed, the same each time they are made.

    Args:
        rows: The number of answers, N; the last question has fewer than three if there are no more.
        seed: The seed.
    """
    questions, rng = prompts(-(-rows // ANSWERS), seed), stream(seed, "answers")
    answers = [conversation(question, answer(question, rng)) for question in questions for _ in range(ANSWERS)][:rows]
    seen = visible_features(answers)
    return Texts(
        X=_embeddings(answers),
        features=standard_features(answers),
        drivers=np.column_stack([standardised(column) for column in seen.T]),
        bait=seen[:, -1] > 0,
        quality=quality(answers),
        topic=np.array([_TOPICS.index(topic_of(turns[-2]["content"])) for turns in answers]),
        group=np.arange(len(answers)) // ANSWERS,
    )


def _embeddings(answers: list[Messages]) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(token_pattern=_WORD).fit_transform(turns[-1]["content"] for turns in answers)
    width = min(WIDTH, weights.shape[1] - 1)
    embeddings: np.ndarray = TruncatedSVD(width, random_state=0).fit_transform(weights).astype(np.float32)
    return embeddings
