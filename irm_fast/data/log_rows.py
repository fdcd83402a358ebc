"""The rows of a log: parsing one, and putting many together as the arrays of a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from irm_fast.data.declarations import Declarations
from irm_fast.data.messages import Messages
from irm_fast.data.problems import FieldError, Problems, shown
from irm_fast.data.rows import (
    LOG_FIELDS,
    SEGMENTS,
    Fields,
    feature_of,
    level_of,
    mapping_of,
    name_of,
    number_of,
    plain_name,
    propensity_of,
    unwrapped,
    user_of,
    weight_of,
)
from irm_fast.data.times import time_of


@dataclass(slots=True)
class LogRow:
    """An impression as it was read from a file.

    Attributes:
        line: The number of its line in the file.
        id: Its name.
        messages: The conversation that ends with the response.
        feedback: For each signal that the row records 1 (the user acted), 0 (the user could have acted and did not) or
            -1 (null: missing); None if the row has no feedback.
        preference: A label: 1 the response is preferred, 0 it is not, -1 unknown.
        weight: Its weight, or None.
        propensity: Known propensities by signal, NaN for null, or None.
        features: Numbers and texts by name, None for null; or None.
        user_id: The user, or None.
        session_id: The session, or None.
        time: Seconds since 1970, or None.
        position: The place on the page or in the session, or None.
        label_probability: The probability with which the row was drawn for labelling, or None.
        acted_at: Seconds since 1970 by signal, or None.
        segments: By name, what the row says of the fields `SEGMENTS`, and the features that are texts.
    """

    line: int
    id: str
    messages: Messages
    feedback: dict[str, int] | None
    preference: int
    weight: float | None
    propensity: dict[str, float] | None
    features: dict[str, float | str | None] | None
    user_id: str | None
    session_id: str | None
    time: float | None
    position: float | None
    label_probability: float | None
    acted_at: dict[str, float] | None
    segments: dict[str, str]


def log_row(line: int, raw: Mapping[str, object], declared: Declarations, problems: Problems) -> LogRow | None:
    """Parse one row of a log, or return None and report the problems if anything is wrong with it."""
    raw, columns = _signal_columns(raw, declared, problems)
    fields = Fields(line, raw, LOG_FIELDS, problems)
    if columns:
        fields.values["feedback"] = {**fields.get("feedback", _FEEDBACK, {}), **columns}
        fields.spelled.setdefault("feedback", "feedback")
    features = fields.get("features", _FEATURES, None)
    texts = {name: value for name, value in (features or {}).items() if isinstance(value, str)}
    own = {name: value for name in SEGMENTS if (value := fields.get(name, name_of, None)) is not None}
    for name in own.keys() & texts.keys():
        fields.fail(f"features.{name}", f"{name!r} is also a field of this row; expected one of them")
    row = LogRow(
        line=line,
        id=fields.get("id", name_of, f"row-{line}"),
        messages=declared.formed(fields.conversation()),
        feedback=_feedback(fields, declared),
        preference=fields.get("preference", level_of, -1),
        weight=fields.get("weight", weight_of, None),
        propensity=fields.get("propensity", _PROPENSITIES, None),
        features=features,
        user_id=_name(fields, "user_id"),
        session_id=_name(fields, "session_id"),
        time=fields.get("timestamp", time_of, None),
        position=fields.get("position", number_of, None),
        label_probability=fields.get("label_probability", propensity_of, None),
        acted_at=fields.get("acted_at", _times_of, None),
        segments={**texts, **own},
    )
    return None if fields.failed else row


ACTIONS = {  # what columns of signals are called, without capitals and separators
    "bookmark", "bookmarked", "click", "clicked", "copied", "copy", "download", "downloaded", "favorite", "favourite",
    "like", "liked", "regenerate", "regenerated", "save", "saved", "share", "shared", "thumbsdown", "thumbsup",
    "upvote", "upvoted", "downvote", "downvoted", "dislike", "disliked",
}  # fmt: skip


def _signal_columns(
    raw: Mapping[str, object], declared: Declarations, problems: Problems
) -> tuple[Mapping[str, object], dict[str, object]]:
    """Part a row into its fields and the signals that are columns of their own: those declared, or known actions."""
    if declared.signals is not None:
        columns = {name: raw[name] for name in declared.signals if name in raw}
    else:
        columns = action_columns(raw)
        for name in columns:
            problems.noted[f"{name}: a column that is read as a signal; --signals chooses"] += 1
    return ({key: value for key, value in raw.items() if key not in columns} if columns else raw), columns


def action_columns(raw: Mapping[str, object]) -> dict[str, object]:
    """Return the columns of a row that are well-known actions, and hold 1, 0 or null; none of one with feedback."""
    if "feedback" in raw:
        return {}
    columns = {name: value for name, value in raw.items() if plain_name(name) in ACTIONS}
    if not columns or any(LOG_FIELDS.plain.get(plain_name(name)) == "feedback" for name in raw):
        return {}
    return {name: value for name, value in columns.items() if value is None or value in (0, 1)}


def _as_it_is(value: object, field: str) -> object:
    return value


_FEEDBACK, _FEATURES, _PROPENSITIES = mapping_of(_as_it_is), mapping_of(feature_of), mapping_of(propensity_of)


def _name(fields: Fields, name: str) -> str | None:
    """Return the user or the session of a row, None where not known, of which it takes a note."""
    found = fields.get(name, user_of, None)
    if found is None and name in fields.values and not fields.failed:
        fields.problems.noted[f"{name}: {shown(fields.values[name])} is taken as not known"] += 1
    return found


def _feedback(fields: Fields, declared: Declarations) -> dict[str, int] | None:
    """Return the feedback of a row by signal, as it is declared, or None."""
    held = fields.get("feedback", _FEEDBACK, None)
    if held is None:
        return None
    found: dict[str, int] = {}
    plainly = declared.signals is None and not declared.counts
    for name, value in held.items():
        if plainly and type(value) is int and 0 <= value <= 1:
            found[name] = value
            continue
        if declared.signals is not None and name not in declared.signals:
            fields.problems.ignored[f"feedback.{name}"] += 1
            continue
        try:
            found[name] = _action(unwrapped(value), f"feedback.{name}", declared.are_counts(name))
        except FieldError as error:
            fields.fail(error.field, error.text)
        if found.get(name) == -1 and declared.null_is_silent(name):
            found[name] = 0
    return found


def _action(value: object, field: str, counts: bool) -> int:
    """Parse whether a user acted: 1, 0, or null as -1; of counts, any whole number from 0."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 1 and value // 1 == value:
        if counts:
            return 1
        name = field.removeprefix("feedback.")
        raise FieldError(field, f"got {shown(value)}; expected 1, 0, or null; --counts {name} reads numbers of actions")
    return level_of(value, field)


def _times_of(value: object, field: str) -> dict[str, float]:
    """Parse an object of times; null says nothing."""
    known = {key: time for key, time in value.items() if time is not None} if isinstance(value, dict) else value
    return mapping_of(time_of)(known, field)


class FeatureKind(NamedTuple):
    """What a feature is.

    Attributes:
        type: float for numbers, str for texts.
        line: The number of the first line that shows it.
    """

    type: type[float] | type[str]
    line: int
