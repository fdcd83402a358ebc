"""The rows of a log: parsing one, and putting many together as the arrays of a log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from irm_fast.data.files import Problems
from irm_fast.data.log import Log
from irm_fast.data.rows import (
    LOG_FIELDS,
    SEGMENTS,
    Fields,
    Messages,
    feature_of,
    level_of,
    mapping_of,
    name_of,
    number_of,
    propensity_of,
    weight_of,
)
from irm_fast.data.signals import Absent
from irm_fast.data.times import time_of
from irm_fast.data.warning import warn_caller

NEGATIVE_SIGNALS = {"thumbs_down", "regenerate", "dislike", "downvote", "report"}


@dataclass(frozen=True)
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


def log_row(line: int, raw: Mapping[str, object], problems: Problems) -> LogRow | None:
    """Parse one row of a log, or return None and report the problems if anything is wrong with it."""
    fields = Fields(line, raw, LOG_FIELDS, problems)
    features = fields.get("features", mapping_of(feature_of), None)
    texts = {name: value for name, value in (features or {}).items() if isinstance(value, str)}
    own = {name: value for name in SEGMENTS if (value := fields.get(name, name_of, None)) is not None}
    for name in own.keys() & texts.keys():
        fields.fail(f"features.{name}", f"{name!r} is also a field of this row; expected one of them")
    row = LogRow(
        line=line,
        id=fields.get("id", name_of, f"row-{line}"),
        messages=fields.conversation(),
        feedback=fields.get("feedback", mapping_of(level_of), None),
        preference=fields.get("preference", level_of, -1),
        weight=fields.get("weight", weight_of, None),
        propensity=fields.get("propensity", mapping_of(propensity_of), None),
        features=features,
        user_id=fields.get("user_id", name_of, None),
        session_id=fields.get("session_id", name_of, None),
        time=fields.get("timestamp", time_of, None),
        position=fields.get("position", number_of, None),
        label_probability=fields.get("label_probability", propensity_of, None),
        acted_at=fields.get("acted_at", _times_of, None),
        segments={**texts, **own},
    )
    return None if fields.failed else row


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


def feature_kinds(rows: Iterable[LogRow]) -> dict[str, FeatureKind]:
    """Return by name what each feature is that is given in any row."""
    kinds: dict[str, FeatureKind] = {}
    for row in rows:
        for name, value in (row.features or {}).items():
            if value is not None:
                kinds.setdefault(name, FeatureKind(str if isinstance(value, str) else float, row.line))
    return kinds


def log_of_rows(rows: list[LogRow], signals: tuple[str, ...], absent: Absent, polarity: Mapping[str, int]) -> Log:
    """Put the rows together as the arrays of a log.

    Args:
        rows: The rows, in their order.
        signals: The names of the signals to take.
        absent: The meaning of a feedback key that some rows lack, as of `read_log`.
        polarity: +1 or -1 by the name of a signal, as of `read_log`.
    """
    unknown = sum(row.time is not None and math.isnan(row.time) for row in rows)
    if unknown:
        text = (
            f"{unknown} rows name a day before 1970 or after 5138, such as 0000-00-00: their time is taken as unknown"
        )
        warn_caller(f"timestamp: {text}")
    by_name = {name: -1 if name.lower().replace("-", "_") in NEGATIVE_SIGNALS else 1 for name in signals}
    numbers = [_numbers(row) for row in rows]
    feature_names = tuple(next(filter(None, numbers), ()))
    segment_names = dict.fromkeys(name for row in rows for name in row.segments)

    # A row without a feedback object (an expert's label, say) records nothing, whatever an absent key means.
    fill = 0 if absent == "silent" else -1
    feedback = [[-1 if r.feedback is None else r.feedback.get(name, fill) for name in signals] for r in rows]
    return Log(
        ids=[row.id for row in rows],
        messages=[row.messages for row in rows],
        signals=signals,
        polarity=tuple(int(polarity.get(name, by_name[name])) for name in signals),
        feedback=np.array(feedback, np.int8).reshape(len(rows), len(signals)),
        preference=np.array([row.preference for row in rows], np.int8),
        weight=_column([row.weight for row in rows], fill=1, dtype=np.float32),
        propensity=_matrix([row.propensity for row in rows], signals, np.float32),
        features=_matrix(numbers, feature_names, np.float32),
        feature_names=feature_names,
        user_ids=_names([row.user_id for row in rows]),
        session_ids=_names([row.session_id for row in rows]),
        times=_column([row.time for row in rows]),
        positions=_column([row.position for row in rows]),
        label_probability=_column([row.label_probability for row in rows]),
        acted_at=_matrix([row.acted_at for row in rows], signals, np.float64),
        segments={name: [row.segments.get(name) for row in rows] for name in segment_names},
    )


def _numbers(row: LogRow) -> dict[str, float]:
    """Return the features of a row that are numbers."""
    return {name: value for name, value in (row.features or {}).items() if isinstance(value, float)}


def _names(values: list[str | None]) -> list[str | None] | None:
    """Return names, None where not given; None if no row has one."""
    return values if any(value is not None for value in values) else None


def _column(values: list[float | None], fill: float = math.nan, dtype: DTypeLike = np.float64) -> np.ndarray | None:
    """Return numbers of shape (N,), `fill` where not given; None if no row has one."""
    if all(value is None for value in values):
        return None
    return np.array([fill if value is None else value for value in values], dtype)


def _matrix(values: Sequence[dict[str, float] | None], names: tuple[str, ...], dtype: DTypeLike) -> np.ndarray | None:
    """Return numbers of shape (N, names), NaN where not given; None if no row has any."""
    if not any(values):
        return None
    return np.array([[(row or {}).get(name, math.nan) for name in names] for row in values], dtype)
