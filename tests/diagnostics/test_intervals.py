"""Intervals of AUROC and pair accuracy: as wide as redraws differ, over groups of rows."""

import numpy as np
import pytest

from irm_fast.diagnostics import intervals
from irm_fast.diagnostics.intervals import ranking_intervals
from irm_fast.diagnostics.metrics import reward_metrics


def sample(groups, size, spread, seed):
    """Groups of rows whose logit, and whose preference, share an offset of this deviation."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    offset = spread * rng.normal(size=groups)[group]
    logit = rng.normal(size=len(group)) + offset
    preference = (rng.random(len(group)) < 1 / (1 + np.exp(-(logit - 2 * offset)))).astype(int)
    return logit, preference, group


@pytest.mark.parametrize(("size", "spread"), [(1, 0.0), (20, 1.0)])
def test_intervals_are_as_wide_as_redraws_differ(size, spread):
    draws = [sample(600 // size * 2, size, spread, seed) for seed in range(100)]
    values = [reward_metrics(logit, preference)["auroc"] for logit, preference, _ in draws]
    found = [ranking_intervals(*draw) for draw in draws[:10]]
    wide = np.mean([ends["auroc_high"] - ends["auroc_low"] for ends in found])
    assert wide == pytest.approx(2 * 1.645 * np.std(values), rel=0.25)
    rows = [ranking_intervals(logit, preference, np.arange(len(logit))) for logit, preference, _ in draws[:10]]
    narrow = np.mean([ends["auroc_high"] - ends["auroc_low"] for ends in rows])
    assert (narrow < 0.75 * wide) == (size > 1)


def test_resampled_aurocs_are_aurocs_of_repeated_rows():
    logit, preference, group = sample(7, 6, 1.0, seed=3)
    logit = np.round(logit)  # ties
    drawn = list(intervals.resamples(7))[:20]
    for value, counts in zip(intervals._aurocs(logit, preference, group)[:20], drawn, strict=True):
        times = counts[group].astype(int)
        repeated = reward_metrics(np.repeat(logit, times), np.repeat(preference, times))
        assert value == pytest.approx(repeated["auroc"])


def test_pairs():
    rng = np.random.default_rng(0)
    preference, pair = np.tile([1, 0], 400), np.repeat(np.arange(400), 2)
    logit = rng.normal(size=800) + preference
    found = ranking_intervals(logit, preference, pair, pair)
    accuracy = reward_metrics(logit, preference, pair)["pair_accuracy"]
    error = np.sqrt(accuracy * (1 - accuracy) / 400)
    assert found["pair_accuracy_low"] == pytest.approx(accuracy - 1.645 * error, abs=0.4 * error)
    assert found["pair_accuracy_high"] == pytest.approx(accuracy + 1.645 * error, abs=0.4 * error)
    in_users = ranking_intervals(logit, preference, pair // 40, pair)
    assert in_users["pair_accuracy_low"] != found["pair_accuracy_low"]
    assert ranking_intervals(logit, preference, pair, np.full(800, -1)).keys() == {"auroc_low", "auroc_high"}


def test_the_same_rows_give_the_same_numbers_in_any_order():
    logit, preference, group = sample(50, 4, 1.0, seed=0)
    order = np.random.default_rng(0).permutation(200)
    one, other = (
        ranking_intervals(logit, preference, group),
        ranking_intervals(logit[order], preference[order], group[order]),
    )
    assert one == pytest.approx(other)


def test_a_level_of_its_own():
    draw = sample(400, 1, 0.0, seed=0)
    half, most = (ranking_intervals(*draw, level=level) for level in (0.5, 0.95))
    assert most["auroc_low"] < half["auroc_low"] < half["auroc_high"] < most["auroc_high"]


@pytest.mark.parametrize(
    ("logit", "preference", "groups"),
    [
        ([1.0, 2.0, np.nan], [0, 1, 1], [0, 1, 2]),
        ([1.0, 2.0, 3.0], [1, 1, 1], [0, 1, 2]),
        ([1.0, 2.0, 3.0], [0, 1, 1], [0, 0, 0]),
        ([], [], []),
    ],
)
def test_what_has_no_interval_is_nan(logit, preference, groups):
    found = ranking_intervals(np.array(logit), np.array(preference), np.array(groups, int))
    assert found.keys() == {"auroc_low", "auroc_high"} and np.isnan(list(found.values())).all()
