"""What the estimator recovers from logs whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from irm_fast.embeddings.estimator import EmbeddingRewardModel
from tests.embeddings.embedding_cases import SMALL_NETWORK, Case, make, model, sigmoid

UNKNOWN = np.full((8000, 1), -1)


@pytest.fixture(scope="module")
def case() -> Case:
    return make()


def mean_error(fitted: EmbeddingRewardModel, case: Case) -> float:
    return float(np.abs(fitted.predict_proba(case.x)[:, 1] - case.g).mean())


def correlations(fitted: EmbeddingRewardModel, case: Case, **features: Any) -> np.ndarray:
    m = fitted.predict_propensity(case.x, **features)
    return np.array([np.corrcoef(m[:, k], case.m[:, k])[0, 1] for k in range(m.shape[1])])


def assert_calibrated(predicted: np.ndarray, truth: np.ndarray, tolerance: float) -> None:
    """Mean prediction and mean truth agree in every fifth of the predictions."""
    for rows in np.array_split(np.argsort(predicted), 5):
        assert predicted[rows].mean() == pytest.approx(truth[rows].mean(), abs=tolerance)


def test_two_signals_give_propensities_and_reward(case: Case) -> None:
    fitted = model().fit(case.x, case.feedback)
    assert fitted.propensity_designs_ == ("hidden", "hidden")
    assert (correlations(fitted, case) > 0.95).all()
    for k, m in enumerate(fitted.predict_propensity(case.x).T):
        assert_calibrated(m, case.m[:, k], 0.05)
    assert_calibrated(fitted.predict_proba(case.x)[:, 1], case.g, 0.08)
    assert fitted.predict_proba(case.x)[:, 1].mean() == pytest.approx(case.g.mean(), abs=0.03)

    known = model(propensity_design="known").fit(case.x, case.feedback, propensity=case.m)
    naive = model().fit(case.x, UNKNOWN, preference=case.feedback.max(axis=1))
    scores = [one.score(case.x, case.preferred) for one in (naive, fitted, known)]
    ceiling = roc_auc_score(case.preferred, case.g)
    assert scores[1] > scores[0] + 0.015 and scores[1] > scores[2] - 0.003
    assert abs(scores[2] - ceiling) < 0.003
    assert mean_error(naive, case) > 0.15 and mean_error(known, case) < 0.035
    assert np.isnan(known.predict_propensity(case.x)).all()


def test_joint_likelihood(case: Case) -> None:
    fitted = model(estimator="joint", propensity_design="hidden").fit(case.x, case.feedback)
    assert (correlations(fitted, case) > 0.95).all()
    assert mean_error(fitted, case) < 0.05
    constant = model(estimator="joint").fit(case.x, case.feedback)
    assert constant.propensity_designs_ == ("constant", "constant")
    assert fitted.score(case.x, case.preferred) > constant.score(case.x, case.preferred) + 0.01


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_loss_of_joint_designs_is_that_of_new_rows(seed: int) -> None:
    """One signal at a constant propensity: a free one explains its own rows better, and new ones worse by .003.

    With propensities that had seen the held-out rows, its held-out loss was lower by .007.
    """
    log = make(2000 + 20_000, 32, seed=seed, polarity=(1,), slopes=(0,))
    lead = []
    for design in ("constant", "hidden"):
        fitted = model(propensity_design=design, estimator="joint").fit(log.x[:2000], log.feedback[:2000])
        lead.append((fitted.held_out_nll_, -fitted.score(log.x[2000:], log.feedback[2000:])))
    held_out, new = np.subtract(lead[1], lead[0])
    assert held_out > 0 and new > 0 and held_out == pytest.approx(new, abs=0.007)
    assert lead[0][0] == pytest.approx(lead[0][1], abs=0.02)  # 2,000 rows: the standard error of a loss is .01


def test_networks_where_the_reward_is_curved() -> None:
    case = make(3000, 3, curved=True, slopes=(0.5, 0.5), bias=0.5)
    settings = {"n_folds": 2, "learning_rate": 0.01, "max_epochs": 12, "patience": 3}
    fitted = model(hidden_layers="auto", **settings).fit(case.x, case.feedback)
    assert not fitted.is_linear_
    assert fitted.score(case.x, case.preferred) > roc_auc_score(case.preferred, case.g) - 0.03
    assert mean_error(fitted, case) < 0.1
    assert model().fit(case.x, case.feedback).score(case.x, case.preferred) < 0.6


def test_auto_stays_linear_where_the_reward_is() -> None:
    case = make(1500, 4)
    fitted = model(hidden_layers="auto", n_folds=2, max_epochs=3, learning_rate=0.01).fit(case.x, case.feedback)
    assert fitted.is_linear_ and fitted.coef_.shape == (4,)


def test_a_log_in_the_mirror_has_the_reward_in_the_mirror(case: Case) -> None:
    """Signals caused by displeasure are signals caused by pleasure in the opposite."""
    polarity = (1, 1, -1, -1)
    both = make(polarity=polarity, slopes=(1, 1, 1, 1))
    for one, sides in ((case, (1, 1)), (both, polarity)):
        fitted = model(polarity=sides).fit(one.x, one.feedback)
        mirrored = model(polarity=[-side for side in sides]).fit(one.x, one.feedback)
        np.testing.assert_allclose(
            mirrored.decision_function(one.x), -fitted.decision_function(one.x), atol=2e-3, rtol=0
        )
        np.testing.assert_array_equal(mirrored.predict_propensity(one.x), fitted.predict_propensity(one.x))


def test_both_polarities() -> None:
    case = make(polarity=(1, 1, -1, -1), slopes=(1, 1, 1, 1))
    fitted = model(polarity=(1, 1, -1, -1)).fit(case.x, case.feedback)
    assert (correlations(fitted, case) > 0.95).all() and mean_error(fitted, case) < 0.04
    assert fitted.score(case.x, case.preferred) > roc_auc_score(case.preferred, case.g) - 0.003


def test_missing_entries_are_not_silence(case: Case) -> None:
    """Every other entry of the second signal is missing; to take these for silence halves its propensity."""
    gone = np.random.default_rng(5).random(len(case.x)) < 0.5
    missing = case.feedback.copy()
    missing[gone, 1] = -1
    fitted = model().fit(case.x, missing)
    assert fitted.predict_propensity(case.x).mean(axis=0) == pytest.approx(case.m.mean(axis=0), abs=0.04)
    assert mean_error(fitted, case) < 0.05
    silent = model().fit(case.x, missing == 1)
    assert silent.predict_propensity(case.x)[:, 1].mean() < 0.25


def test_misclicks() -> None:
    case = make(misclick_rate=0.1)
    settings = {"estimator": "joint", "propensity_design": "hidden"}
    aware = model(misclick_rate=0.1, **settings).fit(case.x, case.feedback)
    unaware = model(**settings).fit(case.x, case.feedback)
    assert mean_error(aware, case) < 0.05 < mean_error(unaware, case)


def test_preference_labels_alone(case: Case) -> None:
    for nothing in (UNKNOWN, np.empty((8000, 0))):
        fitted = model().fit(case.x, nothing, preference=case.preferred)
        assert mean_error(fitted, case) < 0.03
    assert fitted.score(case.x, case.preferred) == pytest.approx(roc_auc_score(case.preferred, case.g), abs=0.003)


def test_labels_prove_what_a_second_signal_would(case: Case) -> None:
    labels = np.where(np.random.default_rng(3).random(8000) < 0.2, case.preferred, -1)
    fitted = model().fit(case.x, case.feedback[:, 0], preference=labels)
    assert fitted.propensity_designs_ == ("hidden",)
    assert correlations(fitted, case).min() > 0.9 and mean_error(fitted, case) < 0.05


def test_designs_mixed_by_signal(case: Case) -> None:
    fitted = model(propensity_design=("known", "hidden")).fit(case.x, case.feedback, propensity=case.m)
    m = fitted.predict_propensity(case.x)
    assert np.isnan(m[:, 0]).all() and np.corrcoef(m[:, 1], case.m[:, 1])[0, 1] > 0.95
    assert mean_error(fitted, case) < 0.05


def test_auto_takes_a_constant_where_the_propensity_is_one() -> None:
    case = make(slopes=(0, 1))
    fitted = model().fit(case.x, case.feedback)
    assert fitted.propensity_designs_ == ("constant", "hidden")
    m = fitted.predict_propensity(case.x)[:, 0]
    assert np.ptp(m) == 0 and m[0] == pytest.approx(sigmoid(np.array(-0.5)), abs=0.02)
    assert mean_error(fitted, case) < 0.05


def test_propensities_that_features_explain() -> None:
    features = np.random.default_rng(9).normal(3, 2, size=(8000, 2))
    case = make(features=(features - 3) / 2)
    fitted = model(propensity_design="features").fit(case.x, case.feedback, propensity_features=features)
    assert fitted.propensity_designs_ == ("features", "features")
    assert (correlations(fitted, case, propensity_features=features) > 0.98).all()
    both = model(propensity_design="hidden").fit(case.x, case.feedback, propensity_features=features)
    assert (correlations(both, case, propensity_features=features) > 0.9).all()
    joint = model(propensity_design="features", estimator="joint").fit(
        case.x, case.feedback, propensity_features=features
    )
    assert (correlations(joint, case, propensity_features=features) > 0.97).all()
    with pytest.raises(ValueError, match="propensity_features: got them in only one of fit and predict_propensity"):
        fitted.predict_propensity(case.x)


def test_few_coactions_leave_a_constant(case: Case) -> None:
    apart = case.feedback.copy()
    apart[np.flatnonzero(apart.all(axis=1))[9:], 1] = 0
    fitted = model().fit(case.x, apart)
    assert fitted.propensity_designs_ == ("constant", "constant")
    with pytest.raises(ValueError, match=r"needs 10 co-actions .* signal 0 has 9: use 'auto' or 'joint'"):
        model(estimator="two-step").fit(case.x, apart)


def test_two_step_by_networks_recovers_propensities_too() -> None:
    case = make(4000, 4)
    fitted = model(**SMALL_NETWORK, propensity_design="hidden").fit(case.x, case.feedback)
    assert not fitted.is_linear_ and (correlations(fitted, case) > 0.9).all()
