"""The methods in made worlds: what each is given, and what it makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from irm_fast.embeddings.two_step import ENOUGH
from irm_fast.experiments.reproduce.contest import LOWER_LEVEL, Field
from irm_fast.experiments.reproduce.facts import Actions, ActionsAndEstimates, ActionsAndTruth
from irm_fast.experiments.reproduce.fitting import Fit, Logits
from irm_fast.experiments.worlds import methods
from irm_fast.experiments.worlds.knobs import WORLDS
from irm_fast.experiments.worlds.methods import (
    ALONE,
    BOUNDS,
    FORMS_OF_OURS,
    LENGTH_OUT,
    LOWER_ENDS,
    METHODS,
    OURS,
    TOLD,
    Entrants,
)
from irm_fast.losses.implicit import implicit_rm_loss
from tests.experiments.worlds.small_worlds import BY_NAME, ROWS, drawn_log


def test_every_method_in_a_small_world(texts) -> None:
    """Labels come first; nothing is told of where the log shows it."""
    drawn = drawn_log("frequent actions (50%)", texts)
    entrants = Entrants(BY_NAME["frequent actions (50%)"], drawn, 0)
    assert entrants.methods() == tuple(name for name in METHODS if name != TOLD)
    found = {name: entrants.measured(name) for name in ("naive", OURS, ALONE, "explicit labels")}
    assert max(found, key=lambda name: found[name]["auroc"]) == "explicit labels"
    assert found[OURS]["auroc"] > found["naive"]["auroc"] > 0.6
    assert all(0 < result["picks"] < 1 and result["seconds"] >= 0 for result in found.values())
    said = entrants.said()
    assert said["ranking"] == "conditional" and said["is_linear"] and said["context"] == []
    np.testing.assert_allclose(said["true_propensity"], 0.5)
    np.testing.assert_allclose(said["propensity"], said["true_propensity"], atol=0.15)
    assert said["true_preference"] == drawn.please.mean() == pytest.approx(said["preference"], abs=0.1)


# What each is given


@pytest.fixture
def given(monkeypatch):
    """By name what each method was given to fit to; nothing is fitted."""
    seen = {}

    def fit(self, method, known):
        seen[method.name] = method, known
        return Fit(self.log.X[:, 0], self._test_X[:, 0], "", {}, 0.0)

    monkeypatch.setattr(Field, "fit", fit)
    return seen


@pytest.mark.parametrize("name", ["misclicks (10%)", "funnel"])
def test_bounds_alone_are_given_the_truth(texts, given, name) -> None:
    world, drawn = BY_NAME[name], drawn_log(name, texts)
    entrants = Entrants(world, drawn, 0)
    for method in METHODS:
        if method not in FORMS_OF_OURS:
            entrants.measured(method)
    feedback = torch.from_numpy(drawn.redraw.log.feedback)
    for method, known in given.values():
        if method.name not in BOUNDS:
            assert type(known) is (ActionsAndEstimates if method.name == "nnPU" else Actions)
            acted = feedback if method.sees == "each" else feedback.max(1, keepdim=True).values
            assert torch.equal(known.feedback, acted), method.name

    # Known propensities, with misclicks and with what could not act
    method, known = given["known propensities"]
    assert type(known) is ActionsAndTruth and torch.equal(known.feedback, torch.from_numpy(drawn.recorded))
    np.testing.assert_allclose(torch.sigmoid(known.known), drawn.redraw.truth.propensity, rtol=1e-4)
    reward = torch.linspace(-2, 2, ROWS)
    expected = implicit_rm_loss(reward, known.known, known.feedback, misclick_rate=world.misclicks or None)
    assert torch.equal(method.loss(Logits(reward, reward[:, None]), known), expected)
    assert (known.feedback == -1).any() == world.funnel
    method, known = given["explicit labels"]
    np.testing.assert_array_equal(known.preference, drawn.redraw.truth.preference)


def test_without_length_nothing_is_linear_in_length(texts, given) -> None:
    drawn = drawn_log("base", texts)
    entrants = Entrants(WORLDS[0], drawn, 0)
    log, redraw = drawn.redraw.log, drawn.redraw
    slope = np.cov(log.features[:, 0], log.X[:, 0])[0, 1] / log.features[:, 0].var(ddof=1)
    expected = redraw.test_X[:, 0] - slope * redraw.test_features[:, 0]
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(entrants._reward(LENGTH_OUT), expected, rtol=1e-5, atol=1e-6)


class Model:
    """Takes the place of the estimator, and keeps how it was made and what it was fitted to."""

    is_linear_, context_ = False, ()
    diagnosis_ = SimpleNamespace(ranking="conditional", scale="contradicted")
    training_propensity_ = np.array([[0.1, np.nan], [0.3, 0.2]])
    made: ClassVar[list[SimpleNamespace]] = []

    def __init__(self, **how) -> None:
        self.how = {key: value for key, value in how.items() if key not in ("device", "random_state")}

    def fit(self, X, y, **read):
        assert len(read["users"]) == len(read["sessions"]) == len(read["groups"]) == len(X)
        self.made.append(SimpleNamespace(features=read.get("propensity_features"), **self.how))
        return self

    def decision_function(self, X):
        return X[:, 0]

    def predict_proba(self, X):
        return np.tile([0.75, 0.25], (len(X), 1))

    def predict_interval(self, X, level):
        assert level == LOWER_LEVEL
        return X[:, 0] - X[:, 1] ** 2, X[:, 0] + X[:, 1] ** 2


@pytest.fixture
def model(monkeypatch) -> type[Model]:
    monkeypatch.setattr(Model, "made", [])
    monkeypatch.setattr(methods, "EmbeddingRewardModel", Model)
    return Model


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("misclicks (10%)", {"misclick_rate": 0.1}),
        ("funnel", {"after": {1: 0}, "propensity_design": "features"}),
        ("rare actions (3%)", {"propensity_design": "features"}),
    ],
)
def test_what_ours_is_given(texts, model, name, told) -> None:
    """Features where co-actions show what they draw, or where it is told; and what holds in the world, then."""
    drawn = drawn_log(name, texts)
    entrants = Entrants(BY_NAME[name], drawn, 0)
    assert TOLD in entrants.methods()
    for method in (OURS, ALONE, TOLD):
        entrants.measured(method)
    (ours, alone, knowing), features = model.made, drawn.redraw.log.features
    co_act = (drawn.redraw.log.feedback == 1).all(axis=1).sum()
    assert vars(ours) == {"features": features if co_act >= ENOUGH else None} and vars(alone) == {"features": None}
    assert vars(knowing) == {"features": features, **told}


def test_features_of_one_signal_are_read_when_told(texts, model) -> None:
    drawn = drawn_log("one signal", texts)
    entrants = Entrants(BY_NAME["one signal"], drawn, 0)
    for method in (OURS, TOLD):
        entrants.measured(method)
    assert vars(model.made[0]) == {"features": None}
    assert vars(model.made[1]) == {"features": drawn.redraw.log.features, "propensity_design": "features"}


@pytest.mark.parametrize("linear", [True, False])
def test_lower_ends(texts, model, monkeypatch, linear) -> None:
    """A network has no intervals, and stands for itself; either is fitted once."""
    monkeypatch.setattr(model, "is_linear_", linear)
    drawn = drawn_log("base", texts)
    entrants = Entrants(WORLDS[0], drawn, 0)
    X, reward = drawn.redraw.test_X, entrants._reward(LOWER_ENDS)
    np.testing.assert_array_equal(reward, X[:, 0] - X[:, 1] ** 2 if linear else X[:, 0])
    assert (entrants._reward(OURS) == X[:, 0]).all() and len(model.made) == 1


def test_what_ours_says(texts, model) -> None:
    """It knows of no order: the second signal of a funnel is as frequent as both together."""
    drawn = drawn_log("funnel", texts)
    said = Entrants(BY_NAME["funnel"], drawn, 0).said()
    first, second = drawn.redraw.truth.propensity.T
    assert said.pop("true_propensity") == pytest.approx([first.mean(), (first * second).mean()])
    assert said.pop("true_preference") == drawn.please.mean()
    assert said.pop("propensity") == pytest.approx([0.2, 0.2]) and said.pop("preference") == 0.25
    assert said == {"ranking": "conditional", "scale": "contradicted", "context": [], "is_linear": False}
