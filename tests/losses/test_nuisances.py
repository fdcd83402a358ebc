"""What is estimated from the log alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from irm_fast.losses.nuisances import class_prior, imputed_preference, popularity_propensity


def draw(n: int, prior_shift: float, propensity: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A score, whether rows are preferred, and whether they acted."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n) * 4 + prior_shift
    liked = rng.random(n) < expit(score)
    return score, liked, (liked & (rng.random(n) < propensity)).astype(int)


@pytest.mark.parametrize("shift", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("propensity", [0.2, 0.7])
def test_class_prior_where_propensities_are_constant(shift: float, propensity: float) -> None:
    score, liked, acted = draw(20_000, shift, propensity)
    assert class_prior(score, acted) == pytest.approx(liked.mean(), abs=0.04)
    assert abs(acted.mean() - liked.mean()) > 0.05  # which the rate of action alone would not have told


def test_class_prior_depends_on_the_order_of_scores_alone_and_handles_ties() -> None:
    score, _, acted = draw(5000, 0.0, 0.5)
    assert class_prior(np.exp(score / 9), acted) == class_prior(score, acted)
    assert class_prior(np.zeros(5000), acted) == pytest.approx(1.0)  # a score that says nothing: all may be preferred
    shuffled = np.random.default_rng(1).permutation(5000)
    rough = np.round(score)
    assert class_prior(rough[shuffled], acted[shuffled]) == class_prior(rough, acted)


def test_class_prior_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="0 of 4 rows acted"):
        class_prior(np.arange(4.0), np.zeros(4))
    for bad in ({"delta": 0.0}, {"delta": 1.0}, {"margin": -0.1}):
        with pytest.raises(ValueError, match="delta and margin: got"):
            class_prior(np.arange(4), np.array([0, 1, 0, 1]), **bad)
    with pytest.raises(ValueError, match="4 of 4 rows acted"):
        class_prior(np.arange(4.0), np.ones(4))
    with pytest.raises(ValueError, match=r"\(4,\) and \(3,\)"):
        class_prior(np.arange(4.0), np.ones(3))


def test_popularity_is_the_square_root_of_relative_rates() -> None:
    item = np.repeat([0, 1, 3], 10_000)
    acted = np.concatenate([np.arange(10_000) < share * 10_000 for share in (0.4, 0.1, 0.0)]).astype(int)
    m = popularity_propensity(acted, item)
    assert m[0] == 1 and m[10_000] == pytest.approx(0.5, abs=1e-3) and 0 < m[-1] < 0.01
    assert popularity_propensity(acted, item, power=1)[10_000] == pytest.approx(0.25, abs=1e-3)
    assert (popularity_propensity(np.zeros(5), np.arange(5)) == 1).all()


def test_popularity_refuses_what_are_no_items() -> None:
    for item, error, text in (
        (np.zeros(3, int), ValueError, r"\(4,\) and \(3,\)"),
        (np.array([0, 1, -1, 0]), ValueError, "got -1; expected integers from 0"),
        (np.zeros(4), TypeError, "got float64; expected integers"),
    ):
        with pytest.raises(error, match=text):
            popularity_propensity(np.ones(4), item)


def test_imputed_preferences_are_probabilities() -> None:
    assert imputed_preference(np.array([0.1, 0.6]), np.array([0.5, 0.5])).tolist() == [0.2, 1.0]
