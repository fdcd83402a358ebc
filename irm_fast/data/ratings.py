"""Rows of rated data: a rated response, or a pair of a chosen and a rejected one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from irm_fast.data.messages import Messages, as_json, messages_of, prompt_of, text_of
from irm_fast.data.problems import FieldError, Problems, shown
from irm_fast.data.rows import (
    PREFERENCE,
    TEXT_FIELDS,
    USER,
    FieldNames,
    Fields,
    index_of,
    level_of,
    mapping_of,
    name_of,
    number_of,
    propensity_of,
    user_of,
    weight_of,
)

RATED_FIELDS = FieldNames(
    {
        **TEXT_FIELDS,
        "rating": ("rating", "score", "label", "stars"),
        "preference": PREFERENCE,
        "pair": ("pair", "pair_id"),
        "user_id": USER,
        "model": ("model", "model_name"),
        "propensity": ("propensity",),
    }
)
PAIR_FIELDS = FieldNames(
    {
        "id": TEXT_FIELDS["id"],
        "prompt": tuple(
            name for name in TEXT_FIELDS["prompt"] if name != "messages"
        ),  # some pairs repeat the chosen ones there
        "chosen": ("chosen",),
        "rejected": ("rejected",),
        "margin": ("margin",),
        "user_id": USER,
    }
)
_DIALOGUE = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class RatedRow:
    """A rated response as it was read.

    Attributes:
        line: The number of its line in the file.
        id: Its name.
        messages: The conversation that ends with it.
        rating: Its rating, or None.
        preference: 1 it is preferred, 0 it is not, -1 not given.
        pair: The number that it shares with the other response of its pair, or -1.
        user_id: The user who rated it, or None.
        model: The name of the model that wrote it, or None.
    """

    line: int
    id: str
    messages: Messages
    rating: float | None
    preference: int
    pair: int
    user_id: str | None = None
    model: str | None = None


def rated_rows(line: int, raw: Mapping[str, object], problems: Problems) -> list[RatedRow]:
    """Parse one row: into a rated response, or the two of a pair, or none if anything is wrong."""
    if is_pair(raw):
        return _pair_rows(line, raw, problems)
    fields = Fields(line, raw, RATED_FIELDS, problems)
    label = fields.values.get("rating")  # true or false, as the layout of unpaired preferences has it
    row = RatedRow(
        line=line,
        id=fields.get("id", name_of, f"row-{line}"),
        messages=fields.conversation(),
        rating=fields.get("rating", _rating_of, None),
        preference=int(label) if isinstance(label, bool) else fields.get("preference", level_of, -1),
        pair=fields.get("pair", index_of, -1),
        user_id=fields.get("user_id", user_of, None),
        model=fields.get("model", name_of, None),
    )
    fields.get("propensity", mapping_of(propensity_of), None)
    if not fields.failed and row.rating is None and row.preference < 0:
        fields.fail("rating", "missing; expected a rating, or a preference of 1 or 0")
    return [] if fields.failed else [row]


def _rating_of(value: object, field: str) -> float:
    """Parse a rating: a number, or true or false."""
    return float(value) if isinstance(value, bool) else number_of(value, field)


def is_pair(raw: Mapping[str, object]) -> bool:
    """Return True if a row is a pair of a chosen and a rejected response."""
    return raw.get("chosen") is not None or raw.get("rejected") is not None


def _pair_rows(line: int, raw: Mapping[str, object], problems: Problems) -> list[RatedRow]:
    """Parse a pair into its chosen and its rejected response."""
    pair = pair_row(line, raw, problems)
    if pair is None:
        return []
    sides = (("chosen", 1, pair.chosen), ("rejected", 0, pair.rejected))
    return [
        RatedRow(line, f"{pair.id}-{side}", turns, float(level), level, pair=line, user_id=pair.user_id)
        for side, level, turns in sides
    ]


@dataclass(frozen=True)
class PairRow:
    """A pair as it was read.

    Attributes:
        line: The number of its line in the file.
        id: Its name.
        chosen: The conversation that ends with the preferred response.
        rejected: The conversation that ends with the other response.
        margin: By how much the reward of the chosen response is to be higher, in logits.
        user_id: The user who chose, or None.
    """

    line: int
    id: str
    chosen: Messages
    rejected: Messages
    margin: float
    user_id: str | None


def pair_row(line: int, raw: Mapping[str, object], problems: Problems) -> PairRow | None:
    """Parse a pair; None if anything is wrong. A pair with an empty response is left out."""
    fields = Fields(line, raw, PAIR_FIELDS, problems)
    name = fields.get("id", name_of, f"row-{line}")
    prompt = fields.get("prompt", _pair_prompt_of, None) or []
    user = fields.get("user_id", user_of, None)
    margin = fields.get("margin", weight_of, 0.0)
    for side in ("chosen", "rejected"):
        if side not in fields.values:
            fields.fail(side, "missing; expected the other response of the pair")
    none: Messages = []
    chosen, rejected = (fields.get(side, _side_of(prompt), none) for side in ("chosen", "rejected"))
    if fields.failed:
        return None
    if not all(turns[-1]["content"].strip() for turns in (chosen, rejected)):
        problems.left_out.append(line)
        return None
    return PairRow(line, name, chosen, rejected, margin, user)


def _pair_prompt_of(value: object, field: str) -> Messages:
    """Parse the separate prompt of a pair."""
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        return prompt_of(value, field)
    turns = dialogue_of(value, field)
    # "\n\nAssistant:" at the end only announces the response.
    return turns if turns[-1]["content"] else turns[:-1]


def _side_of(prompt: Messages) -> Callable[[object, str], Messages]:
    """Return a parser of `chosen` or `rejected`, which hold the response alone or the whole conversation."""

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


def dialogue_of(value: object, field: str) -> Messages:
    """Parse messages from a list, or from text such as "\\n\\nHuman: ...\\n\\nAssistant: ..." (the hh-rlhf layout).

    Neighbouring turns of one speaker are joined, since many chat templates demand that speakers alternate.
    """
    held = as_json(value)
    if not isinstance(value, str) or isinstance(held, list):
        return messages_of(held, field)
    start, *parts = _DIALOGUE.split(text_of(value, field))
    if start or not parts or parts[0] != "Human":
        text = f"got {shown(value)}; expected messages, or, without a prompt, text that begins '\\n\\nHuman:'"
        raise FieldError(field, text)
    turns: Messages = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content.strip()}".strip()
        else:
            turns.append({"role": role, "content": content.strip()})
    return turns
