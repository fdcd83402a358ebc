"""One signal: what is assumed is said, labels that choose are weighed, and a fitted model keeps its candidates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.embeddings import fit, one_signal
from irm_fast.embeddings.candidates import candidate_rewards
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.observed import observe
from irm_fast.embeddings.one_signal import label_weights
from irm_fast.embeddings.problem import Problem
from tests.embeddings.embedding_cases import SMALL_NETWORK, Case, make, model

NONE = np.full(600, -1)


@pytest.fixture(scope="module")
def case() -> Case:
    """600 rows of one signal."""
    return make(600, 4, polarity=(1,), slopes=(1,))


@pytest.fixture(scope="module")
def fitted(case: Case) -> EmbeddingRewardModel:
    """Fitted without labels."""
    with pytest.warns(UserWarning, match="one signal"):
        return model(n_folds=2).fit(case.x, case.feedback)


def labels_of(case: Case, count: int) -> np.ndarray:
    """Preferences of the first rows, -1 elsewhere."""
    return np.where(np.arange(len(case.x)) < count, case.preferred, -1)


def problem_of(monkeypatch: pytest.MonkeyPatch, case: Case, **arguments: Any) -> Problem:
    """The problem of a fit."""
    found: list[Problem] = []
    monkeypatch.setattr(fit, "candidate_rewards", lambda problem, _: found.append(problem) or {})
    model(n_folds=2, **arguments).fit(case.x, case.feedback)
    return found[0]


# What is assumed


def test_without_labels_the_assumption_is_said_with_the_remedy(case: Case) -> None:
    with pytest.warns(UserWarning, match=r"same for every response.*irm-fast label --next 100.*a second signal"):
        model(n_folds=2).fit(case.x, case.feedback)
    features = case.x[:, :1]
    with pytest.warns(UserWarning, match=r"the propensity features alone, and the preference on none") as told:
        found = model(n_folds=2).fit(case.x, case.feedback, propensity_features=features)
    assert found.propensity_designs_ == ("features",)
    assert [warning.filename for warning in told] == [__file__]
    with pytest.warns(UserWarning, match=r"fewer than 5 labels of each kind \(3 of 1, 2 of 0\)"):
        few = np.where(np.cumsum(case.preferred) <= 3, case.preferred, -1)
        few[np.flatnonzero(few == 0)[2:]] = -1
        model(n_folds=2).fit(case.x, case.feedback, preference=few)


def test_what_was_declared_or_chosen_by_labels_is_no_assumption_of_ours(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        declared = model(n_folds=2, propensity_design="constant").fit(case.x, case.feedback)
        chosen = model(n_folds=2).fit(case.x, case.feedback, preference=labels_of(case, 60))
        labels = model(n_folds=2).fit(case.x, NONE, preference=labels_of(case, 600))  # alone: nothing to split
    assert declared.propensity_designs_ == ("constant",) and len(chosen.propensity_designs_) == 1
    assert min(found.score(case.x, case.preferred) for found in (declared, chosen, labels)) > 0.6


@pytest.mark.parametrize("signals", [1, 2])
def test_features_that_nothing_reads_are_named(case: Case, signals: int) -> None:
    feedback = np.repeat(case.feedback, signals, axis=1)
    with pytest.warns(UserWarning, match="propensity_features: not read by the declared propensity_design constant"):
        model(n_folds=2, propensity_design="constant").fit(case.x, feedback, propensity_features=case.x)


def test_features_have_as_many_columns_as_in_fit(case: Case) -> None:
    found = model(n_folds=2, propensity_design="features").fit(case.x, case.feedback, propensity_features=case.x[:, :2])
    with pytest.raises(ValueError, match=r"propensity_features: got shape \(600, 1\); expected \(600, 2\), as in fit"):
        found.predict_propensity(case.x, case.x[:, :1])


# Labels that choose


def test_a_label_stands_for_as_many_rows_as_its_probability_says() -> None:
    def weights(preference: list, probability: Any, weight: Any = None) -> list[float]:
        arguments: dict[str, Any] = {"design": "auto", "polarity": None, "misclick_rate": None}
        seen = observe(5, np.zeros(5), preference=preference, label_probability=probability, weight=weight, **arguments)
        return label_weights(seen).tolist()

    assert weights([1, 0, 1, -1, -1], None) == [1] * 5
    assert weights([1, 0, 1, -1, -1], [None] * 5) == [1] * 5
    assert weights([1, 0, 1, -1, -1], [0.1, 0.2, 0.2, None, 0.5]) == pytest.approx([1.5, 0.75, 0.75, 0, 0])
    assert weights([1, 0, 1, -1, -1], [0.1, 0.2, 0.2, None, 0.5], [2, 1, 1, 1, 1]) == pytest.approx(
        [3, 0.75, 0.75, 0, 0]
    )
    # Two of five rows were labelled without a probability: drawn at random, with 2 / 5
    assert weights([1, 0, 1, -1, -1], [0.2, np.nan, np.nan, np.nan, np.nan]) == pytest.approx([1.5, 0.75, 0.75, 0, 0])


def test_the_choice_is_weighed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    choose = one_signal.choose
    monkeypatch.setattr(one_signal, "choose", lambda *a: seen.append(a[2]) or choose(*a))
    probability = np.where(np.arange(600) < 30, 0.1, 0.3)
    drop = 590  # a row of weight 0 takes its probability along
    weight = np.where(np.arange(600) == drop, 0, 1)
    model(n_folds=2).fit(
        case.x,
        case.feedback,
        preference=labels_of(case, 60),
        label_probability=probability,
        sample_weight=weight,
    )
    assert seen[0] == pytest.approx(np.where(np.arange(599) < 30, 1.5, np.where(np.arange(599) < 60, 0.5, 0)))


def test_impossible_label_probabilities_are_refused(case: Case) -> None:
    for wrong, words in ((np.full(600, 1.5), r"outside \(0, 1\]"), (np.full(599, 0.5), r"got shape \(599, 1\)")):
        with pytest.raises(ValueError, match=f"label_probability: .*{words}"):
            model().fit(case.x, case.feedback, preference=labels_of(case, 60), label_probability=wrong)


def test_labels_that_are_ignorable_identify(case: Case) -> None:
    labels = labels_of(case, 200)
    for ignorable, kind in ((True, "identified"), (False, "not identified")):
        found = model(n_folds=2, labels_ignorable=ignorable).fit(case.x, case.feedback, preference=labels)
        assert found.diagnosis_.kind == kind


@pytest.mark.parametrize("sign", [1, -1])
def test_a_mirrored_split_explains_the_log_as_well(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(2000, 3, polarity=(sign,), slopes=(1,))
    problem = problem_of(monkeypatch, world, polarity=sign, propensity_design="constant")
    tried = {candidate.name: candidate.split for candidate in one_signal.candidates(problem, ())}
    rates = [
        torch.sigmoid(sign * split.reward.held_out) * torch.sigmoid(split.logits.held_out[:, 0])
        for split in (tried["hidden"], tried["mirror"])
    ]
    assert float(torch.corrcoef(torch.stack(rates))[0, 1]) > 0.98


# Rows that contradict themselves


def contradictory(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 60 rows without an action and 20 with one; 5 of these labels contradict it. And those five rows."""
    acted, silent = np.flatnonzero(case.feedback[:, 0] == 1), np.flatnonzero(case.feedback[:, 0] == 0)
    labels = NONE.copy()
    labels[silent[:60]], labels[acted[:20]], labels[acted[:5]] = case.preferred[silent[:60]], 1, 0
    return labels, acted[:5]


def test_contradictory_rows_are_refused_or_left_out_with_a_count(case: Case) -> None:
    labels, rows = contradictory(case)
    with pytest.raises(ValueError, match=r"row \d+ has evidence for both sides \(5 have\).*contradictions='drop'"):
        model().fit(case.x, case.feedback, preference=labels)
    against = int((labels == 0).sum())
    words = rf"left out 5 of 600 rows.*signal 1 at least {5 / against:.2g} \(5 of {against} labels against it\)"
    with pytest.warns(UserWarning, match=words) as told:
        dropped = model(n_folds=2, contradictions="drop").fit(case.x, case.feedback, preference=labels)
    assert told[0].filename == __file__
    rest = np.setdiff1d(np.arange(600), rows)
    plain = model(n_folds=2).fit(case.x[rest], case.feedback[rest], preference=labels[rest])
    np.testing.assert_array_equal(dropped.coef_, plain.coef_)

    with pytest.warns(UserWarning, match="left out 5 of 600"):
        score = dropped.score(case.x, case.feedback, preference=labels)
    assert score == pytest.approx(plain.score(case.x[rest], case.feedback[rest], preference=labels[rest]))
    with pytest.raises(ValueError, match="all 600 rows contradict themselves"):
        model(contradictions="drop").fit(case.x, np.ones(600), preference=np.zeros(600))
    with pytest.raises(ValueError, match="contradictions: got 'skip'; expected error or drop"):
        model(contradictions="skip").fit(case.x, case.feedback)


def test_what_a_misclick_explains_is_not_left_out(case: Case) -> None:
    labels, _ = contradictory(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = {"n_folds": 2, "contradictions": "drop", "misclick_rate": 0.05}
        found = model(**settings).fit(case.x, case.feedback, preference=labels)
    assert len(found.held_out_decision_) == len(case.x)


# Candidates


def test_disagreement_is_the_deviation_of_standardised_candidates(case: Case, fitted: EmbeddingRewardModel) -> None:
    kept = fitted._fitted.candidates
    assert list(kept) == ["constant", "hidden", "mirror"]
    x = fitted._fitted.scaler(case.x)
    logits = np.stack([candidate.logits(x).numpy() for candidate in kept.values()]).astype(float)
    logits = (logits - logits.mean(1, keepdims=True)) / logits.std(1, keepdims=True)
    np.testing.assert_allclose(fitted.predict_disagreement(case.x), (1 / (1 + np.exp(-logits))).std(0), rtol=1e-4)


def test_candidates_find_what_separate_fits_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fit to all rows stands for the fits that labels choose from, up to hidden and mirror exchanged."""
    features = np.random.default_rng(1).normal(size=(4000, 1)).astype(np.float32)
    world = make(4000, 4, polarity=(1,), slopes=(1,))
    found: list[Problem] = []
    monkeypatch.setattr(fit, "candidate_rewards", lambda problem, seen: found.append((problem, seen)) or {})
    with pytest.warns(UserWarning, match="one signal"):
        model(n_folds=2).fit(world.x, world.feedback, propensity_features=features)
    problem, seen = found[0]
    quick = candidate_rewards(problem, seen)
    slow = {candidate.name: candidate.split.reward for candidate in one_signal.candidates(problem, ())}
    assert sorted(quick) == sorted(slow) == ["constant", "features", "hidden", "mirror"]

    def alike(one: str, other: str) -> float:
        return float(np.corrcoef([quick[one].logits(problem.embeddings), slow[other].logits(problem.embeddings)])[0, 1])

    assert min(alike("constant", "constant"), alike("features", "features")) > 0.999
    assert (
        max(
            min(alike("hidden", "hidden"), alike("mirror", "mirror")),
            min(alike("hidden", "mirror"), alike("mirror", "hidden")),
        )
        > 0.98
    )


def test_candidates_know_no_labels(case: Case) -> None:
    kept = model(n_folds=2).fit(case.x, case.feedback, preference=labels_of(case, 300))._fitted.candidates
    with pytest.warns(UserWarning, match="one signal"):
        without = model(n_folds=2).fit(case.x, case.feedback)._fitted.candidates
    assert list(kept) == list(without)
    torch.testing.assert_close(kept["hidden"].weight, without["hidden"].weight, rtol=0, atol=0)


def test_a_saved_model_keeps_its_candidates(case: Case, fitted: EmbeddingRewardModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    expected = fitted.predict_disagreement(case.x)
    assert expected.std() > 0.03
    np.testing.assert_array_equal(EmbeddingRewardModel.load(tmp_path).predict_disagreement(case.x), expected)
    # A model of a version without candidates: the sampling deviation, as for several signals
    path = tmp_path / "embedding_model.safetensors"
    old = {name: value for name, value in load_file(path).items() if not name.startswith("candidate.")}
    save_file(old, path)
    (tmp_path / MANIFEST).unlink()
    loaded = EmbeddingRewardModel.load(tmp_path)
    low, high = loaded.predict_interval(case.x, 0.9)
    np.testing.assert_allclose(loaded.predict_disagreement(case.x), (high - low) / 2 / 1.6449, rtol=1e-3)


def test_several_signals_disagree_as_far_as_sampling_goes() -> None:
    two = make(600, 4)
    linear = model(n_folds=2).fit(two.x, two.feedback)
    low, high = linear.predict_interval(two.x, 0.9)
    np.testing.assert_allclose(linear.predict_disagreement(two.x), (high - low) / 2 / 1.6449, rtol=1e-3)
    bent = model(**SMALL_NETWORK).fit(two.x, two.feedback)
    networks = bent._fitted.reward.networks
    x = bent._fitted.scaler(two.x)
    with torch.no_grad():
        each = np.stack([network(x).squeeze(1).numpy() for network in networks])
    np.testing.assert_allclose(bent.predict_disagreement(two.x), each.std(0), rtol=1e-3, atol=1e-6)
    assert bent.predict_disagreement(two.x).mean() > 0.01


def test_known_propensities_have_no_candidates(case: Case) -> None:
    known = model(n_folds=2, propensity_design="known").fit(case.x, case.feedback, propensity=case.m)
    assert known._fitted.candidates == {}
