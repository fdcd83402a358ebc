"""What is declared of the signals of a fit: names, polarity, misclick rates, designs; for all, for each, or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.data.declarations import speaks_of_displeasure
from irm_fast.data.signals import DESIGN_CHOICES
from irm_fast.embeddings.given import numbers
from irm_fast.losses import MAX_SIGNALS
from irm_fast.losses.rates import are_rates

NEGATIVE_BY_NAME = ("thumbs_down", "regenerate")  # other words of displeasure have to be declared
LEAST_RATE = 1e-9  # of misclicks: with less, a row that contradicts itself costs more than float32 can weigh


@dataclass(frozen=True)
class Signals:
    """The K signals of a fit.

    Attributes:
        names: Their names.
        polarity: +1 or -1 for each.
        misclick_rate: A rate in [0, 1) for each.
    """

    names: tuple[str, ...]
    polarity: tuple[int, ...]
    misclick_rate: tuple[float, ...]


def column_names(value: Any) -> tuple[str, ...] | None:
    """Return the names of the columns of a frame, or the name of a series, where all are text; else None.

    Args:
        value: A frame or series of pandas or polars, or anything else, which has no names.
    """
    columns = getattr(value, "columns", None)
    found = [getattr(value, "name", None)] if columns is None else list(columns)
    names = tuple(name for name in found if isinstance(name, str) and name)
    return names if names and len(names) == len(found) else None


def declare(value: Any, count: int, polarity: Any, misclick_rate: Any) -> Signals:
    """Name the signals of feedback, and return what is declared of each.

    Args:
        value: The feedback as it was given; the columns of a frame name the signals.
        count: The number K of signals.
        polarity: +1 or -1 for all signals, K of them, or a mapping by name. Where nothing is declared it is +1, but -1
            for `NEGATIVE_BY_NAME`.
        misclick_rate: A rate in [0, 1) for all signals, K of them, or a mapping by name. Where nothing is declared it
            is 0.

    Raises:
        ValueError: There are more than `MAX_SIGNALS` signals, two of one name, or a declaration that does not fit them.
    """
    if count > MAX_SIGNALS:
        raise ValueError(
            f"feedback: got {count} signals; expected at most {MAX_SIGNALS}: leave out the rarest, or merge some"
        )
    named = column_names(value)
    names = named if named is not None and len(named) == count else tuple(f"signal {k + 1}" for k in range(count))
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"feedback: got several columns named {twice!r}; expected a name of its own for each")
    usual = [-1 if name in NEGATIVE_BY_NAME else 1 for name in names]
    signs = each("polarity", polarity, names, usual)
    if not {1, -1}.issuperset(signs):
        raise ValueError(f"polarity: got {tuple(signs)}; expected 1 or -1 for every signal")
    rates = tuple(numbers("misclick_rate", each("misclick_rate", misclick_rate, names, [0.0] * count)).tolist())
    if not (are_rates(rates) and all(rate == 0 or rate >= LEAST_RATE for rate in rates)):
        raise ValueError(
            f"misclick_rate: got {rates}; expected rates in [0, 1), and none between 0 and {LEAST_RATE} "
            "or so near 1 that float32 takes it for 1"
        )
    _warn_of_displeasure(names, polarity, signs)
    return Signals(names, tuple(int(sign) for sign in signs), rates)


def designs_of(value: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Return one propensity design for each signal, or raise ValueError.

    Args:
        value: One of `DESIGN_CHOICES` for all signals, K of them, or a mapping by name, "auto" for the rest.
        names: The names of the K signals.
    """
    if isinstance(value, Mapping):
        _check_names("propensity_design", value, names)
        found = tuple(value.get(name, "auto") for name in names)
    else:
        found = (value,) * len(names) if isinstance(value, str) else tuple(value)
    if len(found) != len(names) or not set(found) <= set(DESIGN_CHOICES):
        raise ValueError(
            f"propensity_design: got {value!r}; expected one of {', '.join(DESIGN_CHOICES)}, or {len(names)} of them"
        )
    return found


def order_of(value: Any, names: Sequence[str], polarity: Sequence[int]) -> tuple[int, ...]:
    """Return for each signal the number of the signal that it follows, -1 if it follows none, or raise ValueError.

    Args:
        value: A mapping from a signal to the one that it follows, both by name or by number; or None.
        names: The names of the K signals.
        polarity: +1 or -1 for each signal.
    """
    found = [-1] * len(names)
    for pair in (value or {}).items():
        follower, first = (_number(entry, names) for entry in pair)
        if follower == first or polarity[follower] != polarity[first]:
            raise ValueError(f"after: got {pair[0]!r} after {pair[1]!r}; expected another signal of the same polarity")
        found[follower] = first
    for follower, first in followers(found):
        if found[first] >= 0:
            text = f"{names[follower]!r} after {names[first]!r}, which follows {names[found[first]]!r} itself"
            raise ValueError(f"after: got {text}; expected that it follows none: let both follow the first of them")
    return tuple(found)


def followers(after: Sequence[int]) -> list[tuple[int, int]]:
    """Return the number of each signal that follows another, and that of the other.

    Args:
        after: What `order_of` returns; () if no signal follows another.
    """
    return [(follower, first) for follower, first in enumerate(after) if first >= 0]


def _number(signal: Any, names: Sequence[str]) -> int:
    """Return the number of a signal that is given by name or by number."""
    if isinstance(signal, (int, np.integer)) and 0 <= signal < len(names):
        return int(signal)
    if signal not in names:
        raise ValueError(f"after: no signal {signal!r}; expected one of {', '.join(names)}, or its number from 0")
    return list(names).index(signal)


def each(name: str, value: Any, names: Sequence[str], usual: Sequence[Any]) -> list[Any]:
    """Return one number for each signal, or raise ValueError.

    Args:
        name: The name of the parameter, for the messages.
        value: One number for all signals, K of them, a mapping by name, or None.
        names: The names of the K signals.
        usual: The K numbers where nothing is given.
    """
    if value is None:
        return list(usual)
    if isinstance(value, Mapping):
        _check_names(name, value, names)
        return [value.get(key, default) for key, default in zip(names, usual, strict=True)]
    values = np.atleast_1d(np.asarray(value))
    if values.shape not in ((1,), (len(names),)):
        raise ValueError(f"{name}: got {value!r}; expected one number, or {len(names)}")
    given: list[Any] = np.broadcast_to(values, (len(names),)).tolist()
    return given


def check_columns(value: Any, names: Sequence[str]) -> None:
    """Raise ValueError unless feedback has the columns of a fit, in its order where both have names.

    Args:
        value: Feedback of shape (N, K), or (N, 0) without signals.
        names: The names of the signals of the fit.
    """
    shape, found = np.shape(value), column_names(value)
    if len(shape) == 2 and (shape[1] or 1) != len(names):
        raise ValueError(f"feedback: got {shape[1]} columns; expected {len(names)}, as in fit: {', '.join(names)}")
    if found is not None and found != tuple(names) and names[0] != "signal 1":
        raise ValueError(f"feedback: got the columns {', '.join(found)}; expected those of fit: {', '.join(names)}")


def warn_of_feedback(preference: Any, names: Sequence[str]) -> None:
    """Warn of a series that is given as preferences and has the name of a signal.

    Args:
        preference: Preferences of shape (N,).
        names: The names of the signals.
    """
    found = column_names(preference)
    if found is not None and found[0] in names:
        warn_caller(
            f"y: {found[0]!r} is a signal, not the preference: its AUROC is the naive objective; for the likelihood of "
            "feedback give it the shape (N, 1), or use irm_fast.implicit_scorer"
        )


def _check_names(name: str, value: Mapping[Any, Any], names: Sequence[str]) -> None:
    """Raise ValueError if a mapping has a key that is not the name of a signal."""
    for key in value:
        if key not in names:
            raise ValueError(f"{name}: got the signal {key!r}; expected some of {', '.join(map(repr, names))}")


def _warn_of_displeasure(names: Sequence[str], polarity: Any, signs: Sequence[int]) -> None:
    """Warn of signals whose names speak of displeasure and whose polarity nobody declared."""
    declared = names if polarity is not None and not isinstance(polarity, Mapping) else (polarity or ())
    for name, sign in zip(names, signs, strict=True):
        if speaks_of_displeasure(name) and name not in declared:
            warn_caller(
                f"polarity: {name!r} is taken as {sign:+d}, {'by its name' if sign < 0 else 'as nothing is declared'}; "
                f"say which it is: polarity={{{name!r}: -1}} if users give it when a response displeases them, else 1"
            )
