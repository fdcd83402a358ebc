"""Times of a log: numbers, texts and dates as seconds since 1970."""

from __future__ import annotations

import math
import re
from datetime import date, datetime, timezone

from irm_fast.data.problems import FieldError, shown

LATEST = 1e11  # seconds since 1970: the year 5138
LAST_YEAR = 5137
_UNITS = ((1e17, 10**9), (1e14, 10**6), (1e11, 10**3))  # above the first, so many are a second
_EXPECTED = "expected a time since 1970: seconds, or a text such as 2026-01-31T12:00:00Z"
_TEXT = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)"
    r"(?:[T ](?P<clock>\d\d:\d\d(?::\d\d)?)(?P<part>[.,]\d+)? ?(?P<zone>Z|UTC|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII | re.IGNORECASE,
)


def time_of(value: object, field: str) -> float:
    """Parse a time as seconds since 1970, in UTC; NaN for a day that logs write where none is known.

    Numbers are seconds. Those above 1e11 are read as milliseconds, above 1e14 as microseconds and above 1e17 as
    nanoseconds: as seconds they would lie after the year 5138, and in their own unit the least of them is in 1973.
    Texts are dates and times of ISO 8601, as 2026-01-31, 2026-01-31T12:00:00Z or 2026-01-31 13:00:00.25+01:00. Dates
    begin at midnight, and what names no zone is UTC. A day before 1970 or after 5138, such as 0000-00-00, 0001-01-01 or
    9999-12-31, says that the time is not known.

    Args:
        value: A number, a text, or a date or datetime, which Parquet files hold.
        field: The name of its field.

    Raises:
        FieldError: The value is no time, or a number of seconds before 1970 or after 5138.

    Examples:
        >>> time_of("1970-01-02T01:00:00+01:00", "timestamp"), time_of(1.7e12, "timestamp")
        (86400.0, 1700000000.0)
    """
    seconds = _seconds(value)
    if seconds is None or not (math.isnan(seconds) or 0 <= seconds <= LATEST):
        raise FieldError(field, f"got {shown(value)}; {_EXPECTED}")
    return seconds


def _is_of_a_log(year: int) -> bool:
    """Return whether a row may have been shown in a year, which some logs write where none is known."""
    return 1970 <= year <= LAST_YEAR


def _seconds(value: object) -> float | None:
    """Return the seconds since 1970 of a time, NaN of a day that no log can be of, or None if it is no time."""
    if isinstance(value, str):
        return _of_text(value.strip())
    if isinstance(value, date) and not _is_of_a_log(value.year):
        return math.nan
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=timezone.utc).timestamp()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LATEST * 1e9:
        return next((value / unit for least, unit in _UNITS if value > least), float(value))
    return None


def _of_text(text: str) -> float | None:
    """Return the seconds since 1970 of a text, alike on all versions of Python; NaN and None as `_seconds`."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    if not _is_of_a_log(int(match["day"][:4])):
        return math.nan
    zone = (match["zone"] or "Z").upper()
    digits = "0000" if zone in ("Z", "UTC") else zone[1:].replace(":", "").ljust(4, "0")
    offset = f"{'-' if zone.startswith('-') else '+'}{digits[:2]}:{digits[2:]}"
    try:
        whole = datetime.fromisoformat(f"{match['day']}T{match['clock'] or '00:00'}{offset}")
    except ValueError:  # no such day or hour
        return None
    return whole.timestamp() + float("0." + (match["part"] or ".0")[1:])


def shown_time(seconds: float) -> str:
    """Return a time as a report shows it, in UTC, to the second.

    Examples:
        >>> shown_time(86461.5)
        '1970-01-02 00:01:01'
    """
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
