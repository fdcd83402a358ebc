"""What the files that the package itself writes have to hold, field by field: they may come from strangers.

A rule takes the name of a field and its value, and raises `FieldError` where the value is not as it has to be. Fields
that no rule knows are left alone: newer versions may add some.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any

from irm_fast.data.problems import FieldError, is_plain, shown
from irm_fast.data.reading.limits import MAX_NAME, MAX_RECORD, MAX_TEXT

Rule = Callable[[str, Any], None]
MOST = 2**31 - 1  # of a whole number


def expected(what: str, holds: Callable[[Any], bool]) -> Rule:
    """Return the rule of a value, by what it has to be in words and by a test."""

    def rule(name: str, value: Any) -> None:
        if not holds(value):
            raise FieldError(name, f"got {shown(value)}; expected {what}")

    return rule


def whole(least: int = 0, most: int = MOST) -> Rule:
    """Return the rule of a whole number within bounds."""
    bounds = f"{least} or more" if most == MOST else f"of {least} to {most:,}"
    return expected(f"a whole number, {bounds}", lambda value: type(value) is int and least <= value <= most)


def number(least: float = -math.inf, below: float = math.inf) -> Rule:
    """Return the rule of a finite number."""
    bounds = f" of at least {least:g}" * (least > -math.inf) + f" and below {below:g}" * (below < math.inf)

    def holds(value: Any) -> bool:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max and least <= value < below

    return expected(f"a finite number{bounds}", holds)


def choice(*values: Any) -> Rule:
    """Return the rule of a value that is one of a few."""
    listed = ", ".join(map(str, values))
    return expected(f"one of {listed}", lambda value: any(value == v and type(value) is type(v) for v in values))


def text(most: int = MAX_TEXT) -> Rule:
    """Return the rule of a text."""
    return expected(f"text of at most {most:,} characters", lambda value: isinstance(value, str) and len(value) <= most)


flag = expected("true or false", lambda value: isinstance(value, bool))
mapping = expected("an object", lambda value: isinstance(value, Mapping))
plain_name = expected(
    f"a name of 1 to {MAX_NAME:,} characters that can be printed",
    lambda value: isinstance(value, str) and 0 < len(value) <= MAX_NAME and is_plain(value),
)


def either(*rules: Rule) -> Rule:
    """Return the rule of a value for which one of several holds."""

    def rule(name: str, value: Any) -> None:
        texts = []
        for one in rules:
            try:
                return one(name, value)
            except FieldError as error:
                texts.append(error.text.rpartition("; expected ")[2])
        raise FieldError(name, f"got {shown(value)}; expected {' or '.join(texts)}")

    return rule


def optional(inner: Rule) -> Rule:
    """Return the rule of a value that may be null."""
    return either(choice(None), inner)


def list_of(inner: Rule, most: int = 10**6) -> Rule:
    """Return the rule of a list."""

    def rule(name: str, value: Any) -> None:
        if not isinstance(value, list) or len(value) > most:
            what = f"{len(value):,} entries" if isinstance(value, list) else shown(value)
            raise FieldError(name, f"got {what}; expected a list of at most {most:,}")
        for number, entry in enumerate(value):
            inner(f"{name}[{number}]", entry)

    return rule


def names(most: int = 10**6) -> Rule:
    """Return the rule of a list of names, each once."""

    def rule(name: str, value: Any) -> None:
        list_of(plain_name, most)(name, value)
        if len(set(value)) < len(value):
            twice = next(entry for entry in value if value.count(entry) > 1)
            raise FieldError(name, f"{shown(twice)} occurs twice; expected each name once")

    return rule


def by_name(inner: Rule) -> Rule:
    """Return the rule of an object whose keys are names and whose values are alike."""

    def rule(name: str, value: Any) -> None:
        mapping(name, value)
        for key, entry in value.items():
            inner(f"{name}.{key}", entry)

    return rule


def fields(required: Mapping[str, Rule], more: Mapping[str, Rule] | None = None) -> Rule:
    """Return the rule of an object.

    Args:
        required: The rules of the fields that it must have.
        more: Those of fields that it may lack, as the files of earlier versions do.
    """

    def rule(name: str, value: Any) -> None:
        mapping(name, value)
        prefix = f"{name}." if name else ""
        lacking = [field for field in required if field not in value]
        if lacking:
            raise FieldError(f"{prefix}{lacking[0]}", f"damaged: no {', '.join(lacking)}; expected all of them")
        for field, inner in {**required, **(more or {})}.items():
            if field in value:
                inner(f"{prefix}{field}", value[field])

    return rule


def check_alike(**lists: Sized) -> None:
    """Check that lists of a record, by name, have one entry for each of those of the first.

    Raises:
        FieldError: One has more entries or fewer.
    """
    (first, model), *others = lists.items()
    for name, other in others:
        if len(other) != len(model):
            text = f"got {len(other)} entries; expected {len(model)}, one for each of {first}"
            raise FieldError(name, text)


def read_object(path: Path, writer: str) -> dict[str, Any]:
    """Read a file of bounded size that holds an object of JSON.

    Args:
        path: The file.
        writer: What writes such files, for errors.

    Raises:
        ValueError: The file is missing, too large, or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path}: not found; expected a folder that {writer} wrote to its end")
    if path.stat().st_size > MAX_RECORD:
        raise ValueError(f"{path}: damaged: larger than {MAX_RECORD:,} bytes; expected what {writer} wrote")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # cut short, or no text at all, or deeper than anything of ours
        raise ValueError(f"{path}: damaged, not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: damaged: got a {type(content).__name__}; expected an object, as {writer} wrote it")
    return content


def read_record(path: Path, version: int, writer: str, rule: Rule = mapping) -> dict[str, Any]:
    """Read a JSON object whose entry `format` is the version of its layout, and check its fields.

    Args:
        path: The file.
        version: The version that is read here.
        writer: The command or method that writes such files, for errors.
        rule: The rule of the whole object.

    Raises:
        ValueError: The file is missing, of a newer format, or damaged: which field, what was got and is expected.
    """
    record = read_object(path, writer)
    found = record.get("format")
    if type(found) is not int or found != version:
        newer = type(found) is int and found > version
        remedy = "upgrade irm-fast" if newer else f"it is damaged, or {writer} did not write it"
        raise ValueError(f"{path}: format: got {shown(found)}; expected {version}; {remedy}")
    try:
        rule("", record)
    except FieldError as error:
        raise ValueError(f"{path}: {error.field}: {error.text}, as {writer} wrote it") from None
    return record
