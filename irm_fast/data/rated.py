"""Rated responses and pairs: the clean data that simulation starts from and evaluation ends with."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.data.files import FieldError, Problems, read_rows, shown
from irm_fast.data.rows import (
    PREFERENCE,
    TEXT_FIELDS,
    Fields,
    Messages,
    check_ids,
    index_of,
    level_of,
    mapping_of,
    messages_of,
    name_of,
    number_of,
    prompt_of,
    propensity_of,
    spellings,
    text_of,
)

RATED_FIELDS = spellings(
    {
        **TEXT_FIELDS,
        "rating": ("rating", "score", "label", "stars"),
        "preference": PREFERENCE,
        "pair": ("pair", "pair_id"),
        "propensity": ("propensity",),
    }
)
PAIR_FIELDS = spellings(
    {
        "id": TEXT_FIELDS["id"],
        "prompt": TEXT_FIELDS["prompt"],
        "chosen": ("chosen",),
        "rejected": ("rejected",),
    }
)


@dataclass(frozen=True)
class Rated:
    """Responses with known quality, N of them.

    ids: N unique names.  messages: N conversations, the last turn of each the assistant's response.
    rating: (N,) float64.  preference: (N,) int8, 1 or 0: as given, or else whether the rating lies above the
    median; of two levels, the higher one.  pair: (N,) int64, one number for the two responses of a pair, -1 for a
    response without a pair.
    """

    ids: list[str]
    messages: list[Messages]
    rating: np.ndarray
    preference: np.ndarray
    pair: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, index: np.ndarray) -> Rated:
        """The rows that `index` selects: integers or a boolean mask."""
        rows = np.arange(len(self))[index]
        return Rated(
            ids=[self.ids[i] for i in rows],
            messages=[self.messages[i] for i in rows],
            rating=self.rating[rows],
            preference=self.preference[rows],
            pair=self.pair[rows],
        )


def read_rated(path: Path | str) -> Rated:
    """Reads explicit ratings, preferences or pairs from a .jsonl, .jsonl.gz or .parquet file.

    A row holds prompt, completion, and a rating or a preference of 0 or 1. Or it is a pair, `chosen` and
    `rejected`, with or without a separate prompt: lists of messages, or texts in the layout of hh-rlhf,
    "\\n\\nHuman: ...\\n\\nAssistant: ...". Pairs in which a response is empty are left out with a warning.
    Raises DataError with all that is wrong.
    """
    problems = Problems(path)
    rows: list[RatedRow] = []
    layouts = set()
    for line, raw in read_rows(path, problems):
        layouts.add(is_pair(raw))
        rows += rated_rows(line, raw, problems)
    start = len(problems.kept)
    if len(layouts) > 1:
        problems.add(None, "chosen", "given in some rows only; expected all rows or none in a file")
    elif rows or not problems.total:
        _check_file(rows, problems)
    problems.put_first(start)
    problems.raise_if_any()
    _warn_of_left_out(path, problems)
    preference = np.array([row.preference for row in rows], np.int8)
    rating = np.array([row.preference if row.rating is None else row.rating for row in rows], np.float64)
    return Rated(
        ids=[row.id for row in rows],
        messages=[row.messages for row in rows],
        rating=rating,
        preference=np.where(preference < 0, _liked(rating), preference).astype(np.int8),
        pair=np.array([row.pair for row in rows], np.int64),
    )


def _warn_of_left_out(path: Path | str, problems: Problems) -> None:
    if problems.left_out:
        lines = ", ".join(map(str, problems.left_out[:10])) + (", ..." if len(problems.left_out) > 10 else "")
        text = f"{path}: {len(problems.left_out)} pairs left out because a response is empty: lines {lines}"
        warnings.warn(text, stacklevel=3)


def read_conversations(path: str | Path) -> tuple[list[str], list[Messages]]:
    """Ids and conversations of any data that holds them: a log, rated responses, pairs, or nothing else.

    Fields other than id, prompt, completion, chosen and rejected are ignored.

    Raises:
        DataError: what is wrong, by file, line and field.
    """
    problems, known = Problems(path), spellings(TEXT_FIELDS)
    found: list[tuple[int, str, Messages]] = []
    for line, raw in read_rows(path, problems):
        raw = {key: value for key, value in raw.items() if key in known or key in ("chosen", "rejected")}
        if is_pair(raw):
            found += [(line, row.id, row.messages) for row in rated_rows(line, raw, problems)]
            continue
        row = Fields(line, raw, known, problems)
        found.append((line, row.get("id", name_of, f"row-{line}"), row.conversation()))
    if not found and not problems.total:
        problems.add(None, "file", "empty; expected at least one row")
    check_ids(((line, name) for line, name, _ in found), problems)
    problems.raise_if_any()
    _warn_of_left_out(path, problems)
    return [name for _, name, _ in found], [messages for *_, messages in found]


def _liked(rating: np.ndarray) -> np.ndarray:
    """(N,) bool from (N,) ratings: above the median, or the higher of just two levels."""
    # Two levels are labels: where most rows have the higher one, it is the median and no row lies above it.
    two = len(np.unique(rating)) == 2
    return rating == rating.max() if two else rating > np.median(rating)


def check_both(rated: Rated) -> None:
    """Raises ValueError unless some rows are preferred and some are not."""
    liked = int(rated.preference.sum())
    if liked in (0, len(rated)):
        raise ValueError(
            f"preference: all {len(rated)} rows are {'preferred' if liked else 'not preferred'}; expected rows of "
            "both kinds. The rule is: rated above this file's median, or the higher of two levels; "
            "give `preference` explicitly"
        )


def _check_file(rows: list[RatedRow], problems: Problems) -> None:
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


@dataclass(frozen=True)
class RatedRow:
    """One rated response, as read."""

    line: int
    id: str
    messages: Messages
    rating: float | None
    preference: int
    pair: int


def rated_rows(line: int, raw: Mapping[str, Any], problems: Problems) -> list[RatedRow]:
    """The rated responses of one row: one, or two of a pair; none if anything is wrong."""
    if is_pair(raw):
        return _pair_rows(line, raw, problems)
    fields = Fields(line, raw, RATED_FIELDS, problems)
    row = RatedRow(
        line=line,
        id=fields.get("id", name_of, f"row-{line}"),
        messages=fields.conversation(),
        rating=fields.get("rating", number_of, None),
        preference=fields.get("preference", level_of, -1),
        pair=fields.get("pair", index_of, -1),
    )
    fields.get("propensity", mapping_of(propensity_of), None)
    if not fields.failed and row.rating is None and row.preference < 0:
        fields.fail("rating", "missing; expected a rating, or a preference of 1 or 0")
    return [] if fields.failed else [row]


def is_pair(raw: Mapping[str, Any]) -> bool:
    """Whether a row has the chosen/rejected layout."""
    return raw.get("chosen") is not None or raw.get("rejected") is not None


def _pair_rows(line: int, raw: Mapping[str, Any], problems: Problems) -> list[RatedRow]:
    fields = Fields(line, raw, PAIR_FIELDS, problems)
    name = fields.get("id", name_of, f"row-{line}")
    prompt = fields.get("prompt", _pair_prompt_of, None) or []
    rows = []
    for side, level in (("chosen", 1), ("rejected", 0)):
        if side not in fields.values:
            fields.fail(side, "missing; expected the other response of the pair")
        turns = fields.get(side, _side_of(prompt), None) or []
        rows.append(RatedRow(line, f"{name}-{side}", turns, float(level), level, pair=line))
    if fields.failed:
        return []
    if not all(row.messages[-1]["content"].strip() for row in rows):
        problems.left_out.append(line)
        return []
    return rows


def _pair_prompt_of(value: object, field: str) -> Messages:
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        return prompt_of(value, field)
    turns = dialogue_of(value, field)
    # "\n\nAssistant:" at the end only announces the response.
    return turns if turns[-1]["content"] else turns[:-1]


def _side_of(prompt: Messages) -> Callable[[object, str], Messages]:
    """A parser of `chosen` or `rejected`: the response alone, or the whole conversation."""

    def parse_side(value: object, field: str) -> Messages:
        if prompt and isinstance(value, str) and not value.startswith("\n\nHuman:"):
            turns = [{"role": "assistant", "content": text_of(value, field).strip()}]
        else:
            turns = dialogue_of(value, field)
        if turns[: len(prompt)] != prompt:
            if turns[0]["role"] != "assistant":
                raise FieldError(field, "begins with another prompt; expected the row's, or none")
            turns = prompt + turns
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise FieldError(field, "expected a prompt, and the assistant's turn at the end")
        return turns

    return parse_side


_DIALOGUE = re.compile(r"\n\n(Human|Assistant):")


def dialogue_of(value: object, field: str) -> Messages:
    """Messages from a list, or from text such as "\\n\\nHuman: ...\\n\\nAssistant: ..." (the hh-rlhf layout).

    Neighbouring turns of one speaker are joined, since many chat templates demand that speakers alternate.
    """
    if not isinstance(value, str):
        return messages_of(value, field)
    start, *parts = _DIALOGUE.split(text_of(value, field))
    if start or not parts or parts[0] != "Human":
        raise FieldError(field, f"got {shown(value)}; expected messages, or text that begins '\\n\\nHuman:'")
    turns: Messages = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content.strip()}".strip()
        else:
            turns.append({"role": role, "content": content.strip()})
    return turns
