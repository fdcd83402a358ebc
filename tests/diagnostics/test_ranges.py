"""What the range of the mean preference allows for, each violation by itself, and that it holds the truth."""

import numpy as np
import pytest

from irm_fast.diagnostics.sensitivity import with_misclicks
from tests.diagnostics.made import ROWS, make, sigmoid, unordered


def share_after_copy(made):
    made.feedback[:, 1] = made.pleased & (made.rng.random(ROWS) < np.where(made.feedback[:, 0] == 1, 0.6, 0.1))


def half_of_the_silent_rows_lost(made):
    made.keep((made.feedback == 1).any(axis=1) | (made.rng.random(ROWS) < 0.5))


def logged_twice(made):
    acted = np.flatnonzero((made.feedback == 1).any(axis=1))
    made.keep(np.sort(np.concatenate([np.arange(ROWS), acted])))


def a_position_that_nobody_logs(made):
    place = made.rng.integers(0, 5, ROWS)
    made.act(sigmoid(made.propensity + 1.5 - 1.2 * place[:, None]))


def misclicks(made):
    made.act(pleased=made.pleased[:, None] | (made.rng.random((ROWS, 2)) < 0.3))


SILENT = (share_after_copy, half_of_the_silent_rows_lost, logged_twice, a_position_that_nobody_logs, misclicks)


@pytest.mark.parametrize("known", [(), ("users", "sessions", "times")])
@pytest.mark.parametrize("world", SILENT)
def test_range_holds_the_truth_of_silent_logs(world, known):
    made = make(0)
    world(made)
    made.fit()
    low, high = made.diagnose(*known).sensitivity.mean_g_range
    assert 0.05 < low < 0.5 < high


def test_half_of_the_silent_rows_are_put_back():
    """Exactly, where the fit has what two signals show of the rows that are left: g over the share of rows kept."""
    made = make(0)
    g, m = sigmoid(made.reward - 1), sigmoid(made.propensity)
    kept = 0.5 + 0.5 * g * (1 - (1 - m).prod(axis=1))
    some = g / kept < 0.97
    made.pleased = made.rng.random(ROWS) < g
    made.act()
    made.reward = np.log((g / kept) / np.where(some, 1 - g / kept, 1.0))
    made.keep(some & ((made.feedback == 1).any(axis=1) | (made.rng.random(ROWS) < 0.5)))
    found = made.diagnose(mean_error=0.0)
    assert found.sensitivity.mean_g > g[some].mean() + 0.08
    assert found.sensitivity.lost_silent == pytest.approx(g[some].mean(), abs=0.015)
    assert found.sensitivity.mean_g_range[0] <= found.sensitivity.lost_silent
    line = f"if half of the silent rows were never logged: mean preference {found.sensitivity.lost_silent:.2f}"
    assert line in str(found)


def test_two_signals_may_be_one_of_two_stages_until_times_of_actions_tell():
    made = make(0)
    blind, timed = made.diagnose(), made.diagnose(acted_at=unordered(made))
    assert blind.sensitivity.funnel == pytest.approx(1.0)
    assert blind.sensitivity.mean_g_range[1] > 0.99
    assert "times of actions (acted_at) or a third signal would show it" in " ".join(str(blind).split())
    assert timed.sensitivity.funnel is None
    assert 0.5 < timed.sensitivity.mean_g_range[1] < 0.95
    assert make(0, signals=3).diagnose().sensitivity.funnel is None
    made.reward = -made.reward
    mirrored = made.diagnose(polarity=(-1, -1)).sensitivity
    assert mirrored.funnel == pytest.approx(0.0)
    assert mirrored.mean_g_range[0] < 0.01


def test_a_failure_of_the_scale_leaves_what_action_rates_allow():
    made = make(0)
    made.act(sigmoid(made.propensity + 1.5 * made.rng.normal(size=made.users.max() + 1)[made.users, None]))
    known = {"acted_at": unordered(made), "mean_error": 0.0}
    blind, known = made.diagnose(**known), made.diagnose("users", **known)
    assert (blind.scale, known.scale) == ("conditional", "contradicted")
    most = (sigmoid(made.reward)[:, None] * sigmoid(made.propensity)).max(axis=1).mean()
    assert known.sensitivity.mean_g_range == pytest.approx((most, 1.0), abs=1e-3)
    assert blind.sensitivity.mean_g_range[1] < 0.95


def test_chance_widens_the_range():
    made = make(0)
    at = unordered(made)
    none, some = (made.diagnose(acted_at=at, mean_error=error).sensitivity for error in (0.0, 0.05))
    ends = np.array([some.mean_g_range[0], *none.mean_g_range, some.mean_g_range[1]])
    step = 1.645 * 0.05 / (some.mean_g * (1 - some.mean_g))
    assert np.diff(np.log(ends / (1 - ends)))[[0, 2]] == pytest.approx([step, step])
    assert "(standard error 0.05)" in str(made.diagnose(mean_error=0.05))
    assert 0.004 < made.diagnose().sensitivity.mean_g_error < 0.03


def test_declared_misclicks_may_be_off_by_ten_points():
    made = make(0)
    misclicks(made)
    found = made.diagnose(acted_at=unordered(made), misclick_rate=(0.3, 0.3), mean_error=0.0).sensitivity
    g = sigmoid(made.reward)
    assert [entry.rate for entry in found.misclick] == pytest.approx([0.2, 0.3, 0.4])
    for entry in found.misclick:
        assert entry.mean_g == pytest.approx(with_misclicks(g, (0.3, 0.3), (entry.rate,) * 2), abs=0.02)
    assert found.mean_g_range[0] <= found.misclick[-1].mean_g < found.misclick[1].mean_g - 0.05
