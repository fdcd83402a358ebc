"""The texts of the best and the worst answers, where the log is at hand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.publish.evidence import answer_key

_SHOWN = 700  # characters of an answer, and of the turn before it


class Answer(NamedTuple):
    """An answer as the page shows it.

    Attributes:
        reward: Its reward logit.
        feedback: What its signals recorded, in words.
        prompt: The turn before it, or None where the text is not shown.
        text: The answer itself, or None.
    """

    reward: float
    feedback: str
    prompt: str | None
    text: str | None


class Texts(NamedTuple):
    """Conversations by their hashes, and why some are lacking; empty if none is."""

    found: Mapping[str, Messages]
    why: str


def keys_of(heldout: Mapping[str, Any]) -> set[str]:
    """Return the hashes of the answers that a report shows."""
    return {entry["key"] for entries in heldout["answers"].values() for entry in entries}


def texts_in(log: Log, keys: Collection[str]) -> dict[str, Messages]:
    """Return the conversations of a log that have one of these hashes, by hash."""
    found: dict[str, Messages] = {}
    for name, messages in zip(log.ids, log.messages, strict=True):
        key = answer_key(name, messages)
        if key in keys:
            found[key] = messages
            if len(found) == len(keys):
                break
    return found


def answers_of(entries: Sequence[Mapping[str, Any]], texts: Mapping[str, Messages]) -> Iterator[Answer]:
    """Yield answers as the page shows them, with their texts as far as these are given by hash."""
    for entry in entries:
        messages = texts.get(entry["key"])
        said = ", ".join(f"{name} {'acted' if value else 'silent'}" for name, value in entry["feedback"].items())
        before = messages[-2]["content"] if messages and len(messages) > 1 else None
        text = messages[-1]["content"] if messages else None
        yield Answer(entry["reward"], said or "nothing recorded", _cut(before), _cut(text))


def _cut(text: Any) -> str | None:
    """Return a text without its middle, if it is long."""
    if not isinstance(text, str):
        return None
    if len(text) <= _SHOWN:
        return text
    half = _SHOWN // 2
    return f"{text[:half].rstrip()} \u2026 ({len(text) - 2 * half:,} characters) \u2026 {text[-half:].lstrip()}"
