"""Silence that is a broken button, silent rows that were dropped, rows that are there twice, users who are scripts."""

import numpy as np
import pytest

from irm_fast.diagnostics import diagnose
from tests.diagnostics.made import ROWS, failed, make, place

KNOWN = ("users", "sessions", "times")


def check(found, name):
    return next(test for test in found.tests if test.name == name)


@pytest.mark.parametrize("predicted", [True, False])
def test_broken_button_is_named_and_repaired_by_the_advice(predicted):
    made = make(0)
    platform = made.rng.choice(["ios", "android", "web"], ROWS, p=[0.2, 0.4, 0.4])
    made.feedback[platform == "ios", 1] = 0

    def run():
        if predicted:
            return made.diagnose(*KNOWN, segments={"platform": platform})
        names = {"signals": ["copy", "share"], "propensity_design": "hidden"}
        return diagnose(made.feedback, segments={"platform": platform}, **names)

    found = run()
    assert found.kind == found.ranking == "contradicted"
    assert "share acts 0 times" in check(found, "broken button").text
    assert found.remedies[0] == (
        'Record null (missing) for share where platform=ios: irm-fast mask "share where platform=ios" does it to a log.'
    )
    (cell,) = check(found, "broken button").details
    assert cell["signals"] == ["share"]
    assert cell["rows"] == (platform == "ios").sum()
    assert cell["expected"] == pytest.approx(0.2 * ROWS * 0.2, rel=0.2)
    made.feedback[platform == "ios", 1] = -1
    assert "broken button" not in failed(run())
    assert run().kind == "conditional"


def test_buttons_may_break_at_times_and_in_last_rows():
    made = make(0)
    hour = made.times % 86_400 // 3600
    made.feedback[hour == 7, 0] = 0
    made.feedback[place(made) == place(made).max(), 1] = 0
    cells = check(made.diagnose(*KNOWN), "broken button").details
    assert {cell["where"] for cell in cells} == {"from 7:00 to 8:00 UTC", "in the last row of a session"}
    assert check(made.diagnose("users"), "broken button").result == "not testable"


def test_a_polarity_may_be_missing():
    made = make(0, signals=2)
    version = made.rng.choice(["1", "2"], ROWS)
    made.feedback[version == "2"] = 0
    cells = check(made.diagnose(segments={"version": version}), "broken button").details
    assert ["copy", "share"] in [cell["signals"] for cell in cells]


def test_a_user_who_never_acts_breaks_no_button():
    made = make(0)
    made.users = np.where(np.arange(ROWS) < 300, -1, made.users)
    platform = np.where(np.arange(ROWS) < 300, "toaster", "web")
    made.feedback[:300] = 0
    assert check(made.diagnose("users", segments={"platform": platform}), "broken button").result != "failed"
    made.users = np.arange(ROWS)
    assert check(made.diagnose("users", segments={"platform": platform}), "broken button").result == "failed"


def test_a_button_that_came_late_is_said_with_the_time():
    made = make(0)
    start = np.quantile(made.times, 0.3)
    made.feedback[made.times < start, 1] = 0
    text = " ".join(str(cell["where"]) for cell in check(made.diagnose(*KNOWN), "broken button").details)
    assert f"before {np.datetime64(int(start), 's')}"[:17].replace("T", " ") in text


def test_silent_rows_that_are_dropped_in_a_period():
    made = make(0)
    silent = (made.feedback == 0).all(axis=1)
    low, high = np.quantile(made.times, (0.4, 0.7))
    period = (made.times > low) & (made.times < high)
    share = silent[period].mean()
    made.keep(~(silent & period & (made.rng.random(ROWS) < 0.6)))
    found = check(made.diagnose(*KNOWN), "silent rows by day")
    assert found.result == "failed"
    assert found.statistic == pytest.approx(0.4 * share / (0.4 * share + 1 - share) - share, abs=0.04)
    assert str(np.datetime64(int(low), "s"))[:10] in found.text


def test_days_may_vary_smoothly_and_by_the_week():
    made = make(0)
    day = np.floor(made.times / 86_400)
    weekend = (day % 7 >= 5) & (made.rng.random(ROWS) < 0.2)
    made.feedback[weekend] = 0
    assert "silent rows by day" not in failed(made.diagnose("times"))


def test_coarse_times_are_no_duplicates():
    made = make(0)
    fine = made.times
    made.times = np.floor(made.times / 86_400) * 86_400
    found = check(made.diagnose(*KNOWN), "duplicate rows")
    assert found.result == "passed"
    assert -1 < found.statistic < 0  # the silent rows of a session are alike
    made.times = fine
    acted = np.flatnonzero((made.feedback == 1).any(axis=1))
    made.keep(np.concatenate([np.arange(ROWS), acted]))
    found = check(made.diagnose(*KNOWN), "duplicate rows")
    assert found.result == "failed"
    assert found.text.startswith("100% of the acted rows have a twin")


def test_users_who_act_on_everything_are_counted_and_named():
    made = make(0)
    robots = made.users < 50
    made.feedback[robots] = 1
    found = check(made.diagnose("users"), "users who act on everything")
    assert found.result == "failed"
    assert {int(entry["user"]) for entry in found.details} >= set(range(50))
    share = robots.sum() / (made.feedback == 1).any(axis=1).sum()
    assert f"with {share:.0%} of all rows that act" in found.text
    made = make(1)
    made.users[:400] = -1
    made.feedback[:400] = 1  # one of them
    found = check(made.diagnose("users"), "users who act on everything")
    assert found.result == "failed"
    assert found.statistic == 1
    assert [entry["user"] for entry in found.details] == ["-1"]
    assert check(made.diagnose("users", context=("user",)), "users who act on everything").result == "failed"


def test_a_few_users_who_act_on_everything_are_told_from_those_who_act_on_much():
    """Of counts above 75% of 40 rows a fifth is above 95%: five users there and none below are no chance."""
    rng = np.random.default_rng(0)
    for top, between, result in ((5, 0, "failed"), (4, 0, "passed"), (5, 15, "passed")):
        acted = rng.random((400, 40)) < 0.3
        acted[:top], acted[top : top + between, :34] = True, True
        users = np.arange(400).repeat(40)
        found = diagnose(acted.reshape(-1, 1).astype(int), propensity_design="constant", users=users)
        assert check(found, "users who act on everything").result == result


def test_eager_users_are_no_scripts():
    made = make(0)
    taste = 1.5 * made.rng.normal(size=made.users.max() + 1)[made.users]
    made.act(pleased=made.rng.random(ROWS) < 1 / (1 + np.exp(-made.reward - taste)))
    assert "users who act on everything" not in failed(made.diagnose("users"))
