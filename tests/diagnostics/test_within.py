"""Rankings within groups, and by the group alone, against the plain definition."""

import itertools

import numpy as np
import pytest

from irm_fast.diagnostics.within import alone, alone_metrics, within_auroc


def sample(rows, groups, seed):
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=rows) * 2), rng.integers(0, 2, rows), rng.integers(-1, groups, rows)


@pytest.mark.parametrize("groups", [1, 5, 40])
def test_within_groups_by_the_definition(groups):
    logit, preference, group = sample(120, groups, seed=groups)
    pairs = [
        np.sign(logit[i] - logit[j]) / 2 + 0.5
        for i, j in itertools.product(range(120), repeat=2)
        if group[i] == group[j] >= 0 and preference[i] > preference[j]
    ]
    assert within_auroc(logit, preference, group) == pytest.approx(np.mean(pairs))


def test_within_groups_undefined():
    assert np.isnan(within_auroc(np.zeros(4), np.array([1, 0, 1, 1]), np.array([0, 1, 2, -1])))
    assert np.isnan(within_auroc(np.array([np.nan, 1.0]), np.array([1, 0]), np.array([0, 0])))
    assert np.isnan(within_auroc(np.zeros(0), np.zeros(0, int), np.zeros(0, int)))
    assert np.isnan(within_auroc(np.zeros(2), np.array([1, 0]), np.array([-1, -1])))


def test_the_others_of_a_group():
    preference, groups = np.array([1, 0, 1, 1, 0, 1]), np.array([0, 0, 0, 1, -1, -1])
    assert alone(preference, groups) == pytest.approx([0.5, 1, 0.5, 4 / 6, 4 / 6, 4 / 6])
    assert alone(preference, np.full(6, -1)) == pytest.approx(np.full(6, 4 / 6))


@pytest.mark.parametrize(("groups", "size"), [(4, 50), (200, 3)])
def test_groups_that_tell_nothing_are_at_chance(groups, size):
    """Without the correction, four groups of rows would be at .375."""
    found = [
        alone_metrics("user", np.random.default_rng(seed).integers(0, 2, groups * size), np.repeat(range(groups), size))
        for seed in range(100)
    ]
    values = [metrics["auroc_user_alone"] for metrics in found]
    assert np.mean(values) == pytest.approx(0.5, abs=4 * np.std(values) / 10)


def test_groups_that_tell_all():
    preference, groups = np.repeat([0, 1], 50), np.repeat(range(10), 10)
    assert alone_metrics("model", preference, groups) == {"auroc_model_alone": 1}
    assert np.isnan(alone_metrics("model", np.ones(4, int), np.zeros(4, int))["auroc_model_alone"])


def test_pairs_of_one_group_count_half():
    preference, pair = np.tile([1, 0], 4), np.repeat(range(4), 2)
    one, two = np.repeat([0, 1], 4), np.tile([0, 1], 4)
    assert "pair_accuracy_user_alone" not in alone_metrics("user", preference, one, pair)
    assert alone_metrics("model", preference, two, pair)["pair_accuracy_model_alone"] == 1
    mixed = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    assert alone_metrics("model", preference, mixed, pair)["pair_accuracy_model_alone"] == 0.75
