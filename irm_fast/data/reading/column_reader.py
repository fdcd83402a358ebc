"""Rows of a log read by columns: what `log_row` makes of them one by one, of a block at once.

A block is read row by row instead if anything about it is in doubt, and so are single rows: what is wrong is decided,
and worded, in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from irm_fast.data.declarations import Declarations
from irm_fast.data.importing.layouts import KEYS as LAYOUT_KEYS
from irm_fast.data.log_rows import ACTIONS, FeatureKind
from irm_fast.data.parts import ABSENT, Entries, Part, Seen
from irm_fast.data.problems import FieldError, Problems, shown
from irm_fast.data.reading import column_values as check
from irm_fast.data.reading.blocks import TableBlock
from irm_fast.data.reading.column_turns import is_messages, texts_of
from irm_fast.data.reading.column_values import Checked
from irm_fast.data.reading.key_places import KeyPlaces
from irm_fast.data.reading.line_tables import LineTable
from irm_fast.data.rows import LOG_FIELDS, SEGMENTS, plain_name

MOST_DOUBTS = 0.5  # of the rows of a block, from which all are read one by one
_SMALLEST = 1.2e-38  # below every propensity, see `rows.propensity_of`
_NUMBERS = {"weight": "weight", "timestamp": "time", "position": "position", "label_probability": "label_probability"}


class InDoubtError(ValueError):
    """A block that has to be read row by row."""


def can_read(declared: Declarations) -> bool:
    """Return whether rows that are so declared may be read by columns."""
    return not declared.map


class Columns:
    """The columns of a block, as far as they are read.

    Args:
        first: The number of its first row.
        table: Its rows.
        declared: How the log is to be read.
        seen: What the rows before have.

    Raises:
        InDoubtError: The block has to be read row by row.
    """

    def __init__(self, first: int, table: LineTable | TableBlock, declared: Declarations, seen: Seen) -> None:
        self.first, self.declared, self.seen = first, declared, seen
        self.batch, self.rows = table.batch, len(table.batch)
        self.keys = KeyPlaces(table) if isinstance(table, LineTable) else None
        self.doubt = np.zeros(self.rows, bool)
        self.notes: list[Callable[[np.ndarray, Problems], None]] = []  # what to note of the rows that are taken
        self.held = self._by_field()

    def _by_field(self) -> dict[str, Any]:
        """Return the columns that are read by their canonical names."""
        if _may_be_of_another_layout(self.batch.schema):
            raise InDoubtError("may be records of another layout")
        if self.declared.signals and not set(self.declared.signals).isdisjoint(self.batch.schema.names):
            raise InDoubtError("signals are columns")
        held, actions = dict[str, Any](), False
        for name, column in zip(self.batch.schema.names, self.batch.columns, strict=True):
            actions = actions or plain_name(name) in ACTIONS
            column = check.flat(column)
            given = check.is_given(column)
            if not given.any():
                continue
            try:
                canonical = LOG_FIELDS.canonical(name)
            except FieldError as error:
                raise InDoubtError(name) from error
            if canonical in held:
                raise InDoubtError(f"two columns are {canonical}")
            if canonical is None:
                self.notes.append(_ignored(name, given))
            else:
                held[canonical] = column
        if "prompt" not in held:
            raise InDoubtError("no prompt")
        if is_messages(held["prompt"]) and (self.declared.fold_system or self.declared.join_turns):
            raise InDoubtError("turns change")
        in_all = "feedback" in held and check.is_given(held["feedback"]).all()
        if actions and not (in_all and "feedback" in self.batch.schema.names):
            raise InDoubtError("signals may be columns")
        return held

    def take(self, checked: Checked) -> Checked:
        """Note the rows that are in doubt."""
        self.doubt |= checked.doubt
        return checked

    def objects(self, name: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Return a mask of the rows that have an object, and its columns by name; without any if it is no object."""
        import pyarrow.types as t

        column = self.held.get(name)
        if column is None:
            return np.zeros(self.rows, bool), {}
        within = check.is_given(column)
        if not t.is_struct(column.type):
            self.doubt |= within
            return np.zeros(self.rows, bool), {}
        names = [field.name for field in column.type]
        if len(set(names)) < len(names) or any(not key.strip() or not _can_be_encoded(key) for key in names):
            raise InDoubtError(f"names within {name}")
        return within, {key: check.flat(entry) for key, entry in zip(names, column.flatten(), strict=True)}

    def with_key(self, name: str, within: np.ndarray, column: Any, given: np.ndarray) -> np.ndarray:
        """Return a mask of the rows that have a key in an object, which may be null there."""
        if self.keys is None:  # of a table, in which what is null is absent, but NaN is not
            has: np.ndarray = column.is_valid().to_numpy(zero_copy_only=False)
            return has
        has, doubt = self.keys.has_key(name, within, given)
        self.doubt |= doubt
        return has


def part_of_columns(columns: Columns, problems: Problems) -> tuple[Part, np.ndarray]:
    """Return the rows of a block that are plain, and the places of the others.

    Args:
        columns: The columns of the block.
        problems: Gets what should be known.

    Raises:
        InDoubtError: All rows have to be read one by one.
    """
    conversations, doubt = texts_of(columns.held["prompt"], columns.held.get("completion"))
    columns.doubt |= doubt
    recorded, feedback = _feedback(columns)
    features, featured, texts, kinds = _features(columns)
    preference = _level(columns, "preference")
    numbers = _numbers(columns)
    who = [name for name in ("user_id", "session_id") if name in columns.held]
    segments = texts | {name: c.values for name in SEGMENTS if (c := _named(columns, name, check.names))}
    if set(SEGMENTS) & set(texts) & columns.held.keys():
        raise InDoubtError("a segment has two places")
    lines = np.arange(columns.first, columns.first + columns.rows)
    part = Part(
        lines=lines,
        ids=_ids(columns, lines),
        texts=conversations,
        recorded=recorded,
        preference=preference,
        featured=featured,
        feedback=feedback,
        numbers=numbers,
        propensity=_entries(columns, "propensity", lambda column: check.numbers(column, most=1, above=_SMALLEST)),
        acted_at=_entries(columns, "acted_at", check.times),
        features=features,
        names={name: _users(columns, name) for name in who},
        segments=segments,
    )
    doubts = np.flatnonzero(columns.doubt)
    if len(doubts) > MOST_DOUBTS * columns.rows:
        raise InDoubtError("most rows")
    if len(doubts):
        part = part.subset(~columns.doubt)
    part = part.without_empty()
    _extend(columns.seen, part, kinds, alone=not len(doubts))
    for note in columns.notes:
        note(~columns.doubt, problems)
    return part, doubts


def _extend(seen: Seen, part: Part, kinds: dict[str, type], *, alone: bool) -> None:
    """Take what the rows of a part have, in the order of its first appearance, or leave that to the rows one by one."""
    feedback = {name: column != ABSENT for name, column in part.feedback.items()}
    signals = [name for name, has in feedback.items() if name not in seen.signals and has.any()]
    given = {name: check.is_given(column) for name, column in part.segments.items()}
    segments = [name for name, has in given.items() if name not in seen.segments and has.any()]
    new = {name: kind for name, kind in kinds.items() if name not in seen.kinds}
    numbers = tuple(name for name, kind in kinds.items() if kind is float)
    if not alone and (signals or segments or new):
        raise InDoubtError("new names")
    seen.signals.update(dict.fromkeys(sorted(signals, key=lambda name: int(feedback[name].argmax()))))
    seen.segments.update(dict.fromkeys(sorted(segments, key=lambda name: int(given[name].argmax()))))
    for name, kind in new.items():
        has = part.featured if kind is float else given[name]
        seen.kinds[name] = FeatureKind(kind, int(part.lines[has.argmax()]))
    if numbers and seen.feature_names is None:
        seen.feature_names = numbers


def _ids(columns: Columns, lines: np.ndarray) -> Any:
    """Return the names of all rows, of which those without have that of their line."""
    import pyarrow as pa
    import pyarrow.compute as pc

    checked = _named(columns, "id", check.names)
    if checked is not None and checked.given.all():
        return checked.values
    numbered = pc.binary_join_element_wise("row", pa.array(lines).cast(pa.string()), "-")
    if checked is None:
        return numbered
    return pc.if_else(checked.values.is_valid(), checked.values, numbered)


def _named(columns: Columns, name: str, checker: Callable[[Any], Checked]) -> Checked | None:
    """Return the names of a column, or None if there is no such column."""
    return columns.take(checker(columns.held[name])) if name in columns.held else None


def _users(columns: Columns, name: str) -> Any:
    """Return the users or the sessions, null where they are not known, of which a note is taken."""
    import pyarrow as pa
    import pyarrow.compute as pc

    checked, unknown = check.users(columns.held[name])
    columns.take(checked)
    if not unknown.any():
        return checked.values

    def note(taken: np.ndarray, problems: Problems) -> None:
        counted = checked.values.filter(pa.array(unknown & taken)).value_counts()
        for entry in counted.to_pylist():
            problems.noted[f"{name}: {shown(entry['values'])} is taken as not known"] += entry["counts"]

    columns.notes.append(note)
    return pc.if_else(pa.array(unknown), pa.scalar(None, pa.string()), checked.values)


def _level(columns: Columns, name: str) -> np.ndarray:
    if name not in columns.held:
        return np.full(columns.rows, -1, np.int8)
    values: np.ndarray = columns.take(check.levels(columns.held[name])).values
    return values


def _numbers(columns: Columns) -> dict[str, np.ndarray]:
    checkers: dict[str, Callable[[Any], Checked]] = {
        "weight": lambda column: check.numbers(column, least=0),
        "timestamp": check.times,
        "position": check.numbers,
        "label_probability": lambda column: check.numbers(column, most=1, above=_SMALLEST),
    }
    return {
        _NUMBERS[name]: columns.take(checker(columns.held[name])).values
        for name, checker in checkers.items()
        if name in columns.held
    }


def _feedback(columns: Columns) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a mask of the rows with feedback, and by signal 1, 0, -1 or `ABSENT`."""
    recorded, entries = columns.objects("feedback")
    declared, found = columns.declared, dict[str, np.ndarray]()
    for name, column in entries.items():
        checked = check.levels(column, counts=declared.are_counts(name))
        has = columns.with_key(name, recorded, column, checked.given)
        if declared.signals is not None and name not in declared.signals:
            columns.notes.append(_ignored(f"feedback.{name}", has))
            continue
        columns.take(checked)
        values = np.where(~checked.given & has & declared.null_is_silent(name), 0, checked.values)
        found[name] = np.where(has, values, ABSENT).astype(np.int8)
    return recorded, found


def _entries(columns: Columns, field: str, checker: Callable[[Any], Checked]) -> dict[str, Entries]:
    """Return numbers by signal, of which a row has some."""
    within, entries = columns.objects(field)
    found = {}
    for name, column in entries.items():
        checked = columns.take(checker(column))
        # Null says nothing, but that there is such a key, which must be that of a signal
        if field == "propensity" and name not in columns.seen.signals:
            columns.doubt |= within & ~checked.given
        if checked.given.any():
            found[name] = Entries(np.where(checked.given, checked.values, np.nan), checked.given)
    return found


def _features(columns: Columns) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any], dict[str, type]]:
    """Return features that are numbers, a mask of the rows that have them, those that are texts, and what each is."""
    import pyarrow.types as t

    within, entries = columns.objects("features")
    numbers, texts, kinds = dict[str, np.ndarray](), dict[str, Any](), dict[str, type]()
    for name, column in entries.items():
        checked = (check.names if t.is_string(column.type) else check.numbers)(column)
        if not checked.given.any():
            known = columns.seen.kinds.get(name)
            if known is None or known.type is float:  # null in the place of a number, perhaps
                columns.doubt |= within
            continue
        kinds[name] = str if t.is_string(column.type) else float
        if name in columns.seen.kinds and columns.seen.kinds[name].type is not kinds[name]:
            raise InDoubtError(f"{name} is of two kinds")
        columns.take(checked)
        if kinds[name] is str:
            texts[name] = checked.values
        else:
            columns.doubt |= within & ~checked.given
            numbers[name] = checked.values
    if numbers and columns.seen.feature_names is not None and set(numbers) != set(columns.seen.feature_names):
        raise InDoubtError("other features")
    return numbers, within if numbers else np.zeros(columns.rows, bool), texts, kinds


def _ignored(name: str, given: np.ndarray) -> Callable[[np.ndarray, Problems], None]:
    def note(taken: np.ndarray, problems: Problems) -> None:
        if count := int((given & taken).sum()):
            problems.ignored[name] += count

    return note


def _may_be_of_another_layout(schema: Any) -> bool:
    """Return whether rows with these fields may be records of another layout than that of a log."""
    import pyarrow.types as t

    for name in LAYOUT_KEYS.intersection(schema.names):
        kind = schema.field(name).type
        if name == "messages" and t.is_list(kind) and t.is_struct(kind.value_type):
            if not {"messageId", "feedback"}.isdisjoint(field.name for field in kind.value_type):
                return True
        elif name != "label" or t.is_boolean(kind):
            return True
    return False


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
