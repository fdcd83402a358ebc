"""The names of fields, the parsers of their values, and the fields of one row.

A parser takes a value and the name of its field, and returns the parsed value or raises FieldError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from irm_fast.data.files import FieldError, Problems, closest, shown

Messages = list[dict[str, str]]
T = TypeVar("T")
D = TypeVar("D")

ROLES = ("system", "user", "assistant", "tool")
FLOAT32_MAX = 3.4028234663852886e38

TEXT_FIELDS = {
    "id": ("id", "row_id", "impression_id", "uuid"),
    "prompt": ("prompt", "messages", "question", "instruction", "input", "context"),
    "completion": ("completion", "response", "answer", "output", "generation"),
}
PREFERENCE = ("preference", "preferred")
SEGMENTS = ("platform", "version", "model")  # fields that name a part of the log
USER = ("user_id", "user")


def spellings(names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return a mapping from each name that a field may have to its canonical one."""
    return {spelling: name for name, group in names.items() for spelling in group}


LOG_FIELDS = spellings(
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


def text_of(value: object, field: str) -> str:
    """Parse a text that can be encoded."""
    if not isinstance(value, str):
        raise FieldError(field, f"got {shown(value)}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FieldError(field, f"got {shown(value)}; expected text without a lone surrogate") from None
    return value


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


def mapping_of(parse: Callable[[object, str], T]) -> Callable[[object, str], dict[str, T]]:
    """Return a parser of an object whose values `parse` reads."""

    def parse_mapping(value: object, field: str) -> dict[str, T]:
        if not isinstance(value, dict):
            raise FieldError(field, f"got {shown(value)}; expected an object such as {{name: value}}")
        for key in value:
            name_of(key, field)
        return {key: parse(entry, f"{field}.{key}") for key, entry in value.items()}

    return parse_mapping


def messages_of(value: object, field: str) -> Messages:
    """Parse a list of messages, each with role and content."""
    if not isinstance(value, list) or not value:
        raise FieldError(field, f"got {shown(value)}; expected text or a list of messages")
    return [_message_of(message, f"{field}[{i}]") for i, message in enumerate(value)]


def _message_of(value: object, field: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise FieldError(field, f"got {shown(value)}; expected an object with role and content")
    extra = [key for key, entry in value.items() if key not in ("role", "content") and entry is not None]
    if extra:
        raise FieldError(f"{field}.{extra[0]}", "unknown field of a message; expected role and content only")
    if value.get("role") not in ROLES:
        text = f"got {shown(value.get('role'))}; expected one of {', '.join(ROLES)}"
        raise FieldError(f"{field}.role", text)
    return {"role": value["role"], "content": text_of(value.get("content"), f"{field}.content")}


def prompt_of(value: object, field: str) -> Messages:
    """Parse a prompt: a text of the user, or a list of messages."""
    if not isinstance(value, str):
        return messages_of(value, field)
    if not value.strip():
        raise FieldError(field, "empty; expected the text that the response answers")
    return [{"role": "user", "content": text_of(value, field)}]


def completion_of(value: object, field: str) -> Messages:
    """Parse a completion: a text of the assistant, or a list of messages that ends with the assistant's turn."""
    if isinstance(value, str):
        turns = [{"role": "assistant", "content": text_of(value, field)}]
    else:
        turns = messages_of(value, field)
    if turns[-1]["role"] != "assistant" or any(turn["role"] in ("system", "user") for turn in turns):
        raise FieldError(field, "expected turns of the assistant (and tools) only, the assistant's last")
    if not turns[-1]["content"].strip():
        raise FieldError(field, "empty; expected the text of the response")
    return turns


class Fields:
    """The fields of one row under their canonical names, and whether anything is wrong with them.

    Attributes:
        values: The values that are given, by canonical name.
        spelled: The name that the row gives each of them, by canonical name.
        failed: True once a problem with the row was reported.
    """

    def __init__(self, line: int, raw: Mapping[str, object], known: Mapping[str, str], problems: Problems) -> None:
        self.line, self.problems, self.failed = line, problems, False
        self.values: dict[str, object] = {}
        self.spelled: dict[str, str] = {}
        for key, value in raw.items():
            if key not in known:
                hint, names = closest(key, tuple(known)), dict.fromkeys(known.values())
                self.fail(key, f"unknown field{hint}; expected {', '.join(names)}")
            elif (name := known[key]) in self.values and value is not None:
                self.fail(key, f"means the same as {self.spelled[name]!r} in this row; expected one of them")
            elif value is not None:
                self.values[name], self.spelled[name] = value, key

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
            return default

    def conversation(self) -> Messages:
        """Return prompt and completion joined; `messages` alone, ending with the assistant's turn, holds both."""
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
        elif not prompt[-1]["content"].strip():
            self.fail(spelled, "the last turn is empty; expected the text of the response")
        return prompt + completion


def check_ids(names: Iterable[tuple[int, str]], problems: Problems) -> int:
    """Report every id that an earlier row has too, and count them; `names` holds lines and their ids."""
    first: dict[str, int] = {}
    twice = 0
    for line, name in names:
        if name in first:
            twice += 1
            problems.add(line, "id", f"{shown(name)} is also in line {first[name]}; expected unique ids")
        first.setdefault(name, line)
    return twice
