"""Values of settings: read from YAML, converted to the types of their fields, and kept within bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from irm_fast.common.extras import need
from irm_fast.data.reading.limits import MAX_SETTINGS, MAX_VALUES

# What errors say that they expected: of settings that are read in a way of their own, and of types
_EXPECTED_OF = {
    "polarity": "NAME=1 or NAME=-1",
    "map": "FIELD=PATH, such as prompt=input.messages,feedback.copy=n_copies>0",
    "absent": "error, silent or missing, or NAME=silent,...",
    "null": "missing or silent, or NAME=silent,...",
    "signals": "names of signals, such as copy,share",
    "counts": "names of signals, such as copy,share, or all",
    "max_errors": "a number of rows, or a share such as 5%",
    "misclick_rate": "a number, or NAME=RATE",
    "lora_targets": "names of linear layers, such as q_proj,v_proj",
    "hidden_layers": "auto, linear, or widths such as 128 or 128,64",
}
LARGEST = 2.0**53  # of any number, where nothing less is said: all whole numbers up to it are floats
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def parse_polarity(value: str | Mapping[str, Any] | None) -> dict[str, int] | None:
    """The polarity of signals from a mapping or from NAME=1,NAME=-1; None stays None.

    Raises:
        ValueError: The value is something else, or a polarity is neither 1 nor -1.
    """
    if value is None:
        return None
    try:
        signs = _by_name(value, int)
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"polarity: got {value!r}; expected {_EXPECTED_OF['polarity']}") from None
    if not set(signs.values()) <= {1, -1}:
        raise ValueError(f"polarity: got {signs}; expected 1 or -1 for every signal")
    return signs


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file holds an empty one.

    Raises:
        ValueError: The file is no mapping in YAML, a key stands there twice, or it is beyond limits.
        OSError: The file cannot be read.
    """
    need("yaml", f"{path}: YAML")
    import yaml

    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_SETTINGS + 1).decode()
        if len(text) > MAX_SETTINGS:
            raise ValueError(f"{path}: longer than {MAX_SETTINGS:,} bytes; expected lines of 'setting: value'")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if _size(node, {}) > MAX_VALUES:
            raise ValueError(f"{path}: stands for more than {MAX_VALUES:,} values; expected lines of 'setting: value'")
        values, twice = yaml.safe_load(text), _given_twice(node)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if twice is not None:
        raise ValueError(f"{path}:{twice.start_mark.line + 1}: {twice.value}: given a second time; expected it once")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a {type(values).__name__}; expected lines of 'setting: value'")
    return values


def _size(node: Any, known: dict[int, float]) -> float:
    """The number of values that a node of YAML stands for, with those that it repeats by name; infinite for circles."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # as long as it is not left: whoever comes here meanwhile goes in a circle
        parts = chain.from_iterable(node.value) if node.id == "mapping" else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _given_twice(node: Any) -> Any:
    """The first key that stands twice in a YAML mapping or in one within it, or None: the loader lets the last win."""
    if getattr(node, "id", None) != "mapping":
        return None
    seen = set()
    for key, value in node.value:
        if key.id == "scalar" and key.value in seen:
            return key
        seen.add(str(key.value))
        if (inner := _given_twice(value)) is not None:
            return inner
    return None


def convert(name: str, value: Any, kind: Any) -> Any:
    """The value of a setting in the type that its field declares.

    Args:
        name: The setting.
        value: What was given for it; YAML and the command line may bring text for a number.
        kind: The type of the field.

    Raises:
        ValueError: The value is of another type, or none of the choices.
    """
    if get_origin(kind) is Literal:
        if isinstance(value, bool) and "full" in get_args(kind):  # what was once a switch
            value = "full" if value else "none"
        if value not in get_args(kind):
            raise ValueError(f"{name}: got {value!r}; expected one of {', '.join(get_args(kind))}")
        return value
    if name == "polarity":
        return parse_polarity(value)
    if name == "trainer":
        return _trainer_arguments(value)
    kinds = get_args(kind) or (kind,)
    if type(None) in kinds and (value is None or (value == "auto" and bool in kinds)):
        return None
    try:
        if name == "misclick_rate":
            named = isinstance(value, Mapping) or (isinstance(value, str) and "=" in value)
            return _by_name(value, float) if named else _number(value, float)
        if name == "hidden_layers":
            return _widths(value)
        if name in ("lora_targets", "signals", "counts"):
            return _names(value)
        if name in ("map", "absent", "null"):
            return _texts_by_name(value) if name == "map" or not isinstance(value, str) or "=" in value else value
        if name == "max_errors" and isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip()[:-1]) / 100
        if float in kinds or int in kinds:
            return _number(value, float if float in kinds else int)
        if kind is str and isinstance(value, (str, Path)):
            return str(value)
        if isinstance(value, kind):
            return value
        raise ValueError
    except (ValueError, TypeError, AttributeError, OverflowError):
        expected = _EXPECTED_OF.get(name) or _EXPECTED[kinds[0]]
        raise ValueError(f"{name}: got {value!r}; expected {expected}") from None


def check_bounds(
    name: str,
    value: Any,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raise ValueError for a number outside its bounds; NaN is outside of all, and no number may be infinite."""
    if value is None or not isinstance(value, (int, float)):
        return
    if above is not None and not value > above:
        raise ValueError(f"{name}: got {value}; expected a number above {above}")
    if at_least is not None and below is not None and not at_least <= value < below:
        raise ValueError(f"{name}: got {value}; expected a number in [{at_least}, {below})")
    if at_least is not None and below is None and not value >= at_least:
        raise ValueError(f"{name}: got {value}; expected {at_least} or more")
    most = LARGEST if at_most is None else at_most
    if not value <= most:
        got = value if isinstance(value, float) else f"a number of {value.bit_length()} bits"
        raise ValueError(f"{name}: got {got}; expected {most:g} at most")


def _trainer_arguments(value: Any) -> dict[str, Any] | None:
    """Arguments of transformers by name, from a mapping or from texts KEY=VALUE whose values are YAML."""
    if value is None or isinstance(value, Mapping):
        return None if value is None else {str(key): entry for key, entry in value.items()}
    need("yaml", "trainer: KEY=VALUE")
    import yaml

    try:
        texts = [value] if isinstance(value, str) else list(value)
        return {key.strip(): yaml.safe_load(entry) for key, entry in (text.split("=", 1) for text in texts)}
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):
        raise ValueError(f"trainer: got {value!r}; expected KEY=VALUE, such as max_grad_norm=0.5") from None


def _widths(value: Any) -> str:
    """Text for the layers of a reward: auto, linear, or widths given as 128, "128,64" or [128, 64]."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if text not in ("auto", "linear") and not all(part.strip().isdecimal() and int(part) for part in text.split(",")):
        raise ValueError
    return text


def _names(value: Any) -> str:
    """Text of names between commas, from such text or from a list."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError
    return ",".join(name.strip() for name in names)


def _by_name(value: Any, kind: type) -> dict[str, Any]:
    """A mapping from names to numbers, perhaps given as text: NAME=VALUE,NAME=VALUE."""
    if isinstance(value, str):
        value = dict(part.split("=", 1) for part in value.split(","))
    return {str(name).strip(): _number(entry, kind) for name, entry in value.items()}


def _texts_by_name(value: Any) -> dict[str, str]:
    """A mapping from names to texts, perhaps given as text: NAME=TEXT,NAME=TEXT, where a comma parts before NAME=."""
    if isinstance(value, str):
        parts = re.split(r",(?=\s*[^,=<>!]+=(?!=))", value)
        value = dict(part.split("=", 1) for part in parts)
    return {str(name).strip(): str(entry).strip() for name, entry in value.items()}


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return kind(value)
