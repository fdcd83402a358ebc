"""Where the fields of a log stand in rows of another layout: paths, and comparisons of what they lead to.

`prompt=input.messages` takes a field from a path; `feedback.copy="n_copies>0"` compares. It is a small language of its
own: nothing of a log or a command is ever evaluated as code.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from irm_fast.data.messages import as_json
from irm_fast.data.problems import FieldError, shown
from irm_fast.data.rows import as_number

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_COMPARISON = re.compile(r"^(?P<path>[^=!<>]+?)\s*(?P<sign>==|!=|>=|<=|>|<)\s*(?P<value>.+)$")
_STEP = re.compile(r"([^.\[\]()'\"=<>!]+)|\[(-?\d+)\]|\[\"([^\"]+)\"\]")
_CONSTANTS = {"true": True, "false": False, "null": None}
_ABSENT = object()


@dataclass(frozen=True)
class Expression:
    """A path into a row, perhaps compared with a constant.

    Attributes:
        text: As it was written.
        steps: Names of fields and numbers of entries, from the row inwards.
        sign: The operator, or "".
        constant: What is compared with.

    Examples:
        >>> Expression.parse("messages[-1].content").of({"messages": [{"content": "Hi"}]})
        'Hi'
        >>> Expression.parse("n_copies>0").of({"n_copies": 3})
        True
    """

    text: str
    steps: tuple[str | int, ...]
    sign: str = ""
    constant: Any = None

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Return the expression of a text.

        Raises:
            ValueError: It is neither a path nor a comparison.
        """
        match = _COMPARISON.match(text.strip())
        path = (match["path"] if match else text).strip()
        steps: list[str | int] = []
        place = 0
        while place < len(path):
            step = _STEP.match(path, place)
            if not step:
                break
            steps.append(int(step[2]) if step[2] else step[1] or step[3])
            place = step.end()
            place += path[place : place + 1] == "." and place + 1 < len(path)
        if not steps or place < len(path):
            raise ValueError(
                f"map: got {text!r}; expected a path such as input.messages[-1].content, or a comparison of one with a "
                f'constant by {" ".join(OPERATORS)}, such as n_copies>0 or rating=="up"'
            )
        return cls(text, tuple(steps), match["sign"], _constant(match["value"])) if match else cls(text, tuple(steps))

    @property
    def column(self) -> str:
        """The field of the row that the path begins with."""
        return str(self.steps[0])

    def of(self, row: Mapping[str, Any]) -> Any:
        """Return what the expression is of a row; None where the path leads nowhere, and of a comparison with null too.

        Raises:
            FieldError: The values cannot be compared.
        """
        value = self._held(row)
        if not self.sign or value is _ABSENT:
            return None if value is _ABSENT else value
        if value is None and self.constant is not None:
            return None  # not known
        if self.sign in ("==", "!="):
            return OPERATORS[self.sign](value, self.constant)
        try:
            return OPERATORS[self.sign](value, self.constant)
        except TypeError:
            raise FieldError(
                self.column,
                f"got {shown(value)}, in {self.text!r}; expected what {shown(self.constant)} can be compared with",
            ) from None

    def _held(self, row: Mapping[str, Any]) -> Any:
        if self.text in row:  # a column whose name has dots
            return row[self.text]
        value: Any = row
        for step in self.steps:
            value = as_json(value)
            try:
                value = value[step]
            except (TypeError, KeyError, IndexError):
                return _ABSENT
        return value


def _constant(text: str) -> Any:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    return as_number(text)


@dataclass(frozen=True)
class FieldMap:
    """Fields of a log, such as `prompt` and `feedback.copy`, and where they stand.

    Attributes:
        targets: The path of each field and its expression.
    """

    targets: tuple[tuple[tuple[str, ...], Expression], ...]

    @classmethod
    def of(cls, given: Mapping[str, str]) -> FieldMap:
        """Return the map of texts, as YAML and the command line give them.

        Raises:
            ValueError: A text is no expression, or there is no mapping.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"map: got {shown(given)}; expected fields with their paths")
        return _field_map(tuple((str(name), str(text)) for name, text in given.items()))

    def apply(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with the fields that are mapped, without the columns that they are made of.

        Raises:
            FieldError: As `Expression.of`.
        """
        used = {expression.column for _, expression in self.targets}
        new: dict[str, Any] = {key: value for key, value in row.items() if key not in used}
        for path, expression in self.targets:
            value = expression.of(row)
            *outer, last = path
            place = new
            for name in outer:
                held = as_json(place.get(name))
                place[name] = place = dict(held) if isinstance(held, Mapping) else {}
            if value is not None or expression.sign:
                place[last] = value
        return new


@lru_cache
def _field_map(given: tuple[tuple[str, str], ...]) -> FieldMap:
    return FieldMap(tuple((tuple(name.split(".")), Expression.parse(text)) for name, text in given))
