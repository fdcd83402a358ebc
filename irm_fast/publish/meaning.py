"""What the number of a reward model means, in words that go no further than its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irm_fast.diagnostics.learned import NOT_LEARNED, NOT_TESTED
from irm_fast.diagnostics.text import CONDITIONAL, CONTRADICTED, IDENTIFIED

_HIGHER = "the higher, the likelier the answer pleases"


def meaning_of(record: Mapping[str, Any]) -> str:
    """Sentences on what the reward of a saved model means: its order, and its sigmoid as a probability.

    Args:
        record: The content of `irm_fast.json`.
    """
    bias = record["reward_bias"]
    chance = f"sigmoid(reward {'-' if bias < 0 else '+'} {abs(bias):.4g})"
    found = record.get("diagnosis") or {}
    kind, learned = found.get("kind", ""), found.get("learned") or record.get("learned")
    ranking, scale = found.get("ranking") or kind, found.get("scale") or kind
    if not found:
        return (
            f"It is meant to say: {_HIGHER}. Whether it does, and whether {chance} is that probability, is not judged."
        )
    if NOT_LEARNED in (kind, ranking, learned):
        return "It was not learned: it tells answers apart no better than one rate for all, and means nothing."
    untested = " Nobody has tested on held-out rows whether it was learned." if learned == NOT_TESTED else ""
    return _by_verdict(ranking, scale, chance, found) + untested


def _by_verdict(ranking: str, scale: str, chance: str, found: Mapping[str, Any]) -> str:
    """What order and level mean, of a reward that may have been learned."""
    if ranking == CONTRADICTED:
        return f"The log contradicts what it rests on: neither its order nor {chance} can be relied on."
    if ranking not in (IDENTIFIED, CONDITIONAL):
        return (
            f"The log does not show that it says {_HIGHER}: other rewards explain the same actions as well. {chance} "
            "is no probability that it does."
        )
    belief = ", if the signals are independent given the answer" if ranking == CONDITIONAL else ""
    order = f"It says: {_HIGHER}{belief}."
    if scale == IDENTIFIED:
        return f"{order} {chance} is the estimated probability that it does."
    if scale == CONDITIONAL:
        span = (found.get("sensitivity") or {}).get("mean_g_range")
        within = f"; the share of answers that please may be {span[0]:.0%} to {span[1]:.0%}" if span else ""
        return f"{order} Rely on its order: {chance} is a rough estimate of that probability{within}."
    return f"{order} Its order alone is identified: {chance} is no probability that it does."
