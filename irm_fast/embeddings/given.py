"""What users hand to the estimator, as arrays: tensors, frames, lists, with unknown entries in any form.

Unknown is what other libraries write for it: None, NaN, `pandas.NA` and NaT.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence, Set
from datetime import datetime, timezone
from typing import Any

import numpy as np
from torch import Tensor

from irm_fast.common.warning import warn_caller
from irm_fast.data.problems import shown
from irm_fast.data.texts import Names
from irm_fast.data.times import LATEST

SPREAD = 1e15  # the largest standard deviation of a column: squares and their sums over columns stay within float32
WEIGHT = 1e9  # the largest row weight: sums over rows and their squares stay within float32
ROWS = 10  # weights that sum to less are no log: each weight counts as so many rows, and priors would rule
_NUMBERS = "expected numbers: convert text and dates first, text as by .astype(int)"


def plain(value: Any) -> Any:
    """Return a tensor of torch as a numpy array, without its gradient and off its device, and other values as given.

    Args:
        value: Anything. A tensor of a dtype that numpy lacks, such as bfloat16, becomes float32.
    """
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    try:
        return value.numpy()
    except TypeError:
        return value.float().numpy()


def is_unknown(entry: Any) -> bool:
    """Return whether an entry is None, NaN, NaT or `pandas.NA`."""
    if entry is None or type(entry).__name__ == "NAType":  # what NA is compared with, the result has no truth value
        return True
    return isinstance(entry, (float, np.generic, datetime)) and bool(entry != entry)


def numbers(name: str, value: Any) -> np.ndarray:
    """Return numbers as an array of bools, integers or floats, with NaN where they are unknown.

    Args:
        name: The name of the argument, for the message.
        value: Numbers of any shape, in any form.

    Raises:
        ValueError: There is text, dates or anything else that is no number among them.
    """
    array = np.asarray(plain(value))
    if array.dtype.kind in "biuf":
        return array
    if array.dtype == object:
        return np.array([_number(name, entry) for entry in array.ravel()], np.float64).reshape(array.shape)
    got = array.ravel()[0].item() if array.size else array.dtype
    raise ValueError(f"{name}: got {got!r} ({array.dtype}); {_NUMBERS}")


def _number(name: str, entry: Any) -> float:
    """Return one entry as a number, NaN where it is unknown, or raise ValueError."""
    if is_unknown(entry):
        return math.nan
    if isinstance(entry, (str, bytes)) or not hasattr(entry, "__float__"):
        raise ValueError(f"{name}: got {entry!r}; {_NUMBERS}")
    try:
        return float(entry)
    except OverflowError:
        raise ValueError(f"{name}: got an integer beyond 1e308; {_NUMBERS}") from None


def ternary(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return values of 1, 0 and -1 or unknown as int8, with -1 for unknown.

    Args:
        name: The name of the argument, for the messages.
        value: Bools, integers or floats of the given shape, in any form.
        shape: The shape to expect.

    Raises:
        ValueError: The shape is another, or a value is.
    """
    array = numbers(name, value)
    if array.shape != shape:
        raise ValueError(f"{name}: got shape {array.shape}; expected {shape}, as the rows of X")
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), -1, array)
    allowed = np.isin(array, (-1, 0, 1))
    if not allowed.all():
        raise ValueError(
            f"{name}: Unknown label type: got {np.unique(array[~allowed])[:5]}; expected 1, 0, or -1 for unknown. "
            "Only binary classification is supported."
        )
    return array.astype(np.int8)


def probabilities(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return probabilities in (0, 1] as float64 of shape (N, K), NaN where unknown, or raise ValueError.

    Args:
        name: The name of the argument, for the messages.
        value: Probabilities of shape (N, K), or (N,) for one signal, in any form.
        shape: The shape (N, K) to expect.
    """
    array = numbers(name, value).astype(np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.shape != shape:
        raise ValueError(f"{name}: got shape {array.shape}; expected {shape}, as the feedback")
    if ((array <= 0) | (array > 1)).any():
        raise ValueError(f"{name}: got values outside (0, 1]; expected probabilities")
    return array


def chances(value: Any, rows: int) -> np.ndarray:
    """Return the probabilities in (0, 1] of drawing rows for labelling as float64 of shape (N,), NaN where unknown.

    Args:
        value: N probabilities, in any form.
        rows: The number N of rows.

    Raises:
        ValueError: The shape is another, or a value is no such probability.
    """
    return probabilities("label_probability", value, (rows, 1))[:, 0]


def weights(value: Any, rows: int) -> np.ndarray:
    """Return row weights as float32 of shape (N,), or raise ValueError.

    Args:
        value: N weights of at least 0, in any form. None means 1.
        rows: The number N of rows.
    """
    if value is None:
        return np.ones(rows, np.float32)
    weight = numbers("sample_weight", value).astype(np.float64)
    if weight.shape != (rows,):
        raise ValueError(f"sample_weight: got shape {weight.shape}; expected ({rows},), as the rows of X")
    if not np.isfinite(weight).all() or (weight < 0).any() or not weight.astype(np.float32).any():
        raise ValueError(
            "sample_weight: got negative, infinite or only zero weights; expected finite ones, one above 0"
        )
    if weight.max() > WEIGHT:
        raise ValueError(
            f"sample_weight: got {weight.max():.3g}; expected at most {WEIGHT:.0e}, as a weight counts as that many "
            "rows: divide them by their mean"
        )
    if weight.sum() < min(ROWS, rows):
        warn_caller(
            f"sample_weight: the weights sum to {weight.sum():.3g}, and each counts as that many rows: priors rule a "
            "fit to so few; multiply them so that their mean is about 1"
        )
    return weight.astype(np.float32)


def matrix(name: str, value: Any, rows: int, columns: int | None = None) -> np.ndarray:
    """Return finite features as float32 of shape (N, F), or raise ValueError.

    Args:
        name: The name of the argument, for the messages.
        value: Numbers of shape (N, F), in any form.
        rows: The number N of rows.
        columns: The number F of columns; None for any.
    """
    with np.errstate(over="ignore"):
        features = numbers(name, value).astype(np.float32)
    shape = (rows, features.shape[1] if columns is None and features.ndim == 2 else columns)
    if features.shape != shape or not np.isfinite(features).all():
        expected = f"({rows}, F)" if columns is None else f"({rows}, {columns}), as in fit"
        raise ValueError(f"{name}: got shape {features.shape}; expected {expected}, finite in float32")
    check_spread(name, features.std(axis=0, dtype=np.float64))
    return features


def check_spread(name: str, spread: np.ndarray) -> None:
    """Raise ValueError if a column is spread too widely for statistics in float32. Constant columns may be of any size.

    Args:
        name: The name of the argument, for the message.
        spread: The standard deviations (float64) of the columns, of shape (F,).
    """
    wide = np.flatnonzero(~(spread <= SPREAD))
    if len(wide):
        raise ValueError(
            f"{name}: column {wide[0]} has a standard deviation of {spread[wide[0]]:.3g} ({len(wide)} of them above "
            f"{SPREAD:.0e}), as after a cast that overflowed; expected numbers of an ordinary scale: look at its "
            "largest values and mend them at their source, or divide all by a constant"
        )


def names(name: str, value: Any, rows: int) -> Sequence[Any] | None:
    """Return N names with None where they are unknown, or None if no names are given.

    Args:
        name: The name of the argument, for the messages.
        value: A sequence, array, tensor or series of N names, or None.
        rows: The number N of rows.

    Raises:
        ValueError: There are not N of them, they have several columns, or one is blank or no name.
    """
    if value is None:
        return None
    value = plain(value)
    if isinstance(value, (str, bytes, Mapping, Set)) or not hasattr(value, "__len__"):
        raise ValueError(f"{name}: got a {type(value).__name__}; expected a sequence of {rows} names, one for each row")
    shape = getattr(value, "shape", None) or (len(value),)
    if len(shape) != 1:
        raise ValueError(f"{name}: got shape {tuple(shape)}; expected ({rows},), one name for each row of X")
    if len(value) != rows:
        raise ValueError(f"{name}: got {len(value)}; expected {rows}, as the rows of X")
    if isinstance(value, Names) or (isinstance(value, np.ndarray) and value.dtype.kind in "iu"):
        return value  # type: ignore[return-value]  # nothing to look for; a list of many would take much more memory
    found = [None if is_unknown(entry) else entry for entry in value]
    for row, entry in enumerate(found):
        if not isinstance(entry, Hashable) or (isinstance(entry, str) and not entry.strip()):
            expected = "text that is not empty or a number, None where unknown"
            raise ValueError(f"{name}: got {shown(entry)} in row {row}; expected {expected}")
    return found


def seconds(value: Any, rows: int) -> np.ndarray:
    """Return times as seconds since 1970 (float64), NaN where unknown.

    Args:
        value: N numbers of seconds, or N datetimes (of Python, numpy or pandas); a datetime without a zone is UTC.
        rows: The number N of rows.

    Raises:
        ValueError: There are not N times, they are neither numbers nor datetimes, or they lie after the year 5138.
    """
    array = np.asarray(plain(value))
    if array.shape != (rows,):
        raise ValueError(f"times: got shape {array.shape}; expected ({rows},), as the rows of X")
    if array.dtype == object:
        array = np.array([_moment(entry) for entry in array], np.float64)
    if array.dtype.kind == "M":
        known = ~np.isnat(array)
        array = np.where(known, array.astype("datetime64[us]").astype(np.int64) / 1e6, np.nan)
    if array.dtype.kind not in "iuf":
        raise ValueError(
            f"times: got {array.dtype}; expected seconds since 1970 or datetimes (texts: pandas.to_datetime makes them)"
        )
    late = array > LATEST
    if late.any():
        raise ValueError(
            f"times: got {array[late][0]:.4g}; expected seconds since 1970, NaN where unknown: divide milliseconds by "
            "1000"
        )
    return array.astype(np.float64)


def _moment(entry: Any) -> float:
    """Return the seconds since 1970 of one entry, NaN where it is unknown."""
    if is_unknown(entry):
        return math.nan
    if isinstance(entry, datetime):
        return (entry if entry.tzinfo else entry.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(entry, np.datetime64):
        return float(entry.astype("datetime64[us]").astype(np.int64) / 1e6)
    if isinstance(entry, (int, float, np.number)) and not isinstance(entry, bool):
        return float(entry)
    raise ValueError(f"times: got {entry!r}; expected seconds since 1970 or datetimes")
