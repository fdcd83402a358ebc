"""Features of a response that anyone can see, and that move users to act: length, digits, lists, marks."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from irm_fast.data.rows import Messages

FEATURES = ("log_length", "digits", "list_or_code", "question", "exclamation")
_LIST_OR_CODE = re.compile(r"^\s*(?:[-*•]|\d+[.)]|```)", re.MULTILINE)


def text_features(conversations: Sequence[Messages]) -> np.ndarray:
    """(N, 5) float64 of last turns: log(1 + characters), share of digits, log(1 + items and fences), any ?, any !."""
    return np.array([_of_text(turns[-1]["content"]) for turns in conversations]).reshape(-1, len(FEATURES))


def _of_text(text: str) -> list[float]:
    return [
        float(np.log1p(len(text))),
        sum(char.isdigit() for char in text) / max(len(text), 1),
        float(np.log1p(len(_LIST_OR_CODE.findall(text)))),
        float("?" in text),
        float("!" in text),
    ]
