"""The names of fields, the parsers of their values, and the fields of one row.

A parser takes a value and the name of its field, and returns the parsed value or raises FieldError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

from irm_fast.data.messages import Messages, as_json, completion_of, note_unread, prompt_of, says_something, text_of
from irm_fast.data.problems import FieldError, Problems, is_misspelt, shown

T = TypeVar("T")
D = TypeVar("D")

FLOAT32_MAX = 3.4028234663852886e38

TEXT_FIELDS = {
    "id": ("id", "row_id", "impression_id", "uuid"),
    "prompt": ("prompt", "messages", "question", "instruction", "input", "context"),
    "completion": ("completion", "response", "answer", "output", "generation"),
}
PREFERENCE = ("preference", "preferred")
SEGMENTS = ("platform", "version", "model", "arm")  # fields that name a part of the log
USER = ("user_id", "user")


def name_of(value: object, field: str) -> str:
    """Parse a name, such as an id: a text that is not empty, or a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise FieldError(field, f"got {shown(value)}; expected text that is not empty, or a whole number")
    return text_of(value, field)


def number_of(value: object, field: str) -> float:
    """Parse a finite number that float32 can hold; true and false are no numbers."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX:
        return float(value)
    raise FieldError(field, f"got {shown(value)}; expected a finite number (for a flag, 1 or 0)")


def weight_of(value: object, field: str) -> float:
    """Parse a number that is not negative."""
    weight = number_of(value, field)
    if weight < 0:
        raise FieldError(field, f"got {shown(value)}; expected a number that is not negative")
    return weight


def propensity_of(value: object, field: str) -> float:
    """Parse a propensity, null as NaN; the lower limit is the least number that float32 holds to full precision."""
    if value is None:
        return math.nan
    propensity = number_of(value, field)
    if not 1.2e-38 < propensity <= 1:
        raise FieldError(field, f"got {shown(value)}; expected a probability above 0 and up to 1")
    return propensity


def feature_of(value: object, field: str) -> float | str | None:
    """Parse a feature: a number, a text, or null where it is not known."""
    if value is None:
        return None
    if isinstance(value, str):
        return name_of(value, field)
    return number_of(value, field)


def level_of(value: object, field: str) -> int:
    """Parse 1 or 0, and null as -1."""
    if value is None:
        return -1
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return int(value)
    raise FieldError(field, f"got {shown(value)}; expected 1, 0, or null where it is not known")


def index_of(value: object, field: str) -> int:
    """Parse a whole number from 0."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    raise FieldError(field, f"got {shown(value)}; expected a whole number from 0")


_NAMES: set[str] = set()  # names of signals and features that have been checked


def _remember(name: str) -> None:
    if len(_NAMES) < 10_000:
        _NAMES.add(name)


def mapping_of(parse: Callable[[object, str], T]) -> Callable[[object, str], dict[str, T]]:
    """Return a parser of an object whose values `parse` reads."""

    def parse_mapping(value: object, field: str) -> dict[str, T]:
        value = as_json(value)
        if not isinstance(value, dict):
            raise FieldError(field, f"got {shown(value)}; expected an object such as {{name: value}}")
        found = {}
        for key, entry in value.items():
            if key not in _NAMES:
                _remember(name_of(key, field))
            found[key] = parse(unwrapped(entry) if type(entry) is dict else entry, f"{field}.{key}")
        return found

    return parse_mapping


UNKNOWN_USERS = {"", "nan", "none", "null", "undefined", "n/a", "na", "<na>", "unknown", "anonymous", "anon", "guest"}


def user_of(value: object, field: str) -> str | None:
    """Parse the name of a user or a session; None for what products write where it is not known."""
    if isinstance(value, float) and value.is_integer():  # of a column in which some are missing
        value = int(value)
    return None if isinstance(value, str) and value.strip().lower() in UNKNOWN_USERS else name_of(value, field)


def unwrapped(value: object) -> object:
    """Return what MongoDB's extended JSON wraps, such as {"$oid": "65a"} and {"$date": "2026-01-31"}."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    [(key, held)] = value.items()
    if key in ("$numberInt", "$numberLong", "$numberDouble", "$numberDecimal") and isinstance(held, str):
        held = as_number(held)
    return unwrapped(held) if key.startswith("$") else value


def as_number(text: str) -> object:
    """Return a text as a number, or as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@lru_cache(10_000)
def plain_name(name: str) -> str:
    """Return a name without capitals and separators: `userId` and `User ID` are spellings of `user_id`."""
    return re.sub(r"[\W_]", "", name).lower()


CANONICAL = (  # of fields of logs, ratings and pairs
    "prompt", "completion", "feedback", "propensity", "preference", "weight", "user_id", "session_id", "timestamp",
    "position", "label_probability", "acted_at", "features", "platform", "version", "rating", "chosen", "rejected",
    "margin",
)  # fmt: skip


class FieldNames(dict[str, str]):
    """The names that fields may have, each with its canonical one."""

    def __init__(self, names: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__({spelling: name for name, group in names.items() for spelling in group})
        self.plain = {plain_name(spelling): name for spelling, name in self.items()}
        self.found: dict[str, str | None] = dict(self)

    def canonical(self, key: str) -> str | None:
        """Return the canonical name of a field, by any spelling; None for another field.

        Raises:
            FieldError: The name is nearly that of a field.
        """
        if key not in self.found:
            name = self.plain.get(plain_name(key))
            near = [known for known in CANONICAL if is_misspelt(plain_name(key), plain_name(known))]
            if name is None and near:
                raise FieldError(
                    key,
                    f"unknown field; did you mean {near[0]!r}? Expected {near[0]!r}, or a name that is less like it",
                )
            if len(self.found) > 10_000:  # of a file whose rows have names of their own
                return name
            self.found[key] = name
        return self.found[key]


LOG_FIELDS = FieldNames(
    {
        **TEXT_FIELDS,
        "feedback": ("feedback",),
        "propensity": ("propensity",),
        "preference": PREFERENCE,
        "weight": ("weight", "sample_weight"),
        "user_id": USER,
        "session_id": ("session_id", "session"),
        "timestamp": ("timestamp", "created_at", "time"),
        "position": ("position",),
        "label_probability": ("label_probability",),
        "acted_at": ("acted_at",),
        "features": ("features",),
        **{name: (name,) for name in SEGMENTS},
    }
)


class Fields:
    """The fields of one row under their canonical names, and whether anything is wrong with them.

    Attributes:
        values: The values that are given, by canonical name.
        spelled: The name that the row gives each of them, by canonical name.
        failed: True once a problem with the row was reported.
    """

    def __init__(self, line: int, raw: Mapping[str, object], known: FieldNames, problems: Problems) -> None:
        self.line, self.problems, self.failed = line, problems, False
        self.values: dict[str, object] = {}
        self.spelled: dict[str, str] = {}
        for key, value in raw.items():
            if value is None:
                continue
            name = known.found.get(key)
            if name is None:  # of another spelling, or not ours
                try:
                    name = known.canonical(key)
                except FieldError as error:
                    self.fail(error.field, error.text)
                    continue
            if name is None:
                problems.ignored[key] += 1
            elif name in self.values:
                self._second(name, key, value)
            else:
                self.values[name] = unwrapped(value) if type(value) is dict else value
                self.spelled[name] = key

    def _second(self, name: str, key: str, value: object) -> None:
        """Take another field of one meaning: instruction and input (the Alpaca layout) are a prompt together."""
        first = self.values[name]
        if {self.spelled[name], key} == {"instruction", "input"} and isinstance(first, str) and isinstance(value, str):
            parts = (first, value) if key == "input" else (value, first)
            self.values[name] = "\n\n".join(part for part in parts if part.strip())
        else:
            self.fail(key, f"means the same as {self.spelled[name]!r} in this row; expected one of them")

    def fail(self, field: str, text: str) -> None:
        """Report a problem with a field."""
        self.failed = True
        self.problems.add(self.line, field, text)

    def get(self, name: str, parse: Callable[[object, str], T], default: D) -> T | D:
        """Return the parsed value of a field, or `default` where it is absent, null or wrong."""
        if name not in self.values:
            return default
        try:
            return parse(self.values[name], self.spelled[name])
        except FieldError as error:
            self.fail(error.field, error.text)
        except OverflowError:  # a number in memory, larger than any of a file
            self.fail(name, f"got {shown(self.values[name])}; expected a number that a float can hold")
        return default

    def conversation(self) -> Messages:
        """Return prompt and completion joined; `messages` alone, ending with the assistant's turn, holds both."""
        for name in ("prompt", "completion"):
            if type(value := self.values.get(name)) is list:
                note_unread(value, self.problems)
        prompt = self.get("prompt", prompt_of, None) or []
        completion = self.get("completion", completion_of, None) or []
        spelled = self.spelled.get("prompt", "prompt")
        if "prompt" not in self.values:
            self.fail("prompt", "missing; expected text or a list of messages")
        elif not prompt:
            pass  # reported above
        elif "completion" in self.values:
            if prompt[-1]["role"] == "assistant":
                self.fail(spelled, "ends with the assistant's turn beside a completion; expected one of them")
        elif len(prompt) < 2 or prompt[-1]["role"] != "assistant":
            self.fail("completion", "missing; expected text, or messages that end with the assistant's turn")
        elif not says_something(prompt[-1]):
            self.fail(spelled, "the last turn is empty; expected the text of the response")
        return prompt + completion


def check_ids(names: Iterable[tuple[int, str]], problems: Problems) -> int:
    """Report every id that an earlier row has too, and count them; `names` holds lines and their ids."""
    first: dict[str, int] = {}
    twice = 0
    for line, name in names:
        if name in first:
            twice += 1
            problems.add(line, "id", f"{shown(name)} is also in {problems.said(first[name])}; expected unique ids")
        first.setdefault(name, line)
    return twice
