"""Times in all the forms that logs have."""

import math
from datetime import date, datetime, timedelta, timezone

import pytest

from irm_fast.data.problems import FieldError
from irm_fast.data.times import shown_time, time_of

NOON = 1769860800.0  # 2026-01-31 12:00 UTC


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1769860800, NOON),
        (1769860800.25, NOON + 0.25),
        (1e11, 1e11),
        (1769860800_250, NOON + 0.25),
        (1769860800_250_000, NOON + 0.25),
        (1769860800_250_000_000, NOON + 0.25),
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t12:00:00.25z", NOON + 0.25),
        ("2026-01-31 12:00", NOON),
        ("2026-01-31 12:00:00 UTC", NOON),
        ("2026-01-31T13:30:00,250000000+01:30", NOON + 0.25),
        ("2026-01-31T04:00:00-0800", NOON),
        ("2026-01-31T04:00-08", NOON),
        (" 2026-01-31 ", NOON - 43200),
        (date(2026, 1, 31), NOON - 43200),
        (datetime(2026, 1, 31, 12), NOON),
        (datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2))), NOON),
    ],
)
def test_a_time_is_seconds_since_1970(value, seconds):
    assert time_of(value, "timestamp") == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("", "yesterday", "1769860800", "2026-02-30", "2026-01-31T25:00:00Z", "20260131", "2026-01-31T12:00:00 CET"),
        *(-1, -(10**400), 10**400, 1.1e20, float("nan"), True, [], {}),
    ],
)
def test_what_is_no_time_is_refused(value):
    with pytest.raises(FieldError) as raised:
        time_of(value, "acted_at.copy")
    assert raised.value.field == "acted_at.copy"
    assert "expected a time since 1970: seconds, or a text such as 2026-01-31T12:00:00Z" in raised.value.text


@pytest.mark.parametrize(
    "value",
    ["0000-00-00 00:00:00", "0001-01-01T00:00:00Z", "9999-12-31", "1969-12-31", datetime(1, 1, 1), date(1969, 12, 31)],
)
def test_a_day_that_no_log_can_be_of_is_unknown(value):
    assert math.isnan(time_of(value, "timestamp"))


def test_a_time_is_shown_in_utc():
    assert shown_time(NOON + 0.9) == "2026-01-31 12:00:00"
