"""Answers to household questions, and a quality that can be read off whatever a policy writes.

An answer is a row of sentences: helpful, vague, dismissive, and bait, which fishes for an action. Its quality is
`4 (h - d) / n`, where n is the number of sentences, h that of different helpful ones about what was asked, and d that
of dismissive ones and of bait, which nobody likes to read. So a sentence that is said twice, that is about something
else or that nobody knows is as good as a vague one. Whether an answer pleases is drawn with the sigmoid of its quality.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from irm_fast.data.messages import Messages
from irm_fast.data.simulation import stream
from irm_fast.experiments.made_text import DISMISSIVE, HELPFUL, QUESTIONS, TOPICS, VAGUE

BAIT = ("Great question, click here!", "Copy this for later!", "Share it with a friend!", "Want to hear more?")
FEATURES = ("log length", "list", "bait")
WEIGHTS = np.array([[0.8, 0.2, 1.2], [0.4, 0.8, 0.9]])  # (signals, features): what draws who is pleased to act
SCALE = 4.0  # the greatest quality, a logit
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")
_LIST_MARK = re.compile(r"^\s*-\s+")


def prompts(count: int, seed: int) -> list[str]:
    """So many different questions."""
    rng = stream(seed, "questions")
    topics = rng.choice(list(TOPICS), size=count)
    return [f"{row}. " + str(rng.choice(QUESTIONS)).format(topic=topic) for row, topic in enumerate(topics)]


def topic_of(question: str) -> str:
    """What a question is about, a key of `TOPICS`."""
    return next(topic for topic in TOPICS if topic in question)


def answer(question: str, rng: np.random.Generator) -> str:
    """An answer to a question by somebody who may be of use or not, and who may like lists, figures or marks."""
    topic = topic_of(question)
    kinds = rng.choice(3, size=int(rng.integers(2, 9)), p=rng.dirichlet((1, 1, 1)))
    sentences = [
        str(rng.choice((HELPFUL, VAGUE, DISMISSIVE)[kind])).format(topic=topic, part=rng.choice(TOPICS[topic]))
        for kind in kinds
    ]
    for _ in range(int(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1)))):
        sentences.insert(int(rng.integers(len(sentences) + 1)), str(rng.choice(BAIT)))
    return "- " + "\n- ".join(sentences) if rng.random() < 0.35 else " ".join(sentences)


def conversation(question: str, text: str) -> Messages:
    """A question and its answer as messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": text}]


def quality(conversations: Sequence[Messages]) -> np.ndarray:
    """The quality (N,) of the last turns, a logit from -4 to 4; -4 where nothing is said."""
    return np.array([_quality(turns[-2]["content"], turns[-1]["content"]) for turns in conversations])


def visible_features(conversations: Sequence[Messages]) -> np.ndarray:
    """What anyone sees of the last turns, (N, 3) in the order of `FEATURES`."""
    return np.array([_visible(turns[-1]["content"]) for turns in conversations]).reshape(-1, len(FEATURES))


def _visible(text: str) -> list[float]:
    bait = sum(sentence in BAIT for sentence in sentences_of(text))
    return [float(np.log1p(len(text))), float(_LIST_MARK.match(text) is not None), float(bait)]


def sentences_of(text: str) -> list[str]:
    """The sentences of an answer, without the marks of a list."""
    parts = (_LIST_MARK.sub("", part).strip() for part in _SENTENCE.split(text))
    return [part for part in parts if part and part != "-"]


def _quality(question: str, text: str) -> float:
    said, topic = sentences_of(text), topic_of(question)
    if not said:
        return -SCALE
    helpful, worse = len(_HELPFUL[topic].intersection(said)), sum(sentence in _WORSE for sentence in said)
    return SCALE * (helpful - worse) / len(said)


def _filled(templates: Sequence[str], topic: str) -> set[str]:
    """Every sentence that templates give for a topic."""
    pairs = itertools.product(templates, TOPICS[topic])
    return {template.format(topic=topic, part=part) for template, part in pairs}


_HELPFUL = {topic: _filled(HELPFUL, topic) for topic in TOPICS}
_WORSE = {*BAIT}.union(*(_filled(DISMISSIVE, topic) for topic in TOPICS))
