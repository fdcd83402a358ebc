"""The headline of a report: the verdict on a reward in a few words, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from irm_fast.diagnostics.learned import LEARNED, NOT_LEARNED, NOT_TESTED
from irm_fast.diagnostics.text import CONDITIONAL, CONTRADICTED, IDENTIFIED, OPEN

_LIGHT = {IDENTIFIED: "good", CONDITIONAL: "fair", OPEN: "bad", CONTRADICTED: "bad", NOT_LEARNED: "bad"}
_LEARNED = {LEARNED: "good", NOT_LEARNED: "bad"}
_SAID = {CONDITIONAL: "rests on independent signals", CONTRADICTED: "contradicted by the log"}
_HEADLINE = {
    IDENTIFIED: "The reward is identified",
    CONDITIONAL: "The reward is identified if the signals are independent",
    OPEN: "The reward is not identified by this log",
    CONTRADICTED: "The log contradicts what this reward rests on",
    NOT_LEARNED: "The reward was not learned",
}
_FIRST = {
    IDENTIFIED: "Use it, and compare it with fresh ratings (irm-fast evaluate) before a policy follows it.",
    CONDITIONAL: "Use it to rank answers, not as a probability: what the signals have in common beside the response "
    "moves its level more than its order.",
    OPEN: "Do not let a policy follow it yet: other rewards explain these actions as well. Cheap ways out come next.",
    CONTRADICTED: "Do not rely on it: mend what failed below first, and train again.",
    NOT_LEARNED: "Do not use it: it tells answers apart no better than one rate for all.",
}
_SCALE_ALONE = "Use it to rank answers only: the log contradicts its level. Mend what failed below to have that too."
_UNTESTED = (
    "Train with a held-out part (--validation-fraction 0.1) and enough rows: nobody knows yet whether this reward was "
    "learned."
)


_LITTLE = 0.1  # standard deviation of reward logits: the best and the worst of 100 answers are half a logit apart
_ALIKE = (
    "Rewards hardly differ (standard deviation {} logits): whatever the fit explains, it is not by telling answers "
    "apart. Train longer, at a higher rate, or with a larger model."
)
_LOOK = (
    "Before a policy follows it, look below at what it would exploit, and read the best and the worst answers: what "
    "they have in common no number shows."
)


class Tile(NamedTuple):
    """One part of the verdict: its name, its light, the answer, and a note on it."""

    name: str
    light: str
    answer: str
    note: str = ""


class Headline(NamedTuple):
    """The verdict as the page begins with it.

    Attributes:
        light: `good`, `fair` or `bad`.
        title: The verdict in a few words.
        words: The verdict in full.
        tiles: The parts of the verdict.
        steps: What to do, first things first.
    """

    light: str
    title: str
    words: str
    tiles: tuple[Tile, ...]
    steps: tuple[str, ...]


def headline(diagnosis: Mapping[str, Any], gain: tuple[float, float] | None, spread: float | None = None) -> Headline:
    """Return the headline of a diagnosis.

    Args:
        diagnosis: As `Diagnosis.to_dict` gives it.
        gain: Log-likelihood an action beyond constant rates on held-out rows, and its standard error, or None.
        spread: The standard deviation of the reward logits of held-out rows, or None.
    """
    kind, learned = diagnosis["kind"], diagnosis.get("learned", "")
    ranking, scale = diagnosis.get("ranking", kind), diagnosis.get("scale", kind)
    only_scale = kind == CONTRADICTED and ranking in (IDENTIFIED, CONDITIONAL)
    light, title = _LIGHT.get(kind, "bad"), _HEADLINE.get(kind, f"The reward is {kind}")
    first = _SCALE_ALONE if only_scale else _FIRST.get(kind, "")
    if only_scale:
        light, title = "fair", "The reward can rank; the log contradicts its level"
    if learned in (NOT_TESTED, NOT_LEARNED):
        title += f"; {'nobody has tested whether it was learned' if learned == NOT_TESTED else 'it was not learned'}"
        light = "bad" if learned == NOT_LEARNED else max(light, "fair", key=("good", "fair", "bad").index)
    if kind == NOT_LEARNED:
        title = _HEADLINE[kind]
    by = "" if gain is None else f"by {gain[0]:.2f} nats an action, standard error {gain[1]:.2f}"
    tiles = (
        Tile("Order of answers", _LIGHT.get(ranking, "bad"), _SAID.get(ranking, ranking)),
        Tile("Level of the reward", _LIGHT.get(scale, "bad"), _SAID.get(scale, scale)),
        Tile("Better than constant rates", _LEARNED.get(learned, "fair"), learned or NOT_TESTED, by),
        *_pleasing(diagnosis["sensitivity"], scale),
    )
    untested = _UNTESTED if learned == NOT_TESTED else ""
    alike = _ALIKE.format(plainly(spread)) if spread is not None and spread < _LITTLE else ""
    look = "" if light == "bad" else _LOOK
    steps = tuple(step for step in (first, alike, untested, *diagnosis["remedies"], look) if step)
    return Headline(light, title, f"The reward is {diagnosis['verdict']}.", tiles, steps)


def plainly(value: float) -> str:
    """Return a number with two digits that count, without an exponent.

    Examples:
        >>> plainly(0.0000712), plainly(1.0)
        ('0.000071', '1')
    """
    return str(np.format_float_positional(value, precision=2, fractional=False, trim="-"))


def _pleasing(sensitivity: Mapping[str, Any], scale: str) -> tuple[Tile, ...]:
    """Return the mean preference as a part of the verdict, as far as it is known."""
    span, mean = sensitivity["mean_g_range"], sensitivity["mean_g"]
    if span is not None:
        return (Tile("Answers that please", "fair", f"{span[0]:.0%} to {span[1]:.0%}", "only a range is known"),)
    return () if mean is None else (Tile("Answers that please", _LIGHT.get(scale, "bad"), f"{mean:.0%}"),)
