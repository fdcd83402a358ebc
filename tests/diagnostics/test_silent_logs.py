"""Eleven logs that break the assumptions without a word: named by a check where one can, never a point of the scale.

Predictions are those of a fit that is right about the responses, at the level that two signals would show.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest

from irm_fast.diagnostics import diagnose

ROWS, PER_USER, PER_SESSION, DAYS = 12_000, 12, 6, 40
DAY = 86_400


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


@dataclass
class Made:
    """A made log: feedback (N, K) of signals with propensities (N, K), and what is known of its rows."""

    rng: np.random.Generator
    reward: np.ndarray
    propensity: np.ndarray
    users: np.ndarray
    sessions: np.ndarray
    times: np.ndarray
    pleased: np.ndarray
    feedback: np.ndarray = field(default=None)
    given: dict = field(default_factory=dict)

    def act(self, active=None, pleased=None):
        """Draw the feedback of active users, probabilities (N, K), who are pleased, (N,) or (N, K)."""
        active = sigmoid(self.propensity) if active is None else active
        pleased = self.pleased if pleased is None else pleased
        pleased = pleased.reshape(len(pleased), -1)
        self.feedback = (pleased & (self.rng.random(active.shape) < active)).astype(np.int8)

    def keep(self, rows):
        for name in ("reward", "propensity", "users", "sessions", "times", "pleased", "feedback"):
            setattr(self, name, getattr(self, name)[rows])

    def diagnose(self, *known, **options):
        """Diagnose, with what of users, sessions and times is named."""
        context = {name: getattr(self, name) for name in known}
        return diagnose(
            self.feedback,
            signals=["copy", "share", "save"][: self.feedback.shape[1]],
            propensity_design="hidden",
            reward_logits=self.reward,
            propensity_logits=self.propensity,
            **context,
            **options,
        )


def make(seed, signals=2, rows=ROWS, base=-0.5):
    """Draw a log that keeps all assumptions: users in random order of time, true mean preference .50."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    reward = 1.2 * x[:, 0] - x[:, 1]
    propensity = base + 0.3 * x @ rng.normal(size=(4, signals))
    user = rng.permutation(rows // PER_USER).repeat(PER_USER)
    session = user * (PER_USER // PER_SESSION) + np.tile(np.arange(PER_USER) // PER_SESSION, rows // PER_USER)
    start = rng.uniform(0, DAYS, session.max() + 1)[session] * DAY
    times = 1.7e9 // DAY * DAY + start + 90.0 * np.tile(np.arange(PER_SESSION), rows // PER_SESSION)
    made = Made(rng, reward, propensity, user, session, times, rng.random(rows) < sigmoid(reward))
    made.act()
    return made


def failed(found):
    return {test.name for test in found.tests if test.result == "failed"}


def place(made):
    return np.tile(np.arange(PER_SESSION), len(made.reward) // PER_SESSION)


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


if __name__ == "__main__":
    for case, (change, known, name) in NAMED.items():
        for seed in range(2):
            made = make(seed)
            change(made)
            found = made.diagnose(*known, **made.given)
            print(case, "|", name, "|", failed(found))
    for case, change in SILENT.items():
        made = make(0)
        change(made)
        found = made.diagnose()
        print(case, failed(found), found.sensitivity.mean_g_range)
    print(found)
