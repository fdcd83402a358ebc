"""Rated responses and pairs: the clean data that simulation starts from and evaluation ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.data.importing.layouts import in_log_layout
from irm_fast.data.messages import Messages
from irm_fast.data.problems import Problems
from irm_fast.data.ratings import RatedRow, is_pair, rated_rows
from irm_fast.data.reading.blocks import RawRow
from irm_fast.data.reading.sources import Given, Source, rows_of
from irm_fast.data.rows import check_ids


@dataclass(frozen=True)
class Rated:
    """N responses of known quality.

    Attributes:
        ids: N unique names.
        messages: N conversations; the last turn of each is the assistant's response.
        rating: Ratings (float64) of shape (N,), higher is better.
        preference: Integers (int8) of shape (N,), 1 the response is preferred, 0 it is not: as given, or else whether
            the rating lies above the median of all, or, of two levels, is the higher one.
        pair: Integers (int64) of shape (N,), one number for the two responses of a pair, -1 for a response without one.
        user_ids: N names of the users who rated, None where not given; None if no row has one.
        models: N names of the models that wrote the responses, None where not given; None if no row has one.
    """

    ids: list[str]
    messages: list[Messages]
    rating: np.ndarray
    preference: np.ndarray
    pair: np.ndarray
    user_ids: list[str | None] | None = None
    models: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, index: np.ndarray) -> Rated:
        """Return the rows that an index selects: row numbers, or a mask of shape (N,)."""
        rows = np.arange(len(self))[index]
        return Rated(
            ids=[self.ids[i] for i in rows],
            messages=[self.messages[i] for i in rows],
            rating=self.rating[rows],
            preference=self.preference[rows],
            pair=self.pair[rows],
            user_ids=None if self.user_ids is None else [self.user_ids[i] for i in rows],
            models=None if self.models is None else [self.models[i] for i in rows],
        )


def read_rated(source: Given) -> Rated:
    """Read explicit ratings, preferences or pairs.

    A row holds a prompt, a completion, and a rating or a preference of 0 or 1. Or it is a pair, `chosen` and
    `rejected`, with or without a separate prompt: lists of messages, or texts in the layout of hh-rlhf,
    "\\n\\nHuman: ...\\n\\nAssistant: ...". Pairs in which a response is empty are left out with a warning. Who rated
    (`user_id`) and which model wrote the response (`model`, of rows alone) may stand beside it.

    Args:
        source: A file, several, or rows in memory, as of `read_log`.

    Returns:
        The rated responses, in the order of the source.

    Raises:
        DataError: All that is wrong with it, by file, line and field.

    Examples:
        >>> rated = read_rated("test.jsonl")  # doctest: +SKIP
        >>> rated.preference.mean()  # doctest: +SKIP
        0.5
    """
    source = Source.of(source)
    rated, problems = parse_rated(source, source)
    problems.warn_of_notes()
    warn_of_left_out(problems)
    return rated


def parse_rated(source: Source, raw: Iterable[RawRow]) -> tuple[Rated, Problems]:
    """Parse rows of rated responses, as `read_rated` describes.

    Returns:
        The rated responses, and the problems, of which there are none, with the lines that were left out.

    Raises:
        DataError: All that is wrong with the rows, by file, line and field.
    """
    problems = Problems(source)
    rows: list[RatedRow] = []
    layouts = set()
    for line, content in rows_of(in_log_layout(raw, problems.noted, lambda layout: layout.labels), problems):
        layouts.add(is_pair(content))
        rows += rated_rows(line, content, problems)
    if len(layouts) > 1:
        problems.add(None, "chosen", "given in some rows only; expected all rows or none in a file")
    elif rows or not problems.total:
        _check_file(rows, problems)
    problems.raise_if_any()
    preference = np.array([row.preference for row in rows], np.int8)
    rating = np.array([row.preference if row.rating is None else row.rating for row in rows], np.float64)
    rated = Rated(
        ids=[row.id for row in rows],
        messages=[row.messages for row in rows],
        rating=rating,
        preference=np.where(preference < 0, _liked(rating), preference).astype(np.int8),
        pair=np.array([row.pair for row in rows], np.int64),
        user_ids=_names([row.user_id for row in rows]),
        models=_names([row.model for row in rows]),
    )
    return rated, problems


def warn_of_left_out(problems: Problems, why: str = "a response is empty") -> None:
    """Warn, at the caller's caller, of pairs that were left out."""
    if problems.left_out:
        lines = ", ".join(map(str, problems.left_out[:10])) + (", ..." if len(problems.left_out) > 10 else "")
        text = f"{problems.source}: {len(problems.left_out)} pairs left out because {why}: lines {lines}"
        warn_caller(text)


def _names(values: list[str | None]) -> list[str | None] | None:
    """Return the names, or None if no row has one."""
    return values if any(value is not None for value in values) else None


def _liked(rating: np.ndarray) -> np.ndarray:
    """Return a mask of the ratings (N,) that lie above the median, or, of just two levels, are the higher one."""
    # Two levels are labels: where most rows have the higher one, it is the median and no row lies above it.
    two = len(np.unique(rating)) == 2
    liked: np.ndarray = rating == rating.max() if two else rating > np.median(rating)
    return liked


def check_both(rated: Rated) -> None:
    """Raise ValueError unless some rows are preferred and some are not."""
    liked = int(rated.preference.sum())
    if liked in (0, len(rated)):
        raise ValueError(
            f"preference: all {len(rated)} rows are {'preferred' if liked else 'not preferred'}; expected rows of "
            "both kinds. The rule is: rated above this file's median, or the higher of two levels; "
            "give `preference` explicitly"
        )


def _check_file(rows: list[RatedRow], problems: Problems) -> None:
    """Report what is wrong with the rated responses as a whole."""
    if not rows:
        problems.add(None, "file", "no usable row; expected at least one")
    check_ids([(row.line, row.id) for row in rows], problems)
    without = [row.line for row in rows if row.rating is None]
    if 0 < len(without) < len(rows):
        problems.add(without[0], "rating", f"missing in {len(without)} rows; expected in all or none")
    sizes = Counter(row.pair for row in rows if row.pair >= 0)
    for row in rows:
        if row.pair >= 0 and sizes[row.pair] != 2:
            problems.add(row.line, "pair", f"pair {row.pair} has {sizes[row.pair]} row(s); expected two")
