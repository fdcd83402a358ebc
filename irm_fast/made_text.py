"""Answers to household questions whose quality is known and can be read off their text: data for the demo.

The generator favours no method. An answer mixes helpful, vague and dismissive sentences; quality depends on their
shares alone and `P(r* = 1) = sigmoid(quality)`. Length, lists, digits, exclamations and closing questions are drawn
independently of quality. Feedback is drawn afterwards by `simulate(protocol="feature")`, whose propensities depend on
just these: they mislead whoever takes actions for labels, and no propensity design here contains them exactly.
"""

from __future__ import annotations

import numpy as np

from irm_fast.rated import Rated
from irm_fast.rows import Messages

TOPICS = {
    "router": ("antenna", "cable", "firmware"),
    "bike": ("chain", "brake", "tyre"),
    "oven": ("door", "fan", "seal"),
    "kettle": ("base", "lid", "filter"),
    "printer": ("tray", "roller", "cartridge"),
    "lamp": ("bulb", "switch", "plug"),
}
QUESTIONS = ("How do I fix my {topic}?", "My {topic} is broken.", "Help with a {topic}, please.")
HELPFUL = (
    "First unplug the {topic}.",
    "Clean the {part} with a cloth.",
    "Tighten the {part} until it clicks.",
    "Replace the {part} if worn.",
    "Test the {part} once more.",
    "Look at the {part} closely.",
)
VAGUE = (
    "Every {topic} is different.",
    "People often have a {topic}.",
    "Many ask about the {part}.",
    "Opinions on the {part} vary.",
    "Some come in colours.",
    "A {topic} has a {part}.",
)
DISMISSIVE = (
    "I do not know.",
    "Ask someone else.",
    "It is your own fault.",
    "Just buy a new {topic}.",
    "The {part} is not my problem.",
    "Never mind the {part}.",
)


def make_rated(n_prompts: int, seed: int) -> Rated:
    """Two answers to each prompt, 2 `n_prompts` rows; rating = quality (a logit), preference ~ Bernoulli."""
    rng = np.random.default_rng(seed)
    messages: list[Messages] = []
    quality = np.empty(2 * n_prompts)
    for prompt in range(n_prompts):
        topic = str(rng.choice(list(TOPICS)))
        question = f"{prompt}. " + str(rng.choice(QUESTIONS)).format(topic=topic)
        for answer in range(2):
            text, quality[2 * prompt + answer] = _answer(topic, rng)
            messages.append([{"role": "user", "content": question}, {"role": "assistant", "content": text}])
    preferred = rng.random(len(quality)) < 1 / (1 + np.exp(-quality))
    return Rated(
        ids=[f"{row // 2}-{row % 2}" for row in range(len(quality))],
        messages=messages,
        rating=quality,
        preference=preferred.astype(np.int8),
        pair=np.arange(len(quality)) // 2,
    )


def _answer(topic: str, rng: np.random.Generator) -> tuple[str, float]:
    """One answer and the logit of its being preferred."""
    length = int(rng.integers(2, 8))
    kinds = rng.choice(3, size=length, p=rng.dirichlet((1, 1, 1)))
    sentences = [
        str(rng.choice((HELPFUL, VAGUE, DISMISSIVE)[kind])).format(topic=topic, part=rng.choice(TOPICS[topic]))
        for kind in kinds
    ]
    quality = 4.0 * (np.mean(kinds == 0) - np.mean(kinds == 2))
    if rng.random() < 0.3:
        sentences.insert(0, "Great question!")
    if rng.random() < 0.3:
        sentences.append("Does that help?")
    if rng.random() < 0.4:
        sentences.insert(int(rng.integers(len(sentences))), f"It takes {rng.integers(2, 60)} minutes.")
    text = "- " + "\n- ".join(sentences) if rng.random() < 0.35 else " ".join(sentences)
    return text, quality
