"""Answers to household questions whose quality is known and can be read off their text: data for the demo.

The generator favours no method. An answer is made of helpful, vague and dismissive sentences, and of style that says
nothing about quality: length by small talk, lists, digits, exclamations, a closing question. Quality grows with the
square root of the helpful sentences and falls with the dismissive ones, so it is not linear in anything counted;
`P(r* = 1) = sigmoid(quality)`. Feedback is drawn afterwards by `simulate(protocol="feature")`, whose propensities
depend on length and style alone: no propensity design of this package contains them exactly.
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
QUESTIONS = ("How do I fix my {topic}?", "My {topic} is broken, what now?", "Can you help with a {topic}?")
HELPFUL = (
    "First unplug the {topic} and look at the {part}.",
    "Clean the {part} with a dry cloth.",
    "Then tighten the {part} until it clicks.",
    "Replace the {part} if it is worn.",
    "Test the {part} before you close the {topic}.",
)
SMALL_TALK = (
    "Every {topic} is different in some way.",
    "People have used a {topic} for many years.",
    "It is good that you ask about this.",
    "There are many opinions on the {part}.",
    "Some of them come in several colours.",
)
DISMISSIVE = (
    "I do not know much about that.",
    "You should ask someone else.",
    "It is probably your own fault.",
    "Just buy a new {topic}.",
)


def make_rated(n_prompts: int, seed: int) -> Rated:
    """Two answers to each prompt, 2 `n_prompts` rows; rating = quality (a logit), preference ~ Bernoulli."""
    rng = np.random.default_rng(seed)
    messages: list[Messages] = []
    quality = np.empty(2 * n_prompts)
    for prompt in range(n_prompts):
        topic = str(rng.choice(list(TOPICS)))
        question = str(rng.choice(QUESTIONS)).format(topic=topic) + f" (case {prompt})"
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
    helpful, small_talk, dismissive = (int(rng.integers(high)) for high in (5, 5, 3))
    sentences = [
        str(sentence).format(topic=topic, part=rng.choice(TOPICS[topic]))
        for pool, count in ((HELPFUL, helpful), (SMALL_TALK, small_talk), (DISMISSIVE, dismissive))
        for sentence in rng.choice(pool, count, replace=False)
    ]
    rng.shuffle(sentences)
    if rng.random() < 0.3:
        sentences.insert(0, "What a great question!")
    if rng.random() < 0.3:
        sentences.append("Does that help?")
    if rng.random() < 0.4:
        sentences.append(f"This takes {rng.integers(2, 60)} minutes.")
    sentences = sentences or ["Hello."]
    text = "- " + "\n- ".join(sentences) if rng.random() < 0.35 else " ".join(sentences)
    return text, 2.2 * np.sqrt(helpful) - 1.6 * dismissive - 1.4
