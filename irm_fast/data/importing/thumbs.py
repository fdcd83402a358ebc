"""Thumbs: what products write for a response that pleased or displeased, as the signals of a log."""

from __future__ import annotations

import re

from irm_fast.data.problems import FieldError, shown

UP, DOWN = "thumbs_up", "thumbs_down"
_LIKED = {
    "1", "+1", "up", "thumbsup", "thumbup", "upvote", "upvoted", "like", "liked", "positive", "good", "yes", "true",
    "helpful", "correct", "desirable", "accepted", "accept", "pass", "\N{THUMBS UP SIGN}",
}  # fmt: skip
_DISLIKED = {
    "-1", "down", "thumbsdown", "thumbdown", "downvote", "downvoted", "dislike", "disliked", "negative", "bad", "no",
    "false", "unhelpful", "nothelpful", "incorrect", "undesirable", "rejected", "reject", "fail",
    "\N{THUMBS DOWN SIGN}",
}  # fmt: skip


def is_liked(value: object, *, zero: bool | None = None) -> bool | None:
    """Return whether a rating says that a response pleased.

    Args:
        value: 1, -1, true, false, or a text such as "thumbsUp", "thumbs-down", "like", an emoji.
        zero: What 0 means: False that it displeased, None nothing.

    Returns:
        True or False, or None where the value is none of these, such as 0.7.

    Examples:
        >>> is_liked("thumbsUp"), is_liked("-1"), is_liked(0), is_liked(0, zero=False), is_liked(0.7)
        (True, False, None, False, None)
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return True if value == 1 else False if value == -1 else zero if value == 0 else None
    if not isinstance(value, str):
        return None
    plain = value.strip().lower()
    if plain in ("0", "0.0"):
        return zero
    plain = re.sub(r"\.0$", "", plain)
    plain = plain if plain in ("+1", "-1") else re.sub(r"[\s_-]", "", plain)
    return True if plain in _LIKED else False if plain in _DISLIKED else None


def thumb_of(value: object, field: str) -> bool | None:
    """Return whether a rating says that a response pleased, None where there is no rating.

    Raises:
        FieldError: It says neither; 0 does not say which of both it is.
    """
    if value is None or value == "":
        return None
    liked = is_liked(value)
    if liked is None:
        raise FieldError(field, f"got {shown(value)}; expected 1 or -1, true or false, or a text such as thumbsUp")
    return liked


def thumb_signals(liked: bool | None) -> dict[str, int]:
    """Return the feedback of a response that pleased, displeased, or (None) was not rated though it could have been."""
    return {UP: int(liked is True), DOWN: int(liked is False)}
