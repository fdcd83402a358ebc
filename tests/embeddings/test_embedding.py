"""EmbeddingRewardModel as a scikit-learn estimator, its checks of what it is given, and its files."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import irm_fast
from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.embeddings import fit, problem
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.observed import observe
from tests.embeddings.embedding_cases import SMALL_NETWORK, Case, make, model

LABELS = "the check labels rows 1 and 2, or with words; feedback is 1 acted, 0 silent, -1 missing"
REFUSED_CHECKS = {
    "check_estimators_dtypes": LABELS,
    "check_sample_weights_pandas_series": LABELS,
    "check_sample_weights_not_an_array": LABELS,
    "check_sample_weights_shape": LABELS,
    "check_sample_weights_not_overwritten": LABELS,
    "check_classifier_data_not_an_array": LABELS,
    "check_classifiers_classes": LABELS,
    "check_fit2d_1feature": LABELS,
    "check_supervised_y_2d": "(N, 1) is one signal of (N, K), not a mistake to warn of",
    "check_sample_weight_equivalence_on_dense_data": "a row repeated can stand in two folds, a row of weight 2 cannot",
}


@parametrize_with_checks(
    [EmbeddingRewardModel((4,), n_folds=2, max_epochs=20, learning_rate=0.1, batch_size=64, device="cpu")],
    expected_failed_checks=lambda _: REFUSED_CHECKS,
    xfail_strict=True,
)
def test_scikit_learn_checks(estimator: Any, check: Callable) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def case() -> Case:
    return make(600, 5)


@pytest.fixture(scope="module")
def fitted(case: Case) -> EmbeddingRewardModel:
    return model().fit(case.x, case.feedback)


# --- manners -------------------------------------------------------------------------------------------------------


def test_the_package_offers_it() -> None:
    assert irm_fast.EmbeddingRewardModel is EmbeddingRewardModel
    with pytest.raises(AttributeError, match="no attribute 'Embedding'"):
        irm_fast.Embedding  # noqa: B018


def test_parameters() -> None:
    one = model(propensity_design="hidden", n_folds=3)
    assert clone(one).get_params() == one.get_params()
    assert one.set_params(n_folds=4).get_params()["n_folds"] == 4
    with pytest.raises(NotFittedError):
        one.predict(np.zeros((2, 3)))


def test_pipeline_and_grid_search(case: Case) -> None:
    pipeline = make_pipeline(StandardScaler(), model()).fit(case.x, case.feedback)
    alone = model().fit(case.x, case.feedback)
    np.testing.assert_allclose(pipeline.decision_function(case.x), alone.decision_function(case.x), atol=0.05)

    log = make(3000, 5)
    search = GridSearchCV(model(n_folds=2), {"propensity_design": ["constant", "hidden"]}, cv=2)
    search.fit(log.x, log.feedback)
    assert search.best_params_ == {"propensity_design": "hidden"}
    constant, hidden = search.cv_results_["mean_test_score"]
    assert hidden > constant + 0.01 > -np.log(4)  # four patterns at random


@pytest.mark.parametrize("settings", [{}, SMALL_NETWORK])
def test_the_same_random_state_gives_the_same_bits(case: Case, settings: dict) -> None:
    def fit(state: Any) -> np.ndarray:
        return model(**settings, random_state=state).fit(case.x, case.feedback).decision_function(case.x)

    first = fit(7)
    torch.manual_seed(11)
    np.testing.assert_array_equal(fit(7), first)
    np.testing.assert_array_equal(fit(np.random.RandomState(7)), first)
    assert (fit(8) != first).any()


@pytest.mark.parametrize("settings", [{}, SMALL_NETWORK])
def test_global_generators_are_left_alone(case: Case, settings: dict) -> None:
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(3), np.random.seed(3)
    model(**settings).fit(case.x, case.feedback)
    assert (torch.rand(1).item(), np.random.rand()) == expected


def test_fit_leaves_its_arguments_alone(case: Case) -> None:
    given = {"sample_weight": np.arange(600.0), "preference": np.full(600, -1), "propensity_features": case.m.copy()}
    kept = {name: value.copy() for name, value in given.items()}
    x, feedback = case.x.astype(np.float64), case.feedback.copy()
    model().fit(x, feedback, **given)
    np.testing.assert_array_equal(x, case.x), np.testing.assert_array_equal(feedback, case.feedback)
    for name, value in kept.items():
        np.testing.assert_array_equal(given[name], value)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.astype(np.float64),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x.tolist(),
        lambda x: pytest.importorskip("pandas").DataFrame(x, columns=[f"e{i}" for i in range(x.shape[1])]),
    ],
    ids=["float64", "columns", "stride", "list", "frame"],
)
def test_embeddings_in_any_form(case: Case, fitted: EmbeddingRewardModel, layout: Callable) -> None:
    x = layout(case.x)
    other = model().fit(x, case.feedback)
    np.testing.assert_allclose(other.decision_function(x), fitted.decision_function(case.x), atol=1e-5)


def test_feedback_in_any_form(case: Case, fitted: EmbeddingRewardModel) -> None:
    frame = pytest.importorskip("pandas").DataFrame(case.feedback, columns=["copy", "share"])
    for feedback in (case.feedback.tolist(), case.feedback.astype(float), case.feedback == 1, frame):
        other = model().fit(case.x, feedback)
        np.testing.assert_array_equal(other.decision_function(case.x), fitted.decision_function(case.x))
    one = [model().fit(case.x, y).decision_function(case.x) for y in (case.feedback[:, 0], case.feedback[:, :1])]
    np.testing.assert_array_equal(*one)


# --- predictions ---------------------------------------------------------------------------------------------------


def test_predictions_agree(case: Case, fitted: EmbeddingRewardModel) -> None:
    logit, proba = fitted.decision_function(case.x), fitted.predict_proba(case.x)
    assert logit.shape == (600,) and proba.shape == (600, 2)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-15)
    np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-logit.astype(float))), rtol=1e-12)
    assert (np.diff(proba[np.argsort(logit), 1]) >= 0).all()
    np.testing.assert_array_equal(fitted.predict(case.x), (logit > 0).astype(int))
    assert 0 < fitted.predict(case.x).mean() < 1
    m = fitted.predict_propensity(case.x)
    assert m.shape == (600, 2) and (m > 0).all() and (m < 1).all()
    far = model().fit(case.x, case.feedback).predict_proba(case.x * 1e4)
    assert np.isfinite(far).all() and far.min() >= 0


def test_coefficients_are_of_the_embeddings_as_given(case: Case) -> None:
    x = case.x * [1, 10, 100, 0.1, 1] + [0, 3, 0, 2, 50]
    one = model().fit(x, case.feedback)
    assert one.coef_.shape == (5,) and isinstance(one.intercept_, float)
    np.testing.assert_allclose(x @ one.coef_.astype(float) + one.intercept_, one.decision_function(x), atol=1e-4)


def test_a_refit_forgets_the_coefficients(case: Case) -> None:
    one = model().fit(case.x, case.feedback)
    one.set_params(**SMALL_NETWORK).fit(case.x, case.feedback)
    assert not one.is_linear_
    for name in ("coef_", "intercept_"):
        with pytest.raises(AttributeError, match=name):
            getattr(one, name)


def test_held_out_loss_is_of_rows_not_fitted_to() -> None:
    """Pure noise: a fit to 60 rows of 60 features knows their labels, and no more than chance of rows held out."""
    losses = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        x, labels = random.normal(size=(60, 60)), random.integers(0, 2, 60)
        one = model().fit(x, np.empty((60, 0)), preference=labels)
        losses.append([-np.log(one.predict_proba(x)[np.arange(60), labels]).mean(), one.held_out_nll_])
    own, held_out = np.mean(losses, axis=0)
    assert own < 0.63 < 0.67 < held_out


def test_a_constant_column_has_no_say(case: Case, fitted: EmbeddingRewardModel) -> None:
    wide = np.column_stack([case.x, np.full(600, 1234.567)])
    one = model().fit(wide, case.feedback)
    assert one.coef_[5] == 0
    wide[:, 5] = 0
    np.testing.assert_allclose(one.decision_function(wide), fitted.decision_function(case.x), atol=0.1)
    assert np.isfinite(one.predict_propensity(wide)).all()


# --- weights and groups --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"estimator": "joint", "propensity_design": "hidden"}, SMALL_NETWORK])
def test_rows_of_weight_0_are_as_good_as_absent(case: Case, fitted: EmbeddingRewardModel, settings: dict) -> None:
    kept = np.arange(600) % 3 > 0
    more = {"preference": np.where(case.g > 0.9, case.preferred, -1), "propensity_features": case.m, "users": None}
    more["users"] = [f"user {i // 4}" for i in range(600)]
    labels = more["preference"]
    labels[case.feedback.any(axis=1) & kept] = -1
    labels[np.flatnonzero(~kept & (case.feedback == 1).any(axis=1))] = 0  # contradictory, but without weight

    def part(value: Any) -> Any:
        return [v for v, keep in zip(value, kept, strict=True) if keep] if isinstance(value, list) else value[kept]

    strange = np.where(kept[:, None], case.x, 1000 * case.x)
    weighted = model(**settings).fit(strange, case.feedback, sample_weight=kept, **more)
    absent = model(**settings).fit(part(case.x), part(case.feedback), **{k: part(v) for k, v in more.items()})
    np.testing.assert_array_equal(weighted.decision_function(case.x), absent.decision_function(case.x))
    np.testing.assert_array_equal(
        weighted.predict_propensity(case.x, case.m), absent.predict_propensity(case.x, case.m)
    )
    assert weighted.held_out_nll_ == absent.held_out_nll_
    assert str(weighted.diagnosis_) == str(absent.diagnosis_)


def test_weights_shift_the_fit(case: Case) -> None:
    """Where preferred rows weigh four times as much, the mean preference is that of a log with four times as many."""
    weight = np.where(case.preferred, 4.0, 1.0)
    labels = {"preference": case.preferred, "y": np.empty((600, 0))}
    mean = model().fit(case.x, **labels, sample_weight=weight).predict_proba(case.x)[:, 1]
    assert np.average(mean, weights=weight) == pytest.approx(np.average(case.preferred, weights=weight), abs=0.02)
    heavy = model().fit(case.x, case.feedback, sample_weight=np.where(case.feedback[:, 0] == 1, 3.0, 1.0))
    plain = model().fit(case.x, case.feedback)
    assert (heavy.predict_propensity(case.x)[:, 0] > plain.predict_propensity(case.x)[:, 0] + 0.1).mean() > 0.9


def test_rows_of_a_group_are_held_out_together(case: Case) -> None:
    """Every row stands in the log five times, with one label of pure chance: only groups keep it from being guessed."""
    random = np.random.default_rng(0)
    x, labels = random.normal(size=(40, 30)), random.integers(0, 2, 40)
    rows = np.repeat(np.arange(40), 5)
    known = {"y": np.empty((200, 0)), "preference": labels[rows]}
    alone, together, by_user = (
        model().fit(x[rows], **known, **more).held_out_nll_ for more in ({}, {"groups": rows}, {"users": rows.tolist()})
    )
    assert alone < 0.5 < np.log(2) < min(together, by_user)


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_folds": 1}, "n_folds: got 1; expected a whole number from 2"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"max_epochs": 2.5}, "max_epochs: got 2.5"),
        ({"learning_rate": 0}, "learning_rate: got 0; expected a number above 0"),
        ({"learning_rate": 1e30}, "learning_rate: got 1e.30; expected a number above 0, from 1e-12 to 100"),
        ({"learning_rate": "x"}, "learning_rate: got 'x'"),
        ({"learning_rate": (0.1, 0.2)}, "learning_rate: got .0.1, 0.2."),
        ({"weight_decay": math.inf}, "weight_decay: got inf; expected a number from 0 to 1000"),
        ({"weight_decay": math.nan}, "weight_decay: got nan"),
        ({"weight_decay": 10**400}, "weight_decay: got 1000"),
        ({"propensity_sd": math.inf}, "propensity_sd: got inf"),
        ({"propensity_sd": 1e-300}, "propensity_sd: got 1e-300"),
        ({"propensity_sd": -1}, "propensity_sd: got -1"),
        ({"estimator": "two step"}, "estimator: got 'two step'; expected auto, two-step or joint"),
        ({"hidden_layers": "big"}, "hidden_layers: got 'big'"),
        (
            {"propensity_design": "free"},
            "propensity_design: got 'free'; expected one of auto, constant, hidden, features, known",
        ),
        ({"propensity_design": ("hidden",)}, "propensity_design: got .*or 2 of them"),
        ({"propensity_design": "known"}, "propensity: none given; the 'known' design"),
        ({"propensity_design": "features"}, "propensity_features: none given"),
        ({"polarity": (1, 0)}, "polarity: got .1, 0.; expected 1 or -1"),
        ({"polarity": (1, 1, 1)}, "polarity: got .*; expected one number, or 2"),
        ({"misclick_rate": 1.0}, "misclick_rate: got"),
        ({"misclick_rate": 1 - 1e-9}, "misclick_rate: got .* float32 takes it for 1"),
        ({"misclick_rate": 10**400}, "misclick_rate: got an integer beyond 1e308"),
        ({"polarity": (1, -1)}, "row .* has evidence for both sides"),
    ],
)
def test_settings_that_are_refused(case: Case, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**settings).fit(case.x, case.feedback)


def test_a_fit_with_next_to_no_weight_is_no_model(case: Case) -> None:
    """Its reward is the prior's, the same for all rows."""
    with (
        pytest.warns(UserWarning, match="the weights sum to"),
        pytest.raises(ValueError, match="X: the reward is the same, 0, for all of 600 rows"),
    ):
        model().fit(case.x, case.feedback, sample_weight=np.full(600, 1e-45))


def changed(value: np.ndarray, number: float) -> np.ndarray:
    value = value.astype(float)
    value[3] = number
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"X": changed(c.x, np.nan)}, "NaN"),
        (lambda c: {"X": changed(c.x, np.inf)}, "infinity"),
        (lambda c: {"y": c.feedback[1:]}, r"feedback: got shape \(599, 2\); expected \(600, 2\)"),
        (lambda c: {"y": changed(c.feedback, 2)}, "feedback: Unknown label type: got .2"),
        (lambda c: {"y": c.feedback * 0}, "only one class; expected actions"),
        (lambda c: {"y": c.feedback[:, :, None]}, r"feedback: got shape \(600, 2, 1\)"),
        (lambda c: {"propensity": changed(c.m, 0)}, r"propensity: got values outside \(0, 1\]"),
        (lambda c: {"propensity": c.m[:, :1]}, "propensity: got shape"),
        (lambda c: {"propensity_features": changed(c.m, np.nan)}, "propensity_features: got shape .* finite"),
        (lambda c: {"preference": c.preferred[1:]}, "preference: got shape"),
        (lambda c: {"preference": c.preferred * 0}, "evidence for both sides"),
        (lambda c: {"sample_weight": np.ones(599)}, "sample_weight: got shape"),
        (lambda c: {"sample_weight": changed(np.ones(600), -1)}, "sample_weight: got negative"),
        (lambda c: {"sample_weight": np.zeros(600)}, "sample_weight"),
        (lambda c: {"sample_weight": ~c.feedback.any(axis=1)}, "only one class; expected actions"),
        (lambda c: {"sample_weight": [10**400] * 600}, "sample_weight: got an integer beyond 1e308"),
        (lambda c: {"sample_weight": changed(np.ones(600), 3e38)}, r"sample_weight: got 3e\+38; expected at most"),
        (lambda c: {"X": changed(c.x, 1e30)}, "X: column 0 has a standard deviation of .* look at its largest values"),
        (lambda c: {"X": np.ones_like(c.x)}, "X: the reward is the same, .* for all of 600 rows"),
        (lambda c: {"X": c.x * 1e-42}, "X: the reward is the same, .* nothing was learned"),
        (lambda c: {"users": ["a"] * 599}, "users: got 599; expected 600"),
        (lambda c: {"groups": ["a"] * 600}, "groups: got 1 group"),
        (lambda c: {"users": ["a"] * 600}, "users: got 1 group .* or no users"),
        (lambda c: {"users": dict.fromkeys(range(600), "a")}, "users: got a dict; expected a sequence of 600 names"),
        (lambda c: {"users": "a" * 600}, "users: got a str; expected a sequence"),
        (lambda c: {"users": (i for i in range(600))}, "users: got a generator; expected a sequence"),
        (lambda c: {"sessions": [[i] for i in range(600)]}, r"sessions: got \[0\] in row 0; expected text"),
        (lambda c: {"users": ["a", " "] * 300}, "users: got ' ' in row 1; expected text that is not empty"),
        (lambda c: {"times": np.full(600, 1.7e12)}, r"times: got 1.7e\+12; .* divide milliseconds by 1000"),
        (lambda c: {"times": np.full(600, np.inf)}, "times: got inf"),
        (lambda c: {"times": ["2024-01-01"] * 600}, "times: got <U10; .* pandas.to_datetime"),
    ],
)
def test_data_that_are_refused(case: Case, change: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().fit(**{"X": case.x, "y": case.feedback, **change(case)})


def test_nan_stands_where_nothing_was_recorded(case: Case) -> None:
    feedback, m = case.feedback.copy(), case.m.copy()
    feedback[:100, 0], m[:100, 0] = -1, np.nan
    assert np.isfinite(model(propensity_design="known").fit(case.x, feedback, propensity=m).coef_).all()
    m[200, 1] = np.nan
    with pytest.raises(ValueError, match="propensity: NaN where the feedback is recorded"):
        model(propensity_design="known").fit(case.x, feedback, propensity=m)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["linear", "network", "features", "context", "labels"])
def saved(request: pytest.FixtureRequest, case: Case) -> tuple[EmbeddingRewardModel, dict]:
    """A model of every form that is kept, and what its propensities read beside 600 embeddings."""
    if request.param == "linear":
        return model(propensity_design=("hidden", "constant"), polarity=(1, 1)).fit(case.x, case.feedback), {}
    if request.param == "network":
        return model(**SMALL_NETWORK).fit(case.x, case.feedback), {}
    if request.param == "features":
        features = {"propensity_features": case.m + 1}
        return model(propensity_design=("hidden", "features")).fit(case.x, case.feedback, **features), features
    if request.param == "labels":
        return model().fit(case.x, np.empty((600, 0)), preference=case.preferred), {}
    row = np.arange(4000)
    context = {"users": row // 5 % 400, "sessions": row // 5, "times": row}
    moved = np.random.default_rng(2).normal(size=400)[context["users"]] - 2 * (row > 2000) - row % 5 / 2
    active = make(4000, 5, activity=1.5 + moved)
    one = model(random_state=np.random.RandomState(0)).fit(active.x, active.feedback, **context)
    return one, {name: values[:600] for name, values in context.items()}


def assert_equal(one: EmbeddingRewardModel, other: EmbeddingRewardModel, x: np.ndarray, features: dict) -> None:
    np.testing.assert_array_equal(one.decision_function(x), other.decision_function(x))
    np.testing.assert_array_equal(one.predict_propensity(x, **features), other.predict_propensity(x, **features))
    for name in ("classes_", "n_features_in_", "propensity_designs_", "is_linear_", "held_out_nll_", "context_"):
        np.testing.assert_equal(getattr(one, name), getattr(other, name))
    assert str(one.diagnosis_) == str(other.diagnosis_) and one.diagnosis_.to_dict() == other.diagnosis_.to_dict()
    assert hasattr(one, "coef_") == hasattr(other, "coef_") == one.is_linear_
    if one.is_linear_:
        np.testing.assert_array_equal(one.coef_, other.coef_)
        assert one.intercept_ == other.intercept_


def test_saved_and_read(saved: tuple, case: Case, tmp_path: Path) -> None:
    one, features = saved
    one.save(tmp_path / "deep" / "folder")
    other = EmbeddingRewardModel.load(tmp_path / "deep" / "folder")
    assert_equal(one, other, case.x, features)
    expected = {**one.get_params(), "random_state": 0 if one.random_state == 0 else None}
    assert other.get_params() == expected
    again = clone(other).fit(case.x, case.feedback, propensity_features=case.m)
    assert again.decision_function(case.x).shape == (600,)
    other.save(tmp_path)
    assert_equal(one, EmbeddingRewardModel.load(tmp_path), case.x, features)


def test_pickled(saved: tuple, case: Case) -> None:
    one, features = saved
    assert_equal(one, pickle.loads(pickle.dumps(one)), case.x, features)
    assert len(pickle.dumps(one)) < 60_000  # the rows are not kept


def test_the_context_is_kept(saved: tuple) -> None:
    with_context = isinstance(saved[0].random_state, np.random.RandomState)
    assert saved[0].context_ == (("time", "place", "user") if with_context else ())


def spoil_json(folder: Path, change: Callable[[dict], Any]) -> None:
    record = json.loads((folder / "embedding_model.json").read_text())
    change(record)
    (folder / "embedding_model.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "embedding_model.json").unlink(), "not found; expected a folder that"),
        (lambda f: (f / "embedding_model.json").write_text("{"), "damaged, not readable as JSON"),
        (lambda f: (f / "embedding_model.json").write_text("[1]"), "damaged"),
        (lambda f: spoil_json(f, lambda r: r.update(format=2)), "format: got 2; expected 1; upgrade irm-fast"),
        (lambda f: spoil_json(f, lambda r: r.pop("fitted")), "damaged"),
        (lambda f: spoil_json(f, lambda r: r["settings"].update(colour=1)), "damaged"),
        (lambda f: spoil_json(f, lambda r: r["networks"].update(reward=[[5, 8, 1]])), "damaged"),
        (lambda f: spoil_json(f, lambda r: r.update(fitted=[])), "damaged"),
        (lambda f: spoil_json(f, lambda r: r.pop("diagnosis")), "damaged"),
        (lambda f: (f / "embedding_model.safetensors").unlink(), "damaged"),
        (lambda f: (f / "embedding_model.safetensors").write_bytes(b"12345678"), "damaged"),
    ],
)
def test_damaged_files(fitted: EmbeddingRewardModel, damage: Callable, message: str, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        EmbeddingRewardModel.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_model_saved_before_the_design_had_its_name(fitted: EmbeddingRewardModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    (tmp_path / MANIFEST).unlink()  # which earlier versions did not write
    spoil_json(tmp_path, lambda r: r["settings"].update(propensity=r["settings"].pop("propensity_design")))
    assert EmbeddingRewardModel.load(tmp_path).propensity_design == fitted.propensity_design


# --- a fit is all or nothing ---------------------------------------------------------------------------------------

STEPS = {
    "fit_propensities": problem,
    "fit_reward": problem,
    "calibrated": problem,
    "propensity_shift": fit,
    "add_networks": fit,
    "fit_context": fit,
    "covariance_factor": fit,
    "diagnose": fit,
}
# Settings under which all steps are taken, together, of rows with times: networks, an open level.
EVERY_STEP: list[dict[str, Any]] = [SMALL_NETWORK, {"estimator": "joint"}]


def times_of(case: Case) -> np.ndarray:
    """Times of the rows (N,), without which no context is fitted."""
    return np.arange(len(case.x)) * 60.0


def interrupted(monkeypatch: pytest.MonkeyPatch, step: str) -> list[str]:
    """Ctrl-C in a step of the fit; the steps that were reached."""
    reached: list[str] = []

    def stop(*_: Any, **__: Any) -> None:
        reached.append(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(STEPS[step], step, stop)
    return reached


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_fit_is_not_fitted(
    case: Case, step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reached = interrupted(monkeypatch, step)
    for settings in EVERY_STEP:
        new = model(**settings)
        try:
            new.fit(case.x, case.feedback, times=times_of(case))
        except KeyboardInterrupt:
            for use in (new.predict, new.decision_function, new.predict_propensity):
                with pytest.raises(NotFittedError):
                    use(case.x)
            with pytest.raises(NotFittedError):
                new.save(tmp_path)
            assert not [name for name in vars(new) if name.endswith("_")]
    assert reached


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_refit_leaves_the_earlier_fit(
    case: Case, step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    linear = step in ("propensity_shift", "covariance_factor")
    settings = {"estimator": "joint"} if linear else SMALL_NETWORK
    old = model(**settings).fit(case.x, case.feedback, times=times_of(case))
    before, attributes = old.decision_function(case.x), dict(vars(old))
    reached = interrupted(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        old.fit(case.x[:, :3], case.feedback, times=times_of(case))
    assert reached and vars(old).keys() == attributes.keys()
    assert all(vars(old)[name] is value for name, value in attributes.items())
    np.testing.assert_array_equal(old.decision_function(case.x), before)
    old.save(tmp_path)
    np.testing.assert_array_equal(EmbeddingRewardModel.load(tmp_path).decision_function(case.x), before)


def test_a_refused_refit_leaves_the_earlier_fit(case: Case) -> None:
    old = model().fit(case.x, case.feedback)
    before = old.decision_function(case.x)
    with pytest.raises(ValueError, match="feedback"):
        old.fit(case.x[:, :3], np.full_like(case.feedback, 7))
    np.testing.assert_array_equal(old.decision_function(case.x), before)
    network = old.set_params(**SMALL_NETWORK).fit(case.x, case.feedback)
    assert not network.is_linear_ and not hasattr(network, "coef_")


@pytest.mark.parametrize("largest", [2, 3, 40])
def test_rows_go_to_the_emptiest_fold_groups_before_single_rows(largest: int) -> None:
    rng = np.random.default_rng(largest)
    sizes = np.where(rng.random(60) < 0.5, 1, rng.integers(1, largest, size=60))
    groups = rng.permutation(np.repeat(np.arange(60), sizes))
    rows = observe(
        len(groups), np.ones((len(groups), 1)), design="constant", polarity=1, misclick_rate=0, groups=groups
    )
    found, number = rows.folds(3, np.random.RandomState(0)), rows.group_numbers()
    sizes = np.bincount(number)
    order = np.random.RandomState(0).permutation(60)
    load, expected = [0, 0, 0], {}
    for group in sorted(order, key=lambda each: -sizes[each]):
        expected[group] = int(np.argmin(load))
        load[expected[group]] += sizes[group]
    assert found.tolist() == [expected[group] for group in number]
