"""The values of columns, checked many at a time as the parsers of `rows` check one.

A checker returns the values of n rows and a mask of those that are in doubt: these are parsed one by one, by the
parsers that word what is wrong. No checker refuses anything, takes what a parser would not, or takes it otherwise.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from irm_fast.data.rows import FLOAT32_MAX, UNKNOWN_USERS
from irm_fast.data.times import LAST_YEAR, LATEST, time_of

_VISIBLE = (
    r"^\s*[^\s\pZ\pC]"  # after spaces of ASCII a sign that is neither a space nor hidden, of which Python knows more
)
_NO_JSON = r"^\s*[^\s\pZ\pC\[{]"
_TIME = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?$"
_REST = re.compile(r"(\.\d+)?(?:Z|([+-])(\d\d):(\d\d))?")
_EXACT = 2**53  # up to which float64 has all whole numbers
_AFTER = np.datetime64(f"{LAST_YEAR + 1}-01-01", "s").astype(np.int64)  # times that are not known


class Checked(NamedTuple):
    """The values of a column.

    Attributes:
        values: An Arrow array of strings, or a numpy array of numbers, of n entries.
        given: A mask of the rows that give a value.
        doubt: A mask of the rows that are in doubt.
    """

    values: Any
    given: np.ndarray
    doubt: np.ndarray


def flat(column: Any) -> Any:
    """Return a column as one of the types that are checked, where it is the same but for how it is laid out."""
    import pyarrow as pa
    import pyarrow.types as t

    if t.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string()) if t.is_large_string(column.type) else column


def is_given(column: Any) -> np.ndarray:
    """Return a mask of the rows that give a value: neither null, nor NaN, which tables write for it."""
    import pyarrow.compute as pc
    import pyarrow.types as t

    floats = t.is_floating(column.type)
    if not column.null_count and not floats:
        return np.ones(len(column), bool)
    nothing: np.ndarray = pc.is_null(column, nan_is_null=floats).to_numpy(zero_copy_only=False)
    return ~nothing


def texts(column: Any) -> Checked:
    """Check texts that are neither empty nor JSON, nor null."""
    import pyarrow.types as t

    column = flat(column)
    if not t.is_string(column.type):
        return _nothing(column)
    plain = _begins(column, _NO_JSON, but=b"[{")
    return Checked(column, is_given(column), ~plain)


def is_visible(column: Any) -> np.ndarray:
    """Return a mask of the texts that certainly say something."""
    return _begins(column, _VISIBLE)


def names(column: Any) -> Checked:
    """Check names: texts that are not empty, or whole numbers."""
    import pyarrow as pa
    import pyarrow.types as t

    column = flat(column)
    given = is_given(column)
    if t.is_integer(column.type):
        return Checked(column.cast(pa.string()), given, np.zeros(len(column), bool))
    if not t.is_string(column.type):
        return _nothing(column)
    return Checked(column, given, given & ~_begins(column, _VISIBLE))


def users(column: Any) -> tuple[Checked, np.ndarray]:
    """Check names of users or sessions, and return a mask of those that stand for none, `UNKNOWN_USERS`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    checked = names(column)
    unknown = np.zeros(len(column), bool)
    if checked.doubt.all() or not pa.types.is_string(flat(column).type):
        return checked, unknown
    column, data, starts, ends = checked.values, *_bytes(checked.values)
    empty = checked.given & (starts == ends)
    first, last = np.take(data, starts, mode="clip"), np.take(data, ends - 1, mode="clip")
    hidden = (first <= 32) | (first > 126) | (last <= 32) | (last > 126)  # perhaps spaces, or letters of two cases
    doubt = (checked.doubt | (checked.given & hidden)) & ~empty
    places = np.flatnonzero(checked.given & ~doubt & (ends - starts <= max(map(len, UNKNOWN_USERS))))
    short = column if len(places) == len(column) else column.take(pa.array(places))
    unknown[places] = pc.is_in(pc.utf8_lower(short), pa.array(sorted(UNKNOWN_USERS))).to_numpy(zero_copy_only=False)
    doubt[places] |= ~pc.string_is_ascii(short).fill_null(True).to_numpy(zero_copy_only=False)
    return checked._replace(doubt=doubt), (unknown | empty) & ~doubt


def numbers(column: Any, least: float = -FLOAT32_MAX, most: float = FLOAT32_MAX, above: float | None = None) -> Checked:
    """Check numbers within limits.

    Args:
        column: The column.
        least: The smallest number.
        most: The largest.
        above: A number above which they are.
    """
    import pyarrow.types as t

    if not (t.is_integer(column.type) or t.is_floating(column.type)):
        return _nothing(column)._replace(values=np.full(len(column), np.nan))
    given = is_given(column)
    values = _float64(column)
    with np.errstate(invalid="ignore"):
        fine = (values >= least) & (values <= most) & (True if above is None else values > above)
    return Checked(values, given, given & ~fine)


def levels(column: Any, *, counts: bool = False) -> Checked:
    """Check 1 and 0; of numbers of actions, any from 0 are 1 or 0. What is not given is -1, int8."""
    import pyarrow.types as t

    if not (t.is_boolean(column.type) or t.is_integer(column.type) or t.is_floating(column.type)):
        return _nothing(column)._replace(values=np.full(len(column), -1, np.int8))
    given = is_given(column)
    values = _float64(column)
    with np.errstate(invalid="ignore"):
        many = (values > 1) & (values < np.inf) & (np.floor(values) == values)
    acted = (values == 1) | many if counts else values == 1
    fine = acted | (values == 0)
    return Checked(np.where(given, acted, -1).astype(np.int8), given, given & ~fine)


def times(column: Any) -> Checked:
    """Check times: numbers, texts of ISO 8601, dates and timestamps; in doubt are those that stand for none."""
    import pyarrow.types as t

    column = flat(column)
    if t.is_string(column.type):
        return _text_times(column)
    if t.is_timestamp(column.type) or t.is_date(column.type):
        return _stamps(column)
    checked = numbers(column, 0, LATEST * 1e9)
    values = np.where(checked.given & ~checked.doubt, checked.values, 0)
    units = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
    seconds = np.select([values > least for least, _ in units], [values / unit for _, unit in units], values)
    if t.is_integer(column.type):
        for place in np.flatnonzero(values >= _EXACT).tolist():
            seconds[place] = time_of(column[place].as_py(), "timestamp")
    return checked._replace(values=np.where(checked.given, seconds, np.nan))


def _stamps(column: Any) -> Checked:
    """Check the dates and timestamps of tables."""
    import pyarrow as pa

    given = is_given(column)
    zone, nanoseconds = getattr(column.type, "tz", None), getattr(column.type, "unit", "") == "ns"
    try:
        whole = column.cast(pa.timestamp("us", zone), safe=not nanoseconds).cast(pa.int64())
    except pa.ArrowInvalid:  # too early or too late
        return _nothing(column)
    ticks = whole.fill_null(0).to_numpy(zero_copy_only=False)
    fine = (ticks >= (86_400 * 10**6 if zone else 0)) & (ticks < _EXACT)  # the zone may say that it is 1969
    return Checked(np.where(given, ticks / 10**6, np.nan), given, given & ~fine)


def _text_times(column: Any) -> Checked:
    """Check times that are texts of one of the usual forms."""
    import pyarrow as pa
    import pyarrow.compute as pc

    given = is_given(column)
    usual = pc.match_substring_regex(column, _TIME).fill_null(False)
    fine = usual.to_numpy(zero_copy_only=False)
    seconds = np.full(len(column), np.nan)
    if fine.any():
        held = column.filter(usual)
        try:
            whole = pc.utf8_slice_codeunits(held, 0, 19).cast(pa.timestamp("s")).cast(pa.int64())
        except pa.ArrowInvalid:  # no such day
            return Checked(seconds, given, given)
        rest = pc.utf8_slice_codeunits(held, 19).dictionary_encode()
        parsed = [_rest_of(text) for text in rest.dictionary.to_pylist()]
        offset, part = np.array(parsed, np.float64).T[:, rest.indices.to_numpy(zero_copy_only=False)]
        found = whole.to_numpy() - offset
        known = (whole.to_numpy() >= 0) & (whole.to_numpy() < _AFTER) & (found >= 0)
        seconds[fine] = np.where(known, found + part, np.nan)
        fine[fine] = known
    return Checked(seconds, given, given & ~fine)


def _rest_of(text: str) -> tuple[float, float]:
    """Return the offset in seconds and the fraction of what follows the seconds of a time; NaN if there is no such."""
    match = _REST.fullmatch(text)
    if match is None or int(match[3] or 0) > 23 or int(match[4] or 0) > 59:
        return np.nan, 0.0
    offset = 3600 * int(match[3] or 0) + 60 * int(match[4] or 0)
    return (-offset if match[2] == "-" else offset), float("0" + (match[1] or ".0"))


def _nothing(column: Any) -> Checked:
    """Return all rows that give a value as in doubt."""
    import pyarrow as pa

    given = is_given(column)
    return Checked(pa.nulls(len(column), pa.string()), given, given)


def _float64(column: Any) -> np.ndarray:
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values: np.ndarray = column.to_numpy(zero_copy_only=False).astype(np.float64)  # null is NaN
    return values


def _bytes(column: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bytes of an array of strings, and where each begins and ends."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    held = np.zeros(1, np.uint8) if data is None or not data.size else np.frombuffer(data, np.uint8)
    return held, ends[:-1], ends[1:]


def _begins(column: Any, pattern: str, but: bytes = b"") -> np.ndarray:
    """Return a mask of the texts that begin as a pattern says; most of them, with a visible letter, are told by a byte.

    Args:
        column: An array of strings.
        pattern: The pattern.
        but: Bytes of ASCII with which they must not begin.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(column):
        return np.zeros(0, bool)
    data, starts, ends = _bytes(column)
    first = np.take(data, starts, mode="clip")
    sure = (ends > starts) & (first > 32) & (first < 127)
    for byte in but:
        sure &= first != byte
    if column.null_count:
        sure &= is_given(column)
    rest = np.flatnonzero(~sure)
    if len(rest):
        found = pc.match_substring_regex(column.take(pa.array(rest)), pattern).fill_null(False)
        sure[rest] = found.to_numpy(zero_copy_only=False)
    return sure
