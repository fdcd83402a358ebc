"""Features of a response that anyone can see, and that move users to act: length, digits, lists, marks."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from irm_fast.data.messages import Messages

FEATURES = ("log_length", "digits", "list_or_code", "question", "exclamation")
_LIST_OR_CODE = re.compile(r"^\s*(?:[-*•]|\d+[.)]|```)", re.MULTILINE)


def text_features(conversations: Sequence[Messages]) -> np.ndarray:
    """Measure what anyone can see of the last turns of conversations.

    Args:
        conversations: N lists of messages.

    Returns:
        Numbers (float64) of shape (N, 5), in the order of `FEATURES`: log(1 + characters), the share of digits,
        log(1 + list items and code fences), 1 if there is a question mark, 1 if there is an exclamation mark.

    Examples:
        >>> text_features([[{"role": "assistant", "content": "In 1789!"}]]).round(2).tolist()
        [[2.2, 0.5, 0.0, 0.0, 1.0]]
    """
    return np.array([_of_text(turns[-1]["content"]) for turns in conversations]).reshape(-1, len(FEATURES))


def _of_text(text: str) -> list[float]:
    """Measure one text."""
    return [
        float(np.log1p(len(text))),
        sum(char.isdigit() for char in text) / max(len(text), 1),
        float(np.log1p(len(_LIST_OR_CODE.findall(text)))),
        float("?" in text),
        float("!" in text),
    ]
