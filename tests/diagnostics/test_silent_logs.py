"""Eleven logs that break the assumptions without a word: named by a check where one can, never a point of the scale.

Predictions are those of a fit that is right about the responses, at the level that two signals would show.
"""

import numpy as np
import pytest

from tests.diagnostics.made import failed, make, place, sigmoid


def share_after_copy(made):
    copy = made.feedback[:, 0] == 1
    rate = np.where(copy, 0.6, 0.1)
    made.feedback[:, 1] = made.pleased & (made.rng.random(len(copy)) < rate)


def different_meanings(made):
    other = made.rng.random(len(made.reward)) < sigmoid(made.reward + 2 * made.rng.normal(size=len(made.reward)))
    made.act(pleased=np.column_stack([made.pleased, other]))


def misclicks(made):
    side = made.pleased[:, None] | (made.rng.random(made.propensity.shape) < 0.3)
    made.act(pleased=side)


def bots(made):
    made.feedback[made.users < 0.05 * (made.users.max() + 1)] = 1


def shared_position(made):
    position = made.rng.integers(0, 5, len(made.reward))
    made.act(sigmoid(made.propensity + 1.5 - 1.2 * position[:, None]))
    made.given["segments"] = {"position": position}


def fatigue(made):
    made.act(sigmoid(made.propensity + 1.5 - 0.7 * place(made)[:, None]))


def redesign(made):
    late = made.times > np.median(made.times)
    made.act(sigmoid(made.propensity + np.where(late, -1.2, 1.2)[:, None]))


def late_second_signal(made):
    made.feedback[made.times < np.quantile(made.times, 0.4), 1] = 0


def silent_rows_lost_in_a_week(made):
    silent = (made.feedback == 0).all(axis=1)
    period = (made.times > np.quantile(made.times, 0.3)) & (made.times < np.quantile(made.times, 0.6))
    made.keep(~(silent & period & (made.rng.random(len(silent)) < 0.5)))


def half_of_the_silent_rows_lost(made):
    silent = (made.feedback == 0).all(axis=1)
    made.keep(~(silent & (made.rng.random(len(silent)) < 0.5)))


def logged_twice(made):
    acted = np.flatnonzero((made.feedback == 1).any(axis=1))
    made.keep(np.sort(np.concatenate([np.arange(len(made.reward)), acted])))


def copying_makes_sharing_rarer(made):
    copy = made.feedback[:, 0] == 1
    rate = np.where(copy, 0.6, 1.0) * sigmoid(made.propensity[:, 1])
    made.feedback[:, 1] = made.pleased & (made.rng.random(len(copy)) < rate)


ALL = ("users", "sessions", "times")
NAMED = {
    "position shared by both signals": (shared_position, ALL, "segments"),
    "session fatigue": (fatigue, ALL, "place in session"),
    "redesign half way": (redesign, ALL, "time"),
    "late second signal": (late_second_signal, ALL, "broken button"),
    "silent rows lost for a time": (silent_rows_lost_in_a_week, ALL, "silent rows by day"),
    "acted rows logged twice": (logged_twice, ALL, "duplicate rows"),
    "bots with ids": (bots, ALL, "users who act on everything"),
    "bots in sessions": (bots, ("sessions", "times"), "session"),
}
SILENT = {
    "share after copy": share_after_copy,
    "two meanings": different_meanings,
    "30% misclicks": misclicks,
    "bots without ids": bots,
    "half of the silent rows never logged": half_of_the_silent_rows_lost,
    "copying makes sharing rarer": copying_makes_sharing_rarer,
    "acted rows logged twice": logged_twice,
    "position shared by both signals": shared_position,
    "session fatigue": fatigue,
    "redesign half way": redesign,
    "late second signal": late_second_signal,
}


@pytest.mark.parametrize("case", NAMED)
def test_named_by_a_check(case):
    change, known, name = NAMED[case]
    for seed in range(2):
        made = make(seed)
        change(made)
        found = made.diagnose(*known, **made.given)
        assert name in failed(found)
        assert name in found.verdict
        assert found.kind == found.scale == "contradicted"
        assert found.sensitivity.mean_g_range is not None


@pytest.mark.parametrize("case", SILENT)
def test_the_scale_is_no_point_where_nothing_is_known_of_the_rows(case):
    made = make(0)
    SILENT[case](made)
    found = made.diagnose()
    low, high = found.sensitivity.mean_g_range
    assert high - low > 0.1
    assert found.scale in ("conditional", "contradicted")
    assert f"mean preference {low:.2f} to {high:.2f}" in str(found)


def test_funnel_is_named_by_times_of_actions_or_a_third_signal():
    made = make(0, signals=3)
    share_after_copy(made)
    found = made.diagnose()
    assert "funnel" in failed(found)
    assert 'after={"share": "copy"}' in " ".join(found.remedies)
    assert "third signal" in failed(found)

    made = make(0)
    copy = made.feedback[:, 0] == 1
    made.feedback[:, 1] = copy & (made.rng.random(len(copy)) < 0.6)
    alone = made.pleased & ~copy & (made.rng.random(len(copy)) < 0.02)
    made.feedback[alone, 1] = 1
    acted_at = np.where(made.feedback == 1, made.times[:, None] + [5.0, 60.0], np.nan)
    assert "funnel" in failed(made.diagnose(acted_at=acted_at))
    either = made.rng.permuted(acted_at, axis=1)  # in any order it is a high propensity
    assert "funnel" not in failed(made.diagnose(acted_at=either))
    assert "two signals without the times of their actions cannot show it" in str(made.diagnose())


def test_exclusion_shows_beside_a_third_signal():
    made = make(0, signals=3, base=0.3)
    copying_makes_sharing_rarer(made)
    assert "pairwise agreement" in failed(made.diagnose())


def test_misclicks_show_in_labels():
    made = make(0)
    misclicks(made)
    labels = np.where(made.rng.random(len(made.reward)) < 0.05, made.pleased, -1).astype(int)
    found = made.diagnose(preference=labels)
    assert "labels" in failed(found)
    rate = next(test for test in found.tests if test.name == "labels").details[0]["misclick_rate"]
    assert rate == pytest.approx(0.3, abs=0.08)
    assert f"misclick rate that the labels show: {rate:.2g}" in " ".join(found.remedies)
    assert "labels" not in failed(made.diagnose(preference=labels, misclick_rate=(0.3, 0.3)))
    assert "labels" not in failed(make(1).diagnose(preference=np.where(labels >= 0, make(1).pleased, -1).astype(int)))
