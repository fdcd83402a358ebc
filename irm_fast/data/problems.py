"""What is wrong with data: collected by file, line and field while it is read, raised together at the end."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from irm_fast.common.warning import warn_caller

SHOWN_NAMES = 20


class DataError(ValueError):
    """Input data that cannot be used. The text shows the first 20 problems and the number of the rest.

    Attributes:
        problems: At most the first 1000 problems, each "FILE:LINE: field: what was got; expected ...".
        total: The number of all problems.
    """

    def __init__(self, problems: Sequence[str], total: int | None = None) -> None:
        super().__init__(problems, total)
        self.problems = list(problems)
        self.total = len(self.problems) if total is None else total

    def __str__(self) -> str:
        shown = self.problems[:20]
        rest = self.total - len(shown)
        return "\n".join([*shown, f"... and {rest} more problems"] if rest else shown)


class FieldError(ValueError):
    """A problem with one field, raised by the parser of the field, which knows neither file nor line.

    Attributes:
        field: The name of the field, such as `feedback.copy`.
        text: What was got, and what was expected.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(field, text)
        self.field, self.text = field, text


class Placed(Protocol):
    """What rows are read from, such as a `Source`: it knows where each stands."""

    parts: list[str]

    def place(self, line: int) -> str:
        """Return where a row stands, by its number: as FILE:LINE."""


class Problems:
    """The problems of a source: collected while it is read, raised together at the end.

    Attributes:
        source: The name of the source.
        total: The number of all problems.
        rows: By number, why each row that has a problem cannot be used: its first problem, without what was got.
        ignored: The names of fields that are not read, with the number of rows that have them.
        noted: What else should be known and is no problem, with the number of rows that it is about.
        left_out: The rows that a reader leaves out with a warning.
    """

    LIMIT = 1000

    def __init__(self, source: Placed | Path | str) -> None:
        self.source = source
        self.total = 0
        self._of_rows: list[str] = []
        self._of_source: list[str] = []
        self.rows: dict[int, str] = {}
        self.ignored: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.left_out: list[int] = []

    def add(self, line: int | None, field: str, text: str, *, whole: bool = False) -> None:
        """Add a problem with a field of a row, or of the whole source.

        Args:
            line: The number of the row, None for the whole source.
            field: The name of the field.
            text: What was got; what is expected.
            whole: Whether the problem is of the whole source, and the row only shows it first.
        """
        self.total += 1
        name, text = named(field), one_line(text)
        if line is not None and not whole:
            _, expected, rest = text.partition("; expected")
            self.rows.setdefault(line, f"{name}: {expected[2:]}{rest}" if expected else f"{name}: {text}")
        kept = self._of_source if line is None or whole else self._of_rows
        if len(kept) < self.LIMIT:
            place = one_line(str(self.source) if line is None else self.place(line))
            kept.append(f"{place}: {name}: {text}")

    @property
    def kept(self) -> list[str]:
        """The text of the first 1000 problems, first those of the whole source, which explain the others.

        More are counted only, so that memory stays small.
        """
        return [*self._of_source, *self._of_rows][: self.LIMIT]

    def notes(self) -> list[str]:
        """Return what should be known and is no problem."""
        names = [named(name) for name in self.ignored]
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        unread = [f"fields that are not read: {', '.join(names[:SHOWN_NAMES])}{more}"] if names else []
        return [*(one_line(f"{text} ({count:,} rows)") for text, count in self.noted.items()), *unread]

    def warn_of_notes(self) -> None:
        """Warn of what should be known, once for the source."""
        if notes := self.notes():
            warn_caller(f"{self.source}: {'; '.join(notes)}")

    def place(self, line: int) -> str:
        """Return where a row stands, as FILE:LINE."""
        return f"{self.source}:{line}" if isinstance(self.source, (str, Path)) else self.source.place(line)

    def said(self, line: int) -> str:
        """Return where a row stands, in the words of a message about another row of the source."""
        parted = not isinstance(self.source, (str, Path)) and len(self.source.parts) > 1
        return self.place(line) if parted else f"line {line}"

    def skip(self, allowed: int, rows: int) -> dict[int, str]:
        """Take out the problems of rows if there are no more of these than are allowed, else say so.

        Args:
            allowed: The number of rows that may be wrong.
            rows: The number of all rows.

        Returns:
            Why each row is wrong, by its number; nothing where they are too many.
        """
        if len(self.rows) > allowed:
            text = f"{len(self.rows)} of {rows} rows are wrong; expected at most {allowed} (--max-errors)"
            self.add(None, "file", text)
            return {}
        skipped, self.rows, self._of_rows = self.rows, {}, []
        self.total = len(self._of_source)
        return skipped

    def raise_if_any(self) -> None:
        """Raise DataError if there are problems."""
        if self.total:
            raise DataError(self.kept, self.total)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 60
REDACT = "IRM_FAST_REDACT"  # the environment variable that keeps texts and ids out of messages; processes inherit it
_SEEN = "\u200c\u200d"  # joiners within words and emoji: of the category of what steers a terminal, and harmless
_MAY_STEER = re.compile(r"[^\n\t -~]")  # anything but plain ASCII has to be looked at


def is_plain(text: str) -> bool:
    """Return whether a text is one line that prints as itself: nothing in it steers a terminal or turns its order."""
    return one_line(text) == text


def printable(text: str) -> str:
    """Return a text as it may be printed: what would steer a terminal, or turn the order of its letters, is escaped.

    Line breaks and tabs stay: whoever prints names of others on lines of their own sees to it by `is_plain`.

    Examples:
        >>> printable("copy\\x1b[2J")
        'copy\\\\u001b[2J'
    """
    return _MAY_STEER.sub(_escaped, text)


def one_line(text: str) -> str:
    """Return a text as one line that may be printed: `printable`, and line breaks and tabs are escaped too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def named(name: str) -> str:
    """Return a name as a message shows it: as it is, if it is plain and short."""
    return name if len(name) <= 80 and is_plain(name) else shown(name)


def _escaped(found: re.Match[str]) -> str:
    letter = found[0]
    kind = unicodedata.category(letter)
    if kind in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and letter not in _SEEN:
        return f"\\u{ord(letter):04x}" if ord(letter) < 2**16 else f"\\U{ord(letter):08x}"
    return letter


def redacting() -> bool:
    """Return whether messages show neither texts of users nor ids, which `REDACT` asks for."""
    return os.environ.get(REDACT, "0") not in ("", "0")


def row_named(name: str, row: int) -> str:
    """Return a row of a log in the words of a message: by its id, or where ids are redacted by its place."""
    return f"row number {row + 1:,}" if redacting() else f"row {shown(name)}"


def shown(value: object) -> str:
    """Return a value as a message shows it: in the words of JSON for constants, at most 60 characters long.

    Where messages are redacted it is said what kind of value it is, and how long.
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if redacting():
        return _redacted(value)
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _redacted(value: object) -> str:
    """Return what kind of value it is, and how long."""
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, Mapping):
        return f"an object of {len(value)} fields"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}"


@functools.lru_cache
def closest(name: str, names: tuple[str, ...]) -> str:
    """Return a suggestion to append to a message: the name that is most alike, or an empty text if none is.

    Examples:
        >>> closest("clik", ("click", "copy"))
        "; did you mean 'click'?"
    """
    match = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {match[0]!r}?" if match else ""


def is_misspelt(name: str, known: str) -> bool:
    """Return whether a name is one letter away from a known one, or has two neighbours exchanged.

    Examples:
        >>> is_misspelt("fedback", "feedback"), is_misspelt("weigth", "weight"), is_misspelt("prompt_id", "prompt")
        (True, True, False)
    """
    if len(known) < 6 or abs(len(name) - len(known)) > 1 or name == known:
        return False
    pairs = zip(f"{name} ", f"{known} ", strict=False)
    alike = next((i for i, (one, other) in enumerate(pairs) if one != other), 0)
    one, other = name[alike:], known[alike:]
    exchanged = one[:2] == other[:2][::-1] and one[2:] == other[2:]
    return exchanged or one[1:] == other[1:] or one[1:] == other or one == other[1:]
