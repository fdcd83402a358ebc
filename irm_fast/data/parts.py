"""Parts of a log: arrays of some rows on their way to the arrays of all, whether read by columns or row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from irm_fast.data.log_rows import FeatureKind, LogRow
from irm_fast.data.texts import batch_of

if TYPE_CHECKING:
    import pyarrow

ABSENT = -2  # of feedback: the row does not have this key
NUMBERS = ("weight", "time", "position", "label_probability")  # of which a row has one at most


class Entries(NamedTuple):
    """Values of which a row has one for some of several names.

    Attributes:
        values: Numbers (float64) of shape (n,), NaN where not given or not known.
        given: A mask of shape (n,) of the rows that give one.
    """

    values: np.ndarray
    given: np.ndarray


@dataclass
class Part:
    """Some rows of a log, by columns of n entries. What no row has is left out.

    Attributes:
        lines: The numbers of the rows, int64.
        ids: Their names, strings.
        texts: Their conversations, as `texts.Conversations` holds them.
        recorded: A mask of the rows that have feedback.
        feedback: By signal 1, 0, -1 (null) or `ABSENT`, int8.
        preference: 1, 0 or -1, int8.
        numbers: By the names of `NUMBERS`, float64, NaN where not given; a time that is not known, too.
        unknown_times: The number of times that are given and not known.
        propensity: Known propensities by signal.
        acted_at: Times of actions by signal.
        features: By name, float64; of the rows in `featured` each has all.
        featured: A mask of the rows that have features which are numbers.
        odd: By place, the features of rows whose features are not those of the others.
        names: By "user_id" or "session_id" strings, null where not known.
        segments: By name strings, null where not known.
        hashes: By "id", "text", "user_id" or "session_id" hashes of these, int64, 0 where not known.
    """

    lines: np.ndarray
    ids: pyarrow.Array
    texts: pyarrow.RecordBatch
    recorded: np.ndarray
    preference: np.ndarray
    featured: np.ndarray
    feedback: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    unknown_times: int = 0
    propensity: dict[str, Entries] = field(default_factory=dict)
    acted_at: dict[str, Entries] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    odd: dict[int, dict[str, float | str | None]] = field(default_factory=dict)
    names: dict[str, pyarrow.Array] = field(default_factory=dict)
    segments: dict[str, pyarrow.Array] = field(default_factory=dict)
    hashes: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def subset(self, index: np.ndarray) -> Part:
        """Return the rows that an index selects: row numbers, or a mask of shape (n,)."""
        rows = np.flatnonzero(index) if index.dtype == bool else index
        columns: dict[str, Any] = {"unknown_times": self.unknown_times}
        for entry in fields(Part):
            if entry.name == "odd":
                columns["odd"] = {place: self.odd[row] for place, row in enumerate(rows.tolist()) if row in self.odd}
            elif entry.name not in columns:
                held = getattr(self, entry.name)
                columns[entry.name] = (
                    {name: _taken(column, rows) for name, column in held.items()}
                    if isinstance(held, dict)
                    else _taken(held, rows)
                )
        return Part(**columns)

    def without_empty(self) -> Part:
        """Return the part without what no row of it gives."""
        return replace(
            self,
            feedback={name: column for name, column in self.feedback.items() if (column != ABSENT).any()},
            numbers={name: column for name, column in self.numbers.items() if not np.isnan(column).all()},
            propensity={name: column for name, column in self.propensity.items() if column.given.any()},
            acted_at={name: column for name, column in self.acted_at.items() if column.given.any()},
            features=self.features if self.featured.any() else {},
            names={name: column for name, column in self.names.items() if column.null_count < len(self)},
            segments={name: column for name, column in self.segments.items() if column.null_count < len(self)},
        )


def _taken(column: Any, rows: np.ndarray) -> Any:
    """Return these rows of a column."""
    import pyarrow

    if isinstance(column, Entries):
        return Entries(*(values[rows] for values in column))
    return column[rows] if isinstance(column, np.ndarray) else column.take(pyarrow.array(rows))


@dataclass
class Seen:
    """What the rows before have, in the order of its first appearance.

    Attributes:
        signals: The names of signals.
        segments: The names of segments.
        kinds: By name what each feature is.
        feature_names: The features of the first row that has some which are numbers; None before it.
    """

    signals: dict[str, None] = field(default_factory=dict)
    segments: dict[str, None] = field(default_factory=dict)
    kinds: dict[str, FeatureKind] = field(default_factory=dict)
    feature_names: tuple[str, ...] | None = None

    def fits(self, row: LogRow) -> bool:
        """Take the features of the next row, and return whether they are such as those before."""
        features = row.features or {}
        numbers = [name for name, value in features.items() if isinstance(value, float)]
        for name, value in features.items():
            if value is not None:
                self.kinds.setdefault(name, FeatureKind(str if isinstance(value, str) else float, row.line))
        if self.feature_names is None and numbers:
            self.feature_names = tuple(numbers)
        fit = not numbers or set(numbers) == set(self.feature_names or ())
        return fit and all(
            isinstance(value, self.kinds[name].type) if value is not None else self._is_text(name)
            for name, value in features.items()
        )

    def _is_text(self, name: str) -> bool:
        return name in self.kinds and self.kinds[name].type is str


def part_of_rows(rows: Sequence[LogRow], seen: Seen) -> Part:
    """Return a part of rows that were read one by one.

    Args:
        rows: The rows, the next of their log.
        seen: What the rows before have; it is extended.
    """
    import pyarrow

    def strings(values: Sequence[str | None]) -> Any:
        return pyarrow.array(values, pyarrow.string())

    odd = {place: row.features or {} for place, row in enumerate(rows) if not seen.fits(row)}
    numbers = [{n: v for n, v in (row.features or {}).items() if isinstance(v, float)} for row in rows]
    signals = dict.fromkeys(name for row in rows for name in row.feedback or ())
    segments = dict.fromkeys(name for row in rows for name in row.segments)
    seen.signals.update(signals)
    seen.segments.update(segments)
    given = {name: [getattr(row, name) for row in rows] for name in (*NUMBERS, "user_id", "session_id")}
    given = {name: values for name, values in given.items() if any(value is not None for value in values)}
    return Part(
        lines=np.array([row.line for row in rows], np.int64),
        ids=strings([row.id for row in rows]),
        texts=batch_of([row.messages for row in rows]),
        recorded=np.array([row.feedback is not None for row in rows], bool),
        feedback={
            name: np.array([(row.feedback or {}).get(name, ABSENT) for row in rows], np.int8) for name in signals
        },
        preference=np.array([row.preference for row in rows], np.int8),
        numbers={name: _numbers(given[name]) for name in NUMBERS if name in given},
        unknown_times=sum(row.time is not None and math.isnan(row.time) for row in rows),
        propensity=_entries([row.propensity or {} for row in rows]),
        acted_at=_entries([row.acted_at or {} for row in rows]),
        features={name: _numbers([row.get(name) for row in numbers]) for name in dict.fromkeys(chain(*numbers))},
        featured=np.array([bool(n) for n in numbers], bool),
        odd=odd,
        names={name: strings(given[name]) for name in ("user_id", "session_id") if name in given},
        segments={name: strings([row.segments.get(name) for row in rows]) for name in segments},
    )


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _entries(rows: Sequence[Mapping[str, float]]) -> dict[str, Entries]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: Entries(_numbers([row.get(name) for row in rows]), np.array([name in row for row in rows], bool))
        for name in names
    }


def joined(parts: list[Part]) -> Part:
    """Return one part of several, which are taken to pieces on the way, so that memory holds the columns once."""
    sizes = [len(part) for part in parts]
    columns: dict[str, Any] = {
        "unknown_times": sum(part.unknown_times for part in parts),
        "odd": {
            start + place: features
            for start, part in zip(np.cumsum([0, *sizes[:-1]]).tolist(), parts, strict=True)
            for place, features in part.odd.items()
        },
    }
    for entry in fields(Part):
        if entry.name in columns:
            continue
        held = [part.__dict__.pop(entry.name) for part in parts]
        if isinstance(held[0], dict):
            names = dict.fromkeys(name for one in held for name in one)
            columns[entry.name] = {
                name: _stacked([one.pop(name, None) for one in held], sizes, entry.name) for name in names
            }
        else:
            columns[entry.name] = _stacked(held, sizes, entry.name)
    return Part(**columns)


def in_order(parts: list[Part]) -> Part:
    """Return one part of several, its rows in the order of their numbers."""
    part = compact(parts)
    part.ids = part.ids.combine_chunks()
    return part.subset(np.argsort(part.lines, kind="stable"))


def compact(parts: list[Part]) -> Part:
    """Return one part of several, as `joined`, whose strings lie in one piece."""
    part = joined(parts)
    for held in (part.names, part.segments):
        held |= {name: column.combine_chunks() for name, column in held.items()}
    return part


def _stacked(held: Sequence[Any], sizes: Sequence[int], name: str) -> Any:
    """Return one column of those of several parts, of which some, None, do not have it."""
    import pyarrow

    example = next((column for column in held if column is not None), None)
    if example is None:  # what was taken out before
        return None
    if isinstance(example, Entries):
        missing = [Entries(np.full(size, math.nan), np.zeros(size, bool)) for size in sizes]
        filled = [gap if column is None else column for column, gap in zip(held, missing, strict=True)]
        return Entries(*map(np.concatenate, zip(*filled, strict=True)))
    if isinstance(example, np.ndarray):
        gap = {"feedback": ABSENT, "hashes": 0}.get(name, math.nan)
        return np.concatenate(
            [np.full(size, gap, example.dtype) if c is None else c for c, size in zip(held, sizes, strict=True)]
        )
    if isinstance(example, pyarrow.RecordBatch):
        return pyarrow.Table.from_batches(held).combine_chunks().to_batches()[0]
    filled = [pyarrow.nulls(size, example.type) if c is None else c for c, size in zip(held, sizes, strict=True)]
    return pyarrow.chunked_array(filled, example.type)
