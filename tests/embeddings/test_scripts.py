"""Users who act on everything are left out of a fit; others are not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import expit

from examples.identification.real_logs import RealLog, draw
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from tests.embeddings.embedding_cases import model

NAME = "users who act on everything"


def fitted(log: RealLog, **more: object) -> EmbeddingRewardModel:
    return model(n_folds=3, **log.settings).fit(log.X, log.feedback, **{**log.arguments, **more})


def test_scripts_are_left_out_and_named() -> None:
    """The mean preference was .56 for .50, though their users were known."""
    log = draw(1, rows=6000, bots=0.05, rows_a_user=40)
    bots = np.isnan(log.propensity[:, 0])
    with pytest.warns(UserWarning, match=f"so that their {bots.sum()} rows are left out"):
        found = fitted(log)
    without = fitted(log.without(bots))
    assert len(found.held_out_decision_) == (~bots).sum()
    np.testing.assert_array_equal(found.decision_function(log.test_X), without.decision_function(log.test_X))
    assert expit(found.decision_function(log.test_X)).mean() == pytest.approx(0.5, abs=0.05)
    test = next(test for test in found.diagnosis_.tests if test.name == NAME)
    users = {log.arguments["users"][row] for row in np.flatnonzero(bots)}
    assert test.result == "passed" and test.text.startswith(f"left out: {len(users)} of 150 users")
    assert {entry["user"] for entry in test.details} == users


def test_rows_of_weight_0_make_no_script() -> None:
    log = draw(1, rows=4000, bots=0.05, rows_a_user=40)
    bots = np.isnan(log.propensity[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fitted(log, sample_weight=1.0 - bots)
    assert len(found.held_out_decision_) == (~bots).sum()


@pytest.mark.parametrize("kind", [{"activity": 2.0, "rows_a_user": 40}, {"taste": 2.0, "rows_a_user": 10}])
def test_active_users_stay(kind: dict[str, float]) -> None:
    log = draw(2, rows=4000, **kind)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fitted(log)
    assert len(found.held_out_decision_) == 4000


def test_activity_that_misclicks_hide_is_said() -> None:
    log = draw(0, rows=4000, activity=1.5, rows_a_user=10, misclick=0.3)
    with pytest.warns(UserWarning, match="too few to tell users who act more than others from misclicks") as said:
        found = fitted(log)
    assert any(warning.filename == __file__ for warning in said)
    low, high = found.diagnosis_.sensitivity.mean_g_range
    assert low < 0.5 < high
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(draw(0, rows=4000, rows_a_user=10, misclick=0.05))
