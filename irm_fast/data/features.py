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


MARKS = (  # what a policy could turn out by the yard, in words for people
    "length (log)",
    "list items (log)",
    "headings or bold",
    "code block",
    "link",
    "emoji (log)",
    "exclamation marks (log)",
    "ends with a question",
    "refusal (English)",
    "apology (English)",
)
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_STRONG = re.compile(r"^#{1,6}\s|\*\*[^*\n]+\*\*", re.MULTILINE)
_LINK = re.compile(r"https?://|\]\(")
_EMOJI = re.compile("[\u2600-\u27bf\u2b50\u2b55\U0001f300-\U0001faff]")
_QUESTION = re.compile("[?\uff1f\u061f][\\s\"'\u201d\u2019)*_]*\\Z")
_REFUSAL = re.compile(
    r"\b(?:I|we)(?:'m| am|'re| are)? (?:can ?not|can[\u2019']t|will not|won[\u2019']t|not able to|unable to) "
    r"(?:help|assist|answer|provide|do that|comply|discuss|support|engage|create|give|share|fulfil|continue)"
    r"|\bas an AI\b",
    re.IGNORECASE,
)
_APOLOGY = re.compile(r"\b(?:sorry|apologi[sz]e)", re.IGNORECASE)


def text_marks(conversations: Sequence[Messages]) -> np.ndarray:
    """Measure marks of the last turns of conversations that a policy could produce without being of more use.

    Refusals and apologies are known by some English phrases; in other languages they are not seen.

    Args:
        conversations: N lists of messages.

    Returns:
        Numbers (float64) of shape (N, 10), in the order of `MARKS`: counts as log(1 + count), the others 0 or 1.

    Examples:
        >>> found = text_marks([[{"role": "assistant", "content": "- yes\\n- no! What do you prefer?"}]])
        >>> dict(zip(MARKS, found[0].round(2).tolist()))["ends with a question"]
        1.0
    """
    return np.array([_marks_of(turns[-1]["content"]) for turns in conversations]).reshape(-1, len(MARKS))


def _marks_of(text: str) -> list[float]:
    """Measure the marks of one text."""
    return [
        float(np.log1p(len(text))),
        float(np.log1p(len(_LIST.findall(text)))),
        float(_STRONG.search(text) is not None),
        float("```" in text),
        float(_LINK.search(text) is not None),
        float(np.log1p(len(_EMOJI.findall(text)))),
        float(np.log1p(text.count("!"))),
        float(_QUESTION.search(text) is not None),
        float(_REFUSAL.search(text) is not None),
        float(_APOLOGY.search(text) is not None),
    ]
