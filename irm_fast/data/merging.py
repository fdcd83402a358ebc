"""Merging ratings into a log: what people say of the rows that `irm-fast label --next` drew for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from irm_fast.data.messages import Messages
from irm_fast.data.problems import Problems, closest, shown
from irm_fast.data.reading.sources import read_rows
from irm_fast.data.rows import PREFERENCE, TEXT_FIELDS, FieldNames, Fields, level_of, name_of, propensity_of
from irm_fast.data.writing.rewriting import rewritten, spelled

CHANCE = "label_probability"
FIELDS = FieldNames({**TEXT_FIELDS, "preference": PREFERENCE, CHANCE: (CHANCE,)})


class Rating(NamedTuple):
    """What a person says of a row.

    Attributes:
        line: The line of the ratings.
        preference: 1 the response pleases, 0 it does not.
        chance: The probability with which the row was drawn, or None.
        messages: The conversation that was rated, or None where the ratings do not have it.
    """

    line: int
    preference: int
    chance: float | None
    messages: Messages | None


class Merged(NamedTuple):
    """What became of ratings.

    Attributes:
        rows: The number of rows of the log.
        merged: The number of ratings that the log did not have.
        had: The number of ratings that it had already.
        unrated: The number of rows among the ratings without a preference.
        without_chance: The number of merged ratings without a probability.
    """

    rows: int
    merged: int
    had: int
    unrated: int
    without_chance: int


def merge_ratings(rated: Path, data: Path, out: Path) -> Merged:
    """Write a log with ratings as preferences, and the probabilities with which their rows were drawn.

    Rows are matched by id, and by text where the ratings have it. All else of the log stays as it is, row by row; it is
    read in passing, never as a whole.

    Args:
        rated: What `write_labels` wrote, filled in: rows with `id`, `preference` (null: not rated), the text and
            `label_probability`. Other fields are ignored. A row may be rated twice, alike.
        data: The log: a .jsonl, .jsonl.gz or .parquet file.
        out: The file to write, of the same kind. One of this name is replaced.

    Returns:
        What became of the ratings.

    Raises:
        DataError: By line and field, ratings that contradict each other or the log, that are not of rows of the log, or
            that cannot be read; or the log cannot be read. Nothing is written.
        ValueError: The name of the file to write is of another kind than the log.
    """
    ratings, unrated = _read_ratings(rated)
    merge = _Merge(ratings, rated, data)
    kinds = {PREFERENCE: "int8", (CHANCE,): "float64"}
    with rewritten(data, out, merge.changes, kinds, FIELDS, merge.problems):
        merge.check_found()
    return Merged(merge.rows, merge.merged, len(merge.found) - merge.merged, unrated, merge.without_chance)


def _read_ratings(path: Path) -> tuple[dict[str, Rating], int]:
    """Return the ratings by id, and the number of the rows without one."""
    problems, ratings, rows = Problems(path), dict[str, Rating](), set[str]()
    for line, raw in read_rows(path, problems):
        fields = _fields(line, raw, problems)
        if not raw.keys() & set(PREFERENCE):
            hint = closest("preference", tuple(raw))
            fields.fail("preference", f"missing{hint}; expected 1, 0, or null where it is not known")
        if "id" not in fields.values:
            fields.fail("id", "missing; expected that of a row of the log")
        name = fields.get("id", name_of, "")
        new = Rating(line, fields.get("preference", level_of, -1), *_chance_and_text(fields))
        rows.add(name)
        earlier = ratings.get(name, new)
        if fields.failed or new.preference < 0:
            continue
        if earlier.preference != new.preference:
            text = (
                f"got {new.preference}, but line {earlier.line} rates the same row {earlier.preference}; expected one "
                "answer: keep either line, not neither: rows on which people differ belong to a log, too"
            )
            problems.add(line, "preference", text)
        ratings[name] = earlier
    if not ratings and not problems.total:
        problems.add(None, "preference", f"none in {len(rows)} rows; expected 1 or 0 in some")
    problems.raise_if_any()
    return ratings, len(rows) - len(ratings)


def _fields(line: int, raw: Mapping[str, object], problems: Problems) -> Fields:
    return Fields(line, {key: value for key, value in raw.items() if key in FIELDS}, FIELDS, problems)


def _chance_and_text(fields: Fields) -> tuple[float | None, Messages | None]:
    """Return the probability of a row and its conversation, each None where it is not given."""
    given = {"prompt", "completion"} & fields.values.keys()
    return fields.get(CHANCE, propensity_of, None), fields.conversation() if given else None


class _Merge:
    """Ratings on their way into a log: what they change in each row, and what was found so far.

    Attributes:
        rows: The number of rows that were seen.
        merged: The number of rows that got a preference.
        without_chance: Those of them without a probability.
        found: By id, the line in which a rated row was seen.
    """

    def __init__(self, ratings: Mapping[str, Rating], rated: Path, data: Path) -> None:
        self.ratings, self.rated = ratings, rated
        self.problems = Problems(data)
        self.rows = self.merged = self.without_chance = 0
        self.found: dict[str, int] = {}

    def changes(self, line: int, raw: Mapping[str, object]) -> dict[str, object]:
        """Return the fields of a row that its rating changes, by the names that they have there."""
        self.rows += 1
        fields = _fields(line, raw, self.problems)
        name = fields.get("id", name_of, f"row-{line}")
        rating = self.ratings.get(name)
        if rating is None:
            return {}
        if name in self.found:
            fields.fail("id", f"{shown(name)} is also in line {self.found[name]}; expected unique ids")
        self.found[name] = line
        label, (chance, messages) = fields.get("preference", level_of, -1), _chance_and_text(fields)
        where = f"{self.rated}:{rating.line}"
        if rating.messages is None and "id" not in fields.values:
            fields.fail("id", f"none, and {where} has no text to tell the row by; expected either")
        if rating.messages not in (None, messages):
            fields.fail("completion", f"prompt or response is not what {where} rates; expected the same text")
        if label not in (-1, rating.preference):
            fields.fail("preference", f"got {label}, but {where} says {rating.preference}; expected one answer")
        if None not in (chance, rating.chance) and chance != rating.chance:
            fields.fail(CHANCE, f"got {chance}, but {where} says {rating.chance}; expected one draw")
        if fields.failed:
            return {}
        self.merged += label < 0
        self.without_chance += label < 0 and chance is None and rating.chance is None
        new: dict[str, object] = {} if label >= 0 else {spelled(raw, PREFERENCE): rating.preference}
        return new if rating.chance in (None, chance) else new | {CHANCE: rating.chance}

    def check_found(self) -> None:
        """Raise DataError if a rated row is not in the log."""
        missing = Problems(self.rated)
        for name, rating in self.ratings.items():
            if name not in self.found:
                has = f"the log has no row {shown(name)} (it has {self.rows})"
                text = f"{has}; expected the log from which it was drawn"
                missing.add(rating.line, "id", text)
        missing.raise_if_any()
