"""Conversations of many kinds of text, some longer than a limit, by which readers of a model are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

_TALKS = (
    ("Why?", "It depends."),
    ("Name three colours.", "Red, green and blue."),
    ("What is 2 + 2?", "4"),
    ("Show me a loop.", "```python\nfor i in range(3):\n    print(i)\n```\n"),
    ("Wie hei\u00dft du? \N{GRINNING FACE}", "Ich hei\u00dfe \N{LEFT DOUBLE QUOTATION MARK}Bot\u201d."),
    ("\u4f60\u597d", "\u4f60\u597d!\n\n- \u4e00\n- \u4e8c"),
    (" spaces  within ", " \n\t kept? "),
    ("Is <s> a token, or </s>?", "Both are, <|im_end|> too, and [INST]."),
)
_FILLER = "The quick brown fox jumps over the lazy dog. "


class Samples(NamedTuple):
    """Conversations, and which of them are longer than the limit.

    Attributes:
        conversations: N conversations.
        longer: Which are longer, (N,) bool.
    """

    conversations: list[Messages]
    longer: np.ndarray

    def worst(self, difference: np.ndarray) -> tuple[float | None, float | None]:
        """The largest of absolute differences (N,) of rows within the limit, and of longer ones; None of none."""
        parts = difference[~self.longer], difference[self.longer]
        within, beyond = (float(part.max()) if len(part) else None for part in parts)
        return within, beyond


def sorted_out(conversations: list[Messages], length: Callable[[Messages], int], limit: int) -> Samples:
    """Tell conversations that are longer than a limit of tokens from the others.

    Args:
        conversations: N conversations.
        length: Counts the tokens of one.
        limit: The limit.
    """
    return Samples(conversations, np.array([length(row) > limit for row in conversations], dtype=bool))


def made_conversations(limit: int) -> list[Messages]:
    """Conversations that are short, and four that are longer than a limit of tokens."""
    rows = [_talk(*texts) for texts in _TALKS]
    rows += [_talk(*_TALKS[0]) + _talk(*_TALKS[1]), _talk(*_TALKS[3]) + _talk(*_TALKS[5])]
    for times in (1, 3):
        filler = _FILLER * (1 + times * limit // 8)  # at least eight tokens each
        rows += [_talk(f"{filler}Why?", "It depends."), _talk("Why?", f"{filler}It depends.")]
    return rows


def _talk(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
