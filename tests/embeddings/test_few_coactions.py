"""Several signals that hardly act together show their propensities no better than one does, and the fit says so."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from irm_fast.embeddings.two_step import ENOUGH
from tests.embeddings.embedding_cases import Case, make, model


@pytest.fixture(scope="module")
def case() -> Case:
    return make(600, 4)


def _apart(case: Case, together: int) -> np.ndarray:
    """The feedback, with so many rows in which both signals act."""
    feedback = case.feedback[:, :2].copy()
    feedback[np.flatnonzero((feedback == 1).all(axis=1))[together:], 1] = 0
    return feedback


def test_what_is_assumed_is_said_with_the_remedy(case: Case) -> None:
    feedback = _apart(case, ENOUGH - 1)
    with pytest.warns(
        UserWarning, match=r"fewer than 10 co-actions \(signal 1 9, signal 2 9\): .*same for every"
    ) as told:
        found = model(n_folds=2).fit(case.x, feedback)
    assert found.propensity_designs_ == ("constant",) * 2 and [one.filename for one in told] == [__file__]
    with pytest.warns(UserWarning, match=r"features alone.*label --next 100.*propensity_design='features' says"):
        found = model(n_folds=2).fit(case.x, feedback, propensity_features=case.x[:, :1])
    assert found.propensity_designs_ == ("features",) * 2
    assert found.predict_propensity(case.x, case.x[:, :1]).std(axis=0).min() > 0.01


def test_signals_of_two_sides_never_act_together() -> None:
    case = make(600, 4, polarity=(1, -1))
    said = r"signal 1 and signal 2: one signal of each polarity: .*same for every.* or log a second signal of either;"
    with pytest.warns(UserWarning, match=said):
        model(n_folds=2, polarity=(1, -1)).fit(case.x, case.feedback)


def test_what_the_log_shows_or_the_user_declares_is_no_assumption_of_ours(case: Case) -> None:
    seen = {"propensity_features": case.x[:, :1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = model(n_folds=2).fit(case.x, _apart(case, 2 * ENOUGH), **seen)
        for declared in ({"propensity_design": "features"}, {"estimator": "joint"}):
            assert set(model(n_folds=2, **declared).fit(case.x, _apart(case, 0), **seen).propensity_designs_) == {
                "features"
            }
    assert set(shown.propensity_designs_) <= {"hidden", "constant"}


def test_labels_make_up_for_co_actions(case: Case) -> None:
    labels = np.where(np.arange(len(case.x)) < 200, case.preferred, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model(n_folds=2).fit(case.x, _apart(case, 0), preference=labels)
    assert found.score(case.x, case.preferred) > 0.6
