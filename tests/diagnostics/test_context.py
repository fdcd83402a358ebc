"""Who, when and where on proven rows: found where it acts, not where it does not, and told apart from taste."""

import numpy as np
import pytest

from irm_fast.diagnostics import diagnose
from tests.diagnostics.made import ROWS, failed, make, place, sigmoid

KNOWN = ("users", "sessions", "times")
KINDS = {
    "plain": ({"rows": 6_000}, ()),
    "users, sessions and times at random": ({"rows": 6_000}, KNOWN),
    "three signals": ({"signals": 3, "rows": 6_000}, KNOWN),
    "low rates": ({"base": -3.5, "rows": 6_000}, KNOWN),
}


def check(found, name):
    return next(test for test in found.tests if test.name == name)


@pytest.mark.parametrize("kind", KINDS)
def test_independent_signals_are_contradicted_once_in_20_redraws_at_most(kind):
    settings, known = KINDS[kind]
    contradicted = 0
    for seed in range(20):
        made = make(100 + seed, **settings)
        platform = made.rng.choice(["ios", "android", "web"], len(made.reward))
        given = {"segments": {"platform": platform}} if known else {}
        found = made.diagnose(*known, **given)
        contradicted += found.kind == "contradicted"
        if known and kind != "low rates":
            decided = {test.name for test in found.tests if test.result == "passed"}
            assert {"time", "place in session", "segments", "session", "user activity"} <= decided
            assert {"silent rows by day", "duplicate rows", "broken button", "users who act on everything"} <= decided
    assert contradicted <= 1


def of_each(made, numbers, sd):
    """Return a normal number for each user or session, of shape (N, 1)."""
    return sd * made.rng.normal(size=numbers.max() + 1)[numbers, None]


@pytest.mark.parametrize("sd", [1.0, 2.0])
def test_activity_of_users_is_told_from_taste(sd):
    made = make(0)
    made.act(sigmoid(made.propensity + of_each(made, made.users, sd)))
    found = made.diagnose(*KNOWN)
    assert {"user activity", "users alike"} <= failed(found)
    assert "session" not in failed(found)  # beyond the user, it tells nothing
    assert found.ranking == "conditional"
    assert "more than the ranking" in found.verdict

    made = make(0)
    made.act(pleased=made.rng.random(ROWS) < sigmoid(made.reward + of_each(made, made.users, sd)[:, 0]))
    found = made.diagnose(*KNOWN)
    assert found.kind == "conditional"
    assert check(found, "users alike").p_value < 0.001
    assert "easier to please" in check(found, "users alike").text


def test_what_is_modelled_is_no_failure():
    made = make(0)
    made.act(sigmoid(made.propensity + of_each(made, made.users, 1.5)))
    found = made.diagnose(*KNOWN, context=("user",))
    assert found.kind == "conditional"
    assert check(found, "user activity").text.startswith("modelled: ")
    assert "activity is modelled" in check(found, "users alike").text
    assert made.diagnose(*KNOWN, context=("time", "place")).kind == "contradicted"


def test_cause_and_size_are_said():
    made = make(0)
    made.act(np.where(made.times > np.median(made.times), 0.2, 0.6)[:, None].repeat(2, axis=1))
    made.propensity = np.full_like(made.propensity, -0.5)
    found = check(made.diagnose(*KNOWN), "time")
    shares = [entry["observed"] for entry in found.details if entry["signal"] == "copy"]
    assert shares[:4] == pytest.approx([0.6] * 4, abs=0.08)
    assert shares[6:] == pytest.approx([0.2] * 4, abs=0.08)
    assert found.statistic == pytest.approx(0.12, abs=0.03)  # of 0.6 in three quarters of the proven rows, 0.2 in one
    assert "of the proven rows of tenth" in found.text
    counts = diagnose(made.feedback, propensity_design="hidden", times=made.times)
    assert check(counts, "time").result == "failed"
    assert "responses that differ would do the same" in check(counts, "time").text


def test_predictions_account_for_responses_that_differ_by_time():
    made = make(0)
    made.reward += (made.times > np.median(made.times)) * 1.5
    made.propensity += (made.times > np.median(made.times))[:, None] * 1.0  # other prompts, as the text shows
    made.pleased = made.rng.random(ROWS) < sigmoid(made.reward)
    made.act()
    assert check(made.diagnose(*KNOWN), "time").result == "passed"
    assert check(diagnose(made.feedback, propensity_design="hidden", times=made.times), "time").result == "failed"


def test_a_session_has_a_mood_of_its_own():
    made = make(0)
    made.act(sigmoid(made.propensity + of_each(made, made.sessions, 1.5)))
    found = made.diagnose("users", "sessions")
    assert "session" in failed(found)
    assert "user activity" not in failed(found)


def test_place_is_by_time_where_times_are_known():
    made = make(0)
    made.act(sigmoid(made.propensity + 1.5 - 0.7 * place(made)[:, None]))
    order = made.rng.permutation(ROWS)
    made.keep(order)
    assert "place in session" not in failed(made.diagnose("users", "sessions"))
    found = made.diagnose(*KNOWN)
    assert "place in session" in failed(found)
    assert "place 1" in check(found, "place in session").text
    same = made.sessions % 2  # the name of a session may be known within its user alone
    made.sessions = same
    assert "place in session" in failed(made.diagnose(*KNOWN))


def test_one_choice_a_session():
    made = make(0)
    first = np.unique(np.where(made.feedback[:, 0] == 1, made.sessions, -1), return_index=True)[1]
    chosen = np.zeros(ROWS, bool)
    chosen[first] = True
    made.feedback[:, 0] &= chosen
    found = made.diagnose("users", "sessions")
    assert "one choice a session" in failed(found)
    assert check(found, "one choice a session").statistic < 0.2
    assert "as pairs" in " ".join(found.remedies)


def test_proven_rows_under_misclicks_and_labels():
    """An action proves little where half of the actions are mistakes; a label proves with one signal too."""
    made = make(0, signals=1)
    made.act(sigmoid(made.propensity + np.where(made.times > np.median(made.times), -1.5, 1.5)[:, None]))
    labels = np.where(made.rng.random(ROWS) < 0.2, made.pleased, -1).astype(int)
    assert check(made.diagnose(*KNOWN), "time").result == "too few data"
    assert check(made.diagnose(*KNOWN, preference=labels), "time").result == "failed"
    two = make(0, signals=2)
    half = {"misclick_rate": (0.5, 0.5), "propensity_design": "hidden", "times": two.times}
    assert check(diagnose(two.feedback, **half), "time").result == "too few data"
    little = half | {"misclick_rate": (0.05, 0.05)}
    assert check(diagnose(two.feedback, **little), "time").result == "passed"
