"""EmbeddingRewardModel in the company of scikit-learn, pandas and torch: scores, searches, names, what is missing."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import irm_fast
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.given import is_unknown
from tests.embeddings.embedding_cases import Case, make, model


@pytest.fixture(scope="module")
def case() -> Case:
    return make(600, 5)


@pytest.fixture(scope="module")
def fitted(case: Case) -> EmbeddingRewardModel:
    return model(n_folds=2).fit(case.x, case.feedback)


def likelihood(acts: np.ndarray, feedback: np.ndarray, g: np.ndarray, m: np.ndarray) -> np.ndarray:
    """The log-likelihood of each row of two signals of polarity +1, straight from the model."""
    both = [np.where(feedback == 1, m, np.where(feedback == 0, 1 - m, 1)).prod(axis=1), ~acts.any(axis=1)]
    return np.log(g * both[0] + (1 - g) * both[1])


# --- scores --------------------------------------------------------------------------------------------------------


def test_score_of_feedback_is_its_mean_log_likelihood(case: Case, fitted: EmbeddingRewardModel) -> None:
    feedback = case.feedback.copy()
    feedback[::7, 1] = -1
    g, m = fitted.predict_proba(case.x)[:, 1], fitted.predict_propensity(case.x).astype(float)
    rows = likelihood(feedback == 1, feedback, g, m)
    assert fitted.score(case.x, feedback) == pytest.approx(rows.mean(), rel=1e-5)
    weight = np.arange(600.0)
    assert fitted.score(case.x, feedback, weight) == pytest.approx(np.average(rows, weights=weight), rel=1e-5)
    assert abs(rows.mean() - np.average(rows, weights=weight)) > 1e-3
    labelled = case.preferred * 1
    by_label = np.log(np.where(labelled == 1, g, 1 - g)) + np.where(
        labelled == 1, np.log(np.where(feedback == 1, m, np.where(feedback == 0, 1 - m, 1))).sum(axis=1), 0
    )
    assert fitted.score(case.x, feedback, preference=labelled) == pytest.approx(by_label.mean(), rel=1e-5)


def test_score_by_the_shape(case: Case) -> None:
    one = model(n_folds=2).fit(case.x, case.feedback[:, 0])
    g, m = one.predict_proba(case.x)[:, 1], one.predict_propensity(case.x)[:, 0]
    rate = g * m
    expected = np.log(np.where(case.feedback[:, 0] == 1, rate, 1 - rate)).mean()
    assert one.score(case.x, case.feedback[:, :1]) == pytest.approx(expected, rel=1e-5)
    auroc = roc_auc_score(case.preferred, one.decision_function(case.x))
    assert one.score(case.x, case.preferred) == pytest.approx(auroc)
    some = np.where(np.arange(600) % 2, case.preferred, -1).astype(float)
    part = roc_auc_score(case.preferred[1::2], one.decision_function(case.x)[1::2])
    assert one.score(case.x, some) == one.score(case.x, np.where(some < 0, np.nan, some)) == pytest.approx(part)
    weight = np.where(case.g > 0.5, 3.0, 1.0)
    weighted = roc_auc_score(case.preferred, one.decision_function(case.x), sample_weight=weight)
    assert one.score(case.x, case.preferred, weight) == pytest.approx(weighted) != pytest.approx(auroc, abs=1e-3)


def test_score_of_known_propensities_and_features(case: Case) -> None:
    known = model(n_folds=2, propensity_design="known").fit(case.x, case.feedback, propensity=case.m)
    g = known.predict_proba(case.x)[:, 1]
    expected = likelihood(case.feedback == 1, case.feedback, g, case.m).mean()
    assert known.score(case.x, case.feedback, propensity=case.m) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="propensity: none given; the 'known' design reads it"):
        known.score(case.x, case.feedback)
    features = model(n_folds=2).fit(case.x, case.feedback, propensity_features=case.m)
    with pytest.raises(ValueError, match="propensity_features: got them in only one of fit and"):
        features.score(case.x, case.feedback)
    m = features.predict_propensity(case.x, case.m).astype(float)
    expected = likelihood(case.feedback == 1, case.feedback, features.predict_proba(case.x)[:, 1], m).mean()
    assert features.score(case.x, case.feedback, propensity_features=case.m) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("y", "more", "message"),
    [
        (lambda c: c.feedback[:, :1], {}, "feedback: got 1 columns; expected 2, as in fit: signal 1, signal 2"),
        (lambda c: c.feedback[1:], {}, r"feedback: got shape \(599, 2\)"),
        (lambda c: c.feedback, {"preference": np.zeros(600)}, "evidence for both sides"),
        (lambda c: c.feedback, {"users": ["a"]}, "users: got 1; expected 600"),
        (lambda c: c.feedback, {"times": np.zeros(5)}, r"times: got shape \(5,\)"),
        (lambda c: np.full(600, np.nan), {}, "y: every preference is unknown"),
        (lambda c: np.full(600, 2), {}, "y: Unknown label type"),
    ],
)
def test_scores_that_are_refused(
    case: Case, fitted: EmbeddingRewardModel, y: Callable, more: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fitted.score(case.x, y(case), **more)


# --- searches ------------------------------------------------------------------------------------------------------

NO_REWARD = {"hidden_layers": (2,), "max_epochs": 1, "learning_rate": 1e-9}  # as good as no training at all


def test_a_search_over_two_signals_takes_the_likelier(case: Case) -> None:
    grid = [{name: [value] for name, value in NO_REWARD.items()}, {"hidden_layers": [()]}]
    for scoring in (None, irm_fast.implicit_scorer):
        search = GridSearchCV(model(n_folds=2), grid, cv=2, scoring=scoring).fit(case.x, case.feedback)
        found = search.cv_results_["mean_test_score"]
        assert search.best_index_ == 1 and np.isfinite(found).all() and found[1] > found[0] + 0.01
    half = model(n_folds=2).fit(case.x[300:], case.feedback[300:]).score(case.x[:300], case.feedback[:300])
    assert search.cv_results_["split0_test_score"][1] == pytest.approx(half, rel=1e-6)


def test_one_signal_is_scored_by_its_likelihood_not_by_the_naive_objective(case: Case) -> None:
    """The reward that explains the clicks best ranks them best too; the likelihood sees that g m is what acts."""
    copied = case.feedback[:, 0]
    one = model(n_folds=2, propensity_design="constant").fit(case.x, copied)
    got = irm_fast.implicit_scorer(one, case.x, copied)
    assert got == one.score(case.x, copied[:, None]) < 0 < one.score(case.x, copied)
    scores = cross_val_score(model(n_folds=2), case.x, copied, scoring=irm_fast.implicit_scorer, cv=2)
    assert ((-np.log(2) < scores) & (scores < 0)).all()
    # Where the scale is wrong the ranking, and with it the default score, is none the wiser.
    wrong = clone(one).fit(case.x, copied)
    wrong._fitted.reward.bias += 3
    assert wrong.score(case.x, copied) == one.score(case.x, copied)
    assert irm_fast.implicit_scorer(wrong, case.x, copied) < got - 0.1


def test_a_series_of_feedback_as_preference_is_warned_of(case: Case) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(case.feedback, columns=["copy", "share"])
    one = model(n_folds=2).fit(case.x, frame["copy"])
    assert one.signals_ == ("copy",)
    with pytest.warns(UserWarning, match="y: 'copy' is a signal, not the preference.*implicit_scorer"):
        one.score(case.x, frame["copy"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert irm_fast.implicit_scorer(one, case.x, frame["copy"]) == one.score(case.x, frame[["copy"]])
        one.score(case.x, pandas.Series(case.preferred, name="liked"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The users that fits and scores are given, each with the name of the method."""
    found: list[tuple[str, Any]] = []

    def note(name: str) -> None:
        method = getattr(EmbeddingRewardModel, name)

        @functools.wraps(method)  # scikit-learn reads the signature
        def noted(*args: Any, **more: Any) -> Any:
            found.append((name, more.get("users")))
            return method(*args, **more)

        monkeypatch.setattr(EmbeddingRewardModel, name, noted)

    note("fit"), note("score")
    return found


def test_groups_and_users_in_a_search_without_routing(case: Case, seen: list) -> None:
    users = np.repeat(np.arange(100), 6)
    search = GridSearchCV(model(), {"n_folds": [2]}, scoring=irm_fast.implicit_scorer, cv=GroupKFold(2))
    search.fit(case.x, case.feedback, groups=users, users=users, sample_weight=np.ones(600))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    first, second, whole = (set(given) for kind, given in seen if kind == "fit")
    assert not first & second and len(first) == len(second) == 50 and len(whole) == 100
    assert all(given is None for kind, given in seen if kind == "score")
    seen.clear()
    GridSearchCV(model(), {"n_folds": [2]}, cv=GroupKFold(2)).fit(case.x, case.feedback, groups=users)
    assert [given for kind, given in seen if kind == "fit"] == [None] * 3  # groups reach the splitter alone


@pytest.fixture
def routing() -> Iterator[None]:
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("routing")
def test_users_and_features_are_routed(case: Case, seen: list) -> None:
    users = np.repeat(np.arange(100), 6)
    one = model().set_fit_request(users=True, propensity_features=True, groups=True)
    search = GridSearchCV(one, {"n_folds": [2]}, scoring=irm_fast.implicit_scorer, cv=GroupKFold(2))
    search.fit(case.x, case.feedback, groups=users, users=users, propensity_features=case.m)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    fits = [set(given) for kind, given in seen if kind == "fit"]
    scores = [set(given) for kind, given in seen if kind == "score"]
    assert not fits[0] & fits[1] and scores == [fits[1], fits[0]] and len(fits[2]) == 100


@pytest.mark.usefixtures("routing")
def test_known_propensities_are_routed(case: Case) -> None:
    one = model(n_folds=2, propensity_design="known").set_fit_request(propensity=True)
    found = cross_validate(
        one, case.x, case.feedback, scoring=irm_fast.implicit_scorer, cv=2, params={"propensity": case.m}
    )
    assert np.isfinite(found["test_score"]).all()
    by_default = one.set_score_request(propensity=True)
    again = cross_validate(by_default, case.x, case.feedback, cv=2, params={"propensity": case.m})
    np.testing.assert_array_equal(found["test_score"], again["test_score"])


@pytest.mark.usefixtures("routing")
def test_a_search_over_one_signal_no_longer_takes_the_naive_model() -> None:
    """Known propensities, right here: the naive objective prefers a model of what acts to one of what pleases."""
    log = make(1500, 5, polarity=(1,), slopes=(2,))
    one = model(n_folds=2).set_fit_request(propensity=True).set_score_request(propensity=False)
    chosen, ranks = [], []
    for scoring in (None, irm_fast.implicit_scorer):
        search = GridSearchCV(one, {"propensity_design": ["constant", "known"]}, scoring=scoring, cv=2)
        search.fit(log.x, log.feedback[:, 0], propensity=log.m)
        chosen.append(search.best_params_["propensity_design"])
        ranks.append(roc_auc_score(log.preferred, search.decision_function(log.x)))
    assert chosen == ["constant", "known"] and ranks[1] > ranks[0] + 0.08


def test_the_scorer_in_pipelines_and_among_others(case: Case) -> None:
    pipeline = make_pipeline(StandardScaler(), model(n_folds=2))
    scoring = {"likelihood": irm_fast.implicit_scorer, "own": lambda one, x, y: one.score(x, y)}
    found = cross_validate(pipeline, case.x, case.feedback, scoring=scoring, cv=2)
    np.testing.assert_allclose(found["test_likelihood"], found["test_own"])
    assert isinstance(clone(irm_fast.implicit_scorer), type(irm_fast.implicit_scorer))


# --- what is missing, and names ------------------------------------------------------------------------------------


def missing_forms() -> dict[str, Callable[[np.ndarray], Any]]:
    def with_entry(entry: Any) -> Callable[[np.ndarray], Any]:
        def change(y: np.ndarray) -> np.ndarray:
            out = y.astype(object)
            out[y == -1] = entry
            return out

        return change

    def frame(dtype: str) -> Callable[[np.ndarray], Any]:
        def change(y: np.ndarray) -> Any:
            pandas = pytest.importorskip("pandas")
            return pandas.DataFrame(with_entry(None)(y), columns=["copy", "share"]).astype(dtype)

        return change

    return {
        "None": with_entry(None),
        "NaN": lambda y: np.where(y < 0, np.nan, y),
        "pandas.NA": lambda y: with_entry(pytest.importorskip("pandas").NA)(y),
        "NaT": lambda y: with_entry(pytest.importorskip("pandas").NaT)(y),
        "list": lambda y: with_entry(None)(y).tolist(),
        "Int64": frame("Int64"),
        "boolean": frame("boolean"),
        "float64": frame("float64"),
        "object": frame("object"),
        "bfloat16": lambda y: torch.where(torch.from_numpy(y) < 0, torch.nan, torch.from_numpy(y)).bfloat16(),
    }


@pytest.mark.parametrize("form", missing_forms())
def test_missing_feedback_in_any_form(case: Case, form: str) -> None:
    feedback, preference = case.feedback.copy(), np.where(case.g > 0.95, 1, -1)
    feedback[:50, 0] = feedback[40:80, 1] = -1
    expected = model(n_folds=2).fit(case.x, feedback, preference=preference).decision_function(case.x)
    plain = model(n_folds=2).fit(case.x, feedback.clip(0), preference=preference).decision_function(case.x)
    assert np.abs(expected - plain).max() > 0.01
    change = missing_forms()[form]
    labels = change(np.column_stack([preference, preference]))
    labels = labels["copy"] if hasattr(labels, "columns") else [row[0] for row in labels]
    labels = torch.stack(labels) if isinstance(labels[0], torch.Tensor) else labels
    got = model(n_folds=2).fit(case.x, change(feedback), preference=labels).decision_function(case.x)
    np.testing.assert_array_equal(got, expected)


def test_text_is_no_feedback(case: Case) -> None:
    for y in (case.feedback.astype(str), case.feedback.astype(str).astype(object)):
        with pytest.raises(ValueError, match=r"feedback: got '[01]'.*expected numbers: convert text.*\.astype\(int\)"):
            model().fit(case.x, y)
    with pytest.raises(ValueError, match=r"preference: got datetime.*expected numbers"):
        model().fit(case.x, case.feedback, preference=np.full(600, np.datetime64("2024-01-01")))
    with pytest.raises(ValueError, match=r"feedback: got \[1\]; expected numbers"):
        model().fit(case.x, np.array([[1], [1, 2]] * 300, object))


def test_what_is_unknown() -> None:
    pandas = pytest.importorskip("pandas")
    unknown = [None, float("nan"), np.float32("nan"), np.datetime64("NaT"), pandas.NA, pandas.NaT]
    assert all(map(is_unknown, unknown))
    assert not any(map(is_unknown, [0, False, "", "nan", np.int8(0), np.str_("a"), pandas.Timestamp(0), (1, 2)]))


@pytest.mark.parametrize("kind", ["object", "NA", "Int64", "float", "tensor"])
def test_unknown_users_are_not_one_user(kind: str) -> None:
    """Every row stands in the log five times, with labels of pure chance: known users keep them together."""
    pandas = pytest.importorskip("pandas")
    random = np.random.default_rng(0)
    x, labels = random.normal(size=(40, 30)), random.integers(0, 2, 40)
    rows = np.repeat(np.arange(40), 5)

    def held_out(ids: np.ndarray, known: np.ndarray) -> float:
        users = {
            "object": lambda: pandas.Series([f"u{i}" if k else None for i, k in zip(ids, known, strict=True)]),
            "NA": lambda: pandas.Series([f"u{i}" if k else pandas.NA for i, k in zip(ids, known, strict=True)]),
            "Int64": lambda: pandas.array([i if k else None for i, k in zip(ids, known, strict=True)], dtype="Int64"),
            "float": lambda: np.where(known, ids, np.nan),
            "tensor": lambda: torch.from_numpy(np.where(known, ids, np.nan)),
        }[kind]()
        return model().fit(x[rows], np.empty((200, 0)), preference=labels[rows], users=users).held_out_nll_

    assert held_out(rows, rows < 0) < 0.5 < np.log(2) < held_out(rows, rows >= 0)


def test_users_in_columns_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"users: got shape \(600, 1\); expected \(600,\), one name for each"):
        model().fit(case.x, case.feedback, users=np.zeros((600, 1)))


def test_columns_name_the_signals(case: Case, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    feedback = case.feedback.copy()
    feedback[(feedback == 1).all(axis=1), 1] = 0
    frame = pandas.DataFrame(feedback, columns=["copy", "retry"])
    declared = {"polarity": {"retry": -1}, "misclick_rate": {"copy": 0.01}, "propensity_design": {"copy": "constant"}}
    one = model(n_folds=2, **declared).fit(case.x, frame)
    by_number = {"polarity": (1, -1), "misclick_rate": (0.01, 0), "propensity_design": ("constant", "auto")}
    same = model(n_folds=2, **by_number).fit(case.x, feedback)
    np.testing.assert_array_equal(one.decision_function(case.x), same.decision_function(case.x))
    assert one.signals_ == ("copy", "retry") and same.signals_ == ("signal 1", "signal 2")
    assert "copy" in str(one.diagnosis_) and "signal 1" not in str(one.diagnosis_)
    assert clone(one).get_params() == one.get_params()
    assert one.score(case.x, frame) == same.score(case.x, frame) == one.score(case.x, feedback)
    with pytest.raises(ValueError, match="got the columns retry, copy; expected those of fit: copy, retry"):
        one.score(case.x, frame[["retry", "copy"]])
    one.save(tmp_path)
    read = EmbeddingRewardModel.load(tmp_path)
    assert read.signals_ == one.signals_ and read.polarity == {"retry": -1}
    assert read.score(case.x, frame) == one.score(case.x, frame)
    np.testing.assert_array_equal(read.predict_action_proba(case.x), one.predict_action_proba(case.x))


def test_a_model_saved_before_signals_had_names(case: Case, tmp_path: Path) -> None:
    one = model(n_folds=2, misclick_rate=(0.0, 0.1)).fit(case.x, case.feedback)
    one.save(tmp_path)
    record = json.loads((tmp_path / "embedding_model.json").read_text())
    del record["signals"]
    (tmp_path / "embedding_model.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"embedding_model.json has \d+ bytes instead of .*; copy the folder anew"):
        EmbeddingRewardModel.load(tmp_path)
    (tmp_path / "irm_fast_files.json").unlink()
    read = EmbeddingRewardModel.load(tmp_path)
    assert read.signals_ == ("signal 1", "signal 2")
    np.testing.assert_array_equal(read.predict_action_proba(case.x), one.predict_action_proba(case.x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"polarity": {"retri": -1}}, "polarity: got the signal 'retri'; expected some of 'copy', 'share'"),
        ({"misclick_rate": {0: 0.1}}, "misclick_rate: got the signal 0; expected some of 'copy', 'share'"),
        ({"propensity_design": {"likes": "hidden"}}, "propensity_design: got the signal 'likes'"),
        ({"propensity_design": {"copy": "free"}}, "propensity_design: got .*expected one of auto"),
        ({"misclick_rate": {"copy": 1e-300}}, "misclick_rate: got .1e-300, 0.0.; expected .* none between 0 and 1e-09"),
    ],
)
def test_declarations_that_are_refused(case: Case, settings: dict, message: str) -> None:
    frame = pytest.importorskip("pandas").DataFrame(case.feedback, columns=["copy", "share"])
    with pytest.raises(ValueError, match=message):
        model(**settings).fit(case.x, frame)


def test_two_columns_of_one_name_are_refused(case: Case) -> None:
    frame = pytest.importorskip("pandas").DataFrame(case.feedback, columns=["copy", "copy"])
    with pytest.raises(ValueError, match="several columns named 'copy'"):
        model().fit(case.x, frame)


@pytest.mark.parametrize(
    ("name", "sign"), [("thumbs_down", -1), ("regenerate", -1), ("dislike", 1), ("Thumbs-Down", 1)]
)
def test_words_of_displeasure_are_warned_of(name: str, sign: int) -> None:
    log = make(600, 5, polarity=(1, sign))
    frame = pytest.importorskip("pandas").DataFrame(log.feedback, columns=["copy", name])
    with pytest.warns(UserWarning, match=f"polarity: '{name}' is taken as [+]?{sign}, .*polarity={{'{name}': -1}} if"):
        guessed = model(n_folds=2).fit(log.x, frame)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="polarity")
        declared = model(n_folds=2, polarity={name: sign}).fit(log.x, frame)
    np.testing.assert_array_equal(guessed.decision_function(log.x), declared.decision_function(log.x))
    assert roc_auc_score(log.preferred, declared.decision_function(log.x)) > 0.7


# --- tensors and sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_torch(case: Case, dtype: torch.dtype) -> None:
    x = torch.from_numpy(case.x).to(dtype).requires_grad_()
    weight = torch.from_numpy(case.g).to(dtype).requires_grad_()
    one = model(n_folds=2).fit(x, torch.from_numpy(case.feedback), sample_weight=weight)
    arrays = [value.detach().float().numpy() for value in (x, weight)]
    same = model(n_folds=2).fit(arrays[0], case.feedback, sample_weight=arrays[1])
    np.testing.assert_array_equal(one.decision_function(x), same.decision_function(arrays[0]))
    assert one.score(x, torch.from_numpy(case.feedback), weight) == same.score(arrays[0], case.feedback, arrays[1])
    assert one.score(x, torch.from_numpy(case.preferred)) == same.score(arrays[0], case.preferred)


def test_huge_embeddings_are_refused_and_large_ones_are_not(case: Case) -> None:
    plain = model(n_folds=2).fit(case.x, case.feedback).decision_function(case.x)
    large = case.x * np.float32(1e14)
    got = model(n_folds=2).fit(large, case.feedback).decision_function(large)
    np.testing.assert_allclose(got, plain, atol=1e-4)
    constant = np.column_stack([case.x, np.full(600, 3e38, np.float32)])
    got = model(n_folds=2).fit(constant, case.feedback).decision_function(constant)
    assert np.isfinite(got).all() and np.corrcoef(got, plain)[0, 1] > 0.99
    for scale in (1e16, 1e20, 3e37):
        with pytest.raises(ValueError, match=r"X: column 0 has a standard deviation of .*e\+.*5 of them above 1e\+15"):
            model().fit(case.x * np.float32(scale), case.feedback)
    with pytest.raises(ValueError, match="propensity_features: column 1 has a standard deviation"):
        model().fit(case.x, case.feedback, propensity_features=case.m * [1, 1e20])
    with pytest.raises(ValueError, match=r"propensity_features: .*finite in float32"):
        model().fit(case.x, case.feedback, propensity_features=case.m * 1e300)


def test_rows_too_large_to_predict_are_refused(case: Case) -> None:
    fitted = model(n_folds=2).fit(case.x * np.float32(0.001), case.feedback)
    x = case.x.copy()
    x[7] = 3e38
    with pytest.raises(ValueError, match="X: row 7 is so large that its reward logit is"):
        fitted.predict_proba(x)


def test_weights_too_large_are_refused_and_too_small_ones_warned_of(case: Case) -> None:
    big = model(n_folds=2).fit(case.x, case.feedback, sample_weight=np.full(600, 1e9))
    assert np.isfinite(big.decision_function(case.x)).all() and np.isfinite(big.held_out_nll_)
    for weight in (3e38, 1e10):
        with pytest.raises(
            ValueError, match=r"sample_weight: got .*; expected at most 1e.09.* divide them by their mean"
        ):
            model().fit(case.x, case.feedback, sample_weight=np.full(600, weight))
    with pytest.warns(
        UserWarning, match="sample_weight: the weights sum to 1, and each counts as that many rows"
    ) as said:
        model(n_folds=2).fit(case.x, case.feedback, sample_weight=np.full(600, 1 / 600))
    assert said[0].filename == __file__  # at the caller of fit


def test_the_least_misclick_rate_still_weighs_a_contradiction(case: Case) -> None:
    labels = np.where(np.arange(600) % 20, -1, 0)
    one = model(n_folds=2, misclick_rate=1e-9).fit(case.x, case.feedback, preference=labels)
    assert np.isfinite(one.decision_function(case.x)).all() and np.isfinite(one.held_out_nll_)


def test_more_signals_than_the_loss_takes_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="feedback: got 17 signals; expected at most 16"):
        model().fit(case.x, np.repeat(case.feedback[:, :1], 17, axis=1))


@pytest.mark.parametrize("layers", [(-1,), (0,), None, (2.5,), 8, "128"])
def test_impossible_widths_are_refused(case: Case, layers: Any) -> None:
    with pytest.raises(ValueError, match=r"hidden_layers: got .*; expected 'auto' or widths such as .128,."):
        model(hidden_layers=layers).fit(case.x, case.feedback)


# --- actions, progress ---------------------------------------------------------------------------------------------


def test_action_probabilities(case: Case) -> None:
    feedback = case.feedback.copy()
    feedback[(feedback == 1).all(axis=1), 1] = 0
    settings = {"polarity": (1, -1), "misclick_rate": (0, 0.1), "propensity_design": ("hidden", "known")}
    one = model(n_folds=2, **settings).fit(
        case.x, feedback, propensity=np.where([False, True], 0.3, np.nan) + 0 * case.m
    )
    g, m = one.predict_proba(case.x)[:, 1], one.predict_propensity(case.x)[:, 0]
    got = one.predict_action_proba(case.x, propensity=np.full((600, 2), 0.3))
    np.testing.assert_allclose(got, np.column_stack([g * m, 0.3 * ((1 - g) + 0.1 * g)]), rtol=1e-6)
    alone = one.predict_action_proba(case.x)
    np.testing.assert_array_equal(alone[:, 0], got[:, 0])
    assert np.isnan(alone[:, 1]).all()
    with pytest.raises(ValueError, match=r"propensity: got shape \(600, 1\); expected \(600, 2\)"):
        one.predict_action_proba(case.x, propensity=np.full(600, 0.3))


def test_action_probabilities_are_right_where_the_preference_is_not() -> None:
    """Propensities that vary, taken as constant: g is wrong, the rate of actions in each tenth of the rows is not."""
    log = make(6000, 5, polarity=(1,), slopes=(1.5,), seed=1)
    one = model(propensity_design="constant").fit(log.x, log.feedback)
    rate = one.predict_action_proba(log.x)[:, 0]
    tenths = np.array_split(np.argsort(rate), 10)
    observed = np.array([log.feedback[rows, 0].mean() for rows in tenths])
    assert np.abs(observed - [rate[rows].mean() for rows in tenths]).max() < 0.05
    assert abs(one.predict_proba(log.x)[:, 1].mean() - log.g.mean()) > 0.1


@pytest.mark.parametrize("method", ["predict_propensity", "predict_action_proba"])
def test_context_is_checked(case: Case, fitted: EmbeddingRewardModel, method: str) -> None:
    predict = getattr(fitted, method)
    assert predict(case.x, users=["a"] * 600, sessions=[None] * 600, times=np.arange(600)).shape == (600, 2)
    for name in ("users", "sessions", "times"):
        with pytest.raises(ValueError, match=f"{name}: got .*5.*; expected .*600"):
            predict(case.x, **{name: np.arange(5)})
    with pytest.raises(ValueError, match="propensity_features: got them in only one of fit and"):
        predict(case.x, case.m)


def test_progress_is_said_on_the_standard_error(case: Case, capsys: pytest.CaptureFixture) -> None:
    model(n_folds=2, verbose=0).fit(case.x, case.feedback)
    assert capsys.readouterr() == ("", "")
    model(n_folds=2, verbose=1).fit(case.x, case.feedback)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and len(lines) == 3
    assert lines[0].startswith("propensities (signal 1 hidden, signal 2 hidden) and reward (linear) (")
    assert lines[1].startswith("context: none is seen") and lines[2].startswith("diagnosis: conditional (")
    assert all(line.endswith(" s)") for line in lines)
    with pytest.raises(ValueError, match="verbose: got -1; expected a whole number from 0"):
        model(verbose=-1).fit(case.x, case.feedback)
