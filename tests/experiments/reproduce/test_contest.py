"""The comparison of all methods: nobody sees the truth, and everybody has the same budget."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from irm_fast.embeddings.optimize import fit_map
from irm_fast.experiments.reproduce import contest, fitting
from irm_fast.experiments.reproduce.contest import Contest, entrants
from irm_fast.experiments.reproduce.fitting import Logits, Method
from irm_fast.experiments.reproduce.methods import (
    BASELINES,
    BOUNDS,
    DEFAULT,
    EXPLICIT,
    FORMS,
    KNOWN,
    NAIVE,
    PAPER,
    RECREC,
    WITH_FEATURES,
)
from irm_fast.experiments.reproduce.population import Log, Population, Redraw, Truth, semi_synthetic
from tests.experiments.reproduce.small_runs import without_time

ORACLES = {method.name for method in BOUNDS}


@pytest.fixture(scope="module")
def population() -> Population:
    return semi_synthetic(500, 12)


@pytest.fixture(scope="module")
def redraw(population) -> Redraw:
    return population.redraw("feature", 0, target=0.5)


@pytest.fixture(scope="module")
def results(redraw) -> dict:
    """Of every entrant."""
    whole = Contest(redraw, 0)
    return {key: whole.measured(key) for key in entrants(2)}


def test_poisoned_truth_changes_nothing_but_the_bounds(redraw, results):
    """Selection, fit and calibration see no clean label: with wrong ones they are the same to the last bit."""
    wrong = np.random.default_rng(1).random(len(redraw.truth.preference)) < 0.5
    truth = replace(redraw.truth, preference=wrong.astype(np.int8), propensity=redraw.truth.propensity[::-1])
    poisoned = Contest(replace(redraw, truth=truth), 0)
    for key, result in results.items():
        again = without_time(poisoned.measured(key))
        assert (again == without_time(result)) == (key[0] not in ORACLES), key


def test_test_labels_decide_metrics_alone(redraw, results):
    poisoned = Contest(replace(redraw, test_preference=1 - redraw.test_preference), 0)
    for name, signals in (("nnPU", 2), ("marginal, hidden", 2), (DEFAULT, 1), (EXPLICIT.name, 0)):
        again, result = poisoned.measured((name, signals)), results[name, signals]
        assert again["scores"] == result["scores"] and again["candidate"] == result["candidate"]
        assert again["raw"]["auroc"] == pytest.approx(1 - result["raw"]["auroc"])


def test_the_truth_is_out_of_reach(redraw):
    """A method that looks for clean labels finds none."""
    whole = Contest(redraw, 0)
    known = whole.known(2)
    for bound in (EXPLICIT, KNOWN):
        for seen in (known.any_signal, known.each_signal, known.estimates):
            with pytest.raises(AttributeError, match=r"preference|known"):
                whole.field.fit(Method("peeking", bound.loss), seen)


def test_everybody_has_the_same_candidates(results):
    fits = {key: result for key, result in results.items() if key[0] not in contest.OURS}
    names = {tuple(result["scores"]) for result in fits.values()}
    assert names == {("network", "linear, even, sd 2", "linear, raw, sd 2")}
    for result in fits.values():
        assert result["candidate"] == min(result["scores"], key=result["scores"].get)
    assert all(result["candidates"] == len(result["scores"]) for result in results.values())
    assert all(result["seconds"] > 1e-3 for result in results.values())
    assert all(np.isfinite(result["calibrated"]["mae"]) for result in results.values())


def test_calibration_keeps_the_ranking(results):
    for result in results.values():
        assert result["calibrated"]["auroc"] == pytest.approx(result["raw"]["auroc"], abs=2e-3)


POSTERIORS = [method for method in (*BASELINES, *FORMS) if method.objective is not None and method.name != "nnPU"]


@pytest.mark.parametrize("method", POSTERIORS, ids=lambda method: method.name)
def test_linear_heads_are_stationary_points_of_the_loss_itself(method, redraw):
    """They minimise the likelihood: where its gradient and the prior's cancel, those of the loss have to, too."""
    whole = Contest(redraw, 0)
    known = whole.known(2).any_signal if method.sees == "any" else whole.known(2).each_signal
    fold = fitting._Fold(method, known, whole.field.setting, 0)
    fit_map_fully = partial(fit_map, iterations=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "fit_map", fit_map_fully)
        heads = fold.linear(torch.ones(12), 2.0)
    parameters = [p.requires_grad_() for p in heads.parameters()]
    gradients = torch.autograd.grad(method.loss(Logits(*heads(fold.part)), fold.batch), parameters)
    prior = torch.autograd.grad(heads.penalty(2.0, 1.0) / len(fold.index), parameters, allow_unused=True)
    for own, other in zip(gradients, prior, strict=True):
        pull = torch.zeros_like(own) if other is None else other
        assert (own + pull).abs().max() < 3e-4 < max(0.01, 10 * own.abs().max())
    assert max(gradient.abs().max() for gradient in gradients) > 5e-3


def test_methods_with_one_optimum_agree(results):
    """On one signal SAR-EM and both stratified forms are the marginal form with a hidden propensity."""
    scores = [results[name, 1]["scores"]["linear, raw, sd 2"] for name in ("SAR-EM", *(form.name for form in FORMS))]
    sar_em, current, lagged, constant, _, hidden = scores
    assert sar_em == pytest.approx(hidden) and current == lagged == pytest.approx(hidden)
    assert abs(constant - hidden) > 1e-4


def test_what_features_add():
    """Where propensities hang on what only features show, methods that read them tell it from what pleases."""
    rng = np.random.default_rng(0)
    rows, count = 4000, 3
    X, features = (rng.normal(size=(rows + 500, width)).astype(np.float32) for width in (3, count))
    X[:, 2] = 0.3 * X[:, 2] + features[:, 0]  # what embeddings hold of a feature
    pleased = rng.random(rows + 500) < 1 / (1 + np.exp(-2 * X[:, 0]))
    propensity = 1 / (1 + np.exp(1 - 2 * features[:rows, [0, 0]] - features[:rows, [1, 2]]))
    feedback = (pleased[:rows, None] & (rng.random((rows, 2)) < propensity)).astype(np.int8)
    log = Log(X[:rows], features[:rows], feedback, np.arange(rows))
    truth = Truth(pleased[:rows].astype(np.int8), propensity)
    whole = Contest(Redraw(log, truth, X[rows:], pleased[rows:].astype(np.int8), features[rows:]), 0)
    paid = {}
    for method in (NAIVE, RECREC, PAPER, *WITH_FEATURES):
        reward = whole.field.fit(method, whole.known(2).read_by(method)).test
        paid[method.name] = abs(np.corrcoef(reward, X[rows:, 2])[0, 1] / np.corrcoef(reward, X[rows:, 0])[0, 1])
    towers, recrec, paper = (paid[method.name] for method in WITH_FEATURES)
    assert towers < 0.6 * paid["naive"], paid
    assert recrec < 0.75 * paid[RECREC.name] and paper < 0.75 * paid[PAPER.name], paid


@pytest.mark.parametrize("protocol", ["rating", "feature"])
def test_a_redraw(population, protocol):
    one, again, other = (population.redraw(protocol, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.log.feedback, again.log.feedback) and np.array_equal(one.test_X, again.test_X)
    assert not np.array_equal(one.log.X, other.log.X)
    assert len(one.log.X) == 400 and len(one.test_X) == 100
    assert not (one.log.feedback[one.truth.preference == 0] == 1).any()
    seen = {row.tobytes() for row in one.log.X}
    assert not any(row.tobytes() in seen for row in one.test_X)
    liked = one.truth.preference == 1
    expected = one.truth.propensity[liked].mean(axis=0)
    rate = (one.log.feedback[liked] == 1).mean(axis=0)
    assert rate == pytest.approx(expected, abs=4 * np.sqrt(0.25 / liked.sum()))
    assert (np.ptp(one.truth.propensity) == 0) == (protocol == "rating")  # a row's own would give its rating away


def test_groups_are_not_parted(population):
    grouped = replace(population, group=np.arange(500) // 4)
    members = {row.tobytes(): number for row, number in zip(population.X, grouped.group, strict=True)}
    one = grouped.redraw("feature", 0)
    groups = [{members[row.tobytes()] for row in rows} for rows in (one.log.X, one.test_X)]
    assert groups[0] and groups[1] and not groups[0] & groups[1]
