"""Answers to household questions whose quality is known and can be read off their text: data for the demo.

The generator favours no method. An answer mixes helpful, vague and dismissive sentences; quality depends on their
shares alone and `P(r* = 1) = sigmoid(quality)`. Length, lists, digits, exclamations and closing questions say nothing
about quality. Feedback is drawn afterwards by `simulate(protocol="feature")`, whose propensities depend on just these:
they mislead whoever takes actions for labels. A model has to find them in the text: the demo trains no `features`
design.
"""

from __future__ import annotations

import numpy as np

from irm_fast.data.messages import Messages
from irm_fast.data.rated import Rated

TOPICS = {
    "router": ("antenna", "cable", "firmware"),
    "bike": ("chain", "brake", "tyre"),
    "oven": ("door", "fan", "seal"),
    "kettle": ("base", "lid", "filter"),
    "printer": ("tray", "roller", "cartridge"),
    "lamp": ("bulb", "switch", "plug"),
}
QUESTIONS = ("How do I fix my {topic}?", "My {topic} is broken.", "Help with a {topic}, please.")
# Sentence i of each kind has the same length and the same blanks, so that length says nothing about quality.
HELPFUL = (
    "First unplug the {topic}.",
    "Clean the {part} with a cloth.",
    "Tighten the {part} by hand.",
    "Replace the {part} if worn.",
    "Test the {part} once more.",
    "Then wait for one hour.",
)
VAGUE = (
    "Everybody owns a {topic}.",
    "Opinions on the {part} differ.",
    "Many ask about that {part}.",
    "Some have a {part} like it.",
    "It has a {part} of a kind.",
    "There are many colours.",
)
DISMISSIVE = (
    "Just buy another {topic}.",
    "That {part} is not my concern.",
    "Never mind that {part}, ok.",
    "I do not know which {part}.",
    "Your {part} is your fault.",
    "Go and ask anyone else.",
)


def make_rated(n_prompts: int, seed: int) -> Rated:
    """Make prompts with two answers each.

    Args:
        n_prompts: The number of prompts.
        seed: The seed of texts and preferences.

    Returns:
        2 `n_prompts` rows. The rating is the quality, a logit; the preference is drawn with its sigmoid.
    """
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
    """One answer, and its quality: the logit of the probability that it is preferred."""
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
