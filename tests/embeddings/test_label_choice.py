"""One signal: features are read, and labels choose between splits of it; in worlds of which the right one is known."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from irm_fast.embeddings import one_signal
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.one_signal import Candidate, choose, label_losses
from irm_fast.embeddings.parts import Reward
from irm_fast.embeddings.problem import Split
from tests.embeddings.embedding_cases import model

pytestmark = pytest.mark.filterwarnings("ignore:one signal")
ROWS = 4000


class World(NamedTuple):
    """X (N + M, 6), feedback (N + M,), features (N + M, 2), preference (N + M,), and labels with their errors."""

    x: np.ndarray
    feedback: np.ndarray
    features: np.ndarray
    preference: np.ndarray
    labels: np.ndarray


@lru_cache
def world(kind: str, seed: int = 0) -> World:
    """The propensity is moved by "features", by "hidden" directions or not at all.

    In "preference" features move the preference; in "noise" 40% of the labels of silent rows are wrong.
    """
    random, count = np.random.default_rng([seed, 77]), 2 * ROWS
    directions = np.linalg.qr(np.random.default_rng(200).normal(size=(6, 4)))[0]
    x = random.normal(size=(count, 6)).astype(np.float32)
    parts = x @ directions
    features = parts[:, 1:3] + 0.3 * random.normal(size=(count, 2))
    reward = 2 * parts[:, 0] + 1.5 * features[:, 0] * (kind == "preference")
    moved = {"features": 1.5 * features[:, 0] - features[:, 1], "hidden": 2 * parts[:, 3]}.get(kind, 0.0)
    preference = random.random(count) < expit(reward)
    feedback = preference & (random.random(count) < expit(moved - 0.5))
    wrong = ~feedback & (random.random(count) < 0.4) & (kind == "noise")
    return World(x, feedback.astype(int), features, preference.astype(int), (preference ^ wrong).astype(int))


def fitted(kind: str, labels: int = 0, features: bool = True, **settings: Any) -> tuple[float, EmbeddingRewardModel]:
    """The AUROC on clean preferences of other rows, and the model, with labels of some rows."""
    one = world(kind)
    given: dict[str, Any] = {"propensity_features": one.features[:ROWS]} if features else {}
    if labels:
        given["preference"] = np.full(ROWS, -1)
        rows = np.random.default_rng(0).permutation(ROWS)[:labels]
        given["preference"][rows] = one.labels[rows]
    found = model(n_folds=3, **settings).fit(one.x[:ROWS], one.feedback[:ROWS], **given)
    return float(roc_auc_score(one.preference[ROWS:], found.decision_function(one.x[ROWS:]))), found


@lru_cache
def constant(kind: str) -> float:
    return fitted(kind, features=False)[0]


def test_features_are_read_without_labels() -> None:
    """They were ignored without a word, and the AUROC was that of a constant propensity."""
    with pytest.warns(
        UserWarning, match="one signal, and fewer than 5 labels of each kind: the propensity is taken to"
    ):
        auroc, found = fitted("features")
    assert found.propensity_designs_ == ("features",) and auroc > constant("features") + 0.1
    with pytest.raises(ValueError, match="propensity_features: got them in only one of fit and predict_propensity"):
        found.predict_propensity(world("features").x)


@pytest.mark.parametrize(
    ("kind", "labels", "designs", "gain"),
    [
        ("features", 100, ("features",), 0.1),  # labels in the likelihood alone: +.03
        ("hidden", 150, ("hidden",), 0.1),
        ("constant", 100, ("constant", "features"), -0.005),
        ("preference", 100, ("constant", "features"), -0.005),
        ("noise", 100, ("constant", "features"), -0.01),
    ],
)
def test_labels_choose(kind: str, labels: int, designs: tuple[str, ...], gain: float) -> None:
    """Where features move nothing, theirs is a constant propensity, too; where they move the preference, not quite."""
    auroc, found = fitted(kind, labels)
    assert found.propensity_designs_[0] in designs
    assert auroc > constant(kind) + gain


def test_too_few_labels_choose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_signal, "choose", None)
    one, preference = world("features"), np.full(ROWS, -1)
    preference[np.flatnonzero(one.preference[:ROWS])[:40]] = 1
    preference[np.flatnonzero(1 - one.preference[:ROWS])[:4]] = 0
    found = model(n_folds=3).fit(one.x[:ROWS], one.feedback[:ROWS], preference=preference)
    assert found.propensity_designs_ == ("constant",)


# --- the choice by itself ------------------------------------------------------------------------------------------


def candidates(**scores: np.ndarray) -> list[Candidate]:
    def split(score: np.ndarray) -> Split:
        reward = Reward(torch.zeros(1), torch.zeros(()), (), held_out=torch.from_numpy(score))
        return Split(None, None, reward)  # type: ignore[arg-type]

    return [Candidate(name, split(score)) for name, score in scores.items()]


def chosen(scores: dict[str, np.ndarray], labels: np.ndarray) -> str:
    return choose(candidates(**scores), labels, np.ones(len(labels)), np.arange(len(labels)) % 5).name


def test_a_risky_candidate_has_to_lead_by_two_standard_errors() -> None:
    """What may turn the ranking round needs a large lead."""
    random = np.random.default_rng(1)
    s, noise, other = random.normal(size=(3, 200))
    labels = (random.random(200) < expit(2 * s)).astype(int)
    base, slight, much = s + 2 * noise, s + 1.7 * other, s + 0.1 * other
    for name, better, want in (
        ("hidden", slight, "constant"),
        ("mirror", slight, "constant"),
        ("hidden", much, "hidden"),
        ("mirror", much, "mirror"),
    ):
        assert chosen({"constant": base, name: better}, labels) == want


def test_features_are_believed_until_a_constant_leads_by_one_standard_error() -> None:
    """They are an assumption of the user: with 30 labels a constant propensity was chosen in 8 to 23% of such logs."""
    random = np.random.default_rng(1)
    s, noise, other = random.normal(size=(3, 200))
    labels = (random.random(200) < expit(2 * s)).astype(int)
    base, slight, much = s + 2 * noise, s + 3 * other, s + 0.1 * other
    worse = float(sum(label_losses(*map(torch.from_numpy, (base, labels * 1.0, np.ones(200))), np.arange(200) % 5)))
    better = float(sum(label_losses(*map(torch.from_numpy, (slight, labels * 1.0, np.ones(200))), np.arange(200) % 5)))
    assert better < worse
    assert chosen({"features": base, "constant": slight}, labels) == "features"
    assert chosen({"features": base, "constant": much}, labels) == "constant"
    assert chosen({"features": -s, "constant": s}, labels) == "constant"
    assert chosen({"features": slight, "constant": base, "hidden": much}, labels) == "hidden"


def test_rows_without_a_label_have_no_say() -> None:
    random = np.random.default_rng(0)
    s, other = random.normal(size=(2, 400))
    labels = (random.random(400) < expit(2 * s)).astype(int)
    labels[200:] = -1
    s[200:] = other[200:]
    assert chosen({"constant": other, "hidden": s}, labels) == "hidden"
    assert chosen({"constant": s, "hidden": other}, labels) == "constant"


def test_losses_of_labels_are_held_out() -> None:
    """A logistic regression on the score in the other folds; a score that is turned round foretells nothing."""
    random = np.random.default_rng(0)
    score, folds = 3 * random.normal(size=400), np.arange(400) % 4
    y = (random.random(400) < expit(score / 2 - 1)).astype(float)
    losses = label_losses(torch.from_numpy(score), torch.from_numpy(y), torch.ones(400, dtype=torch.float64), folds)
    for fold in range(4):
        judge = LogisticRegression(C=1e6).fit(score[folds != fold, None], y[folds != fold])
        want = -np.log(judge.predict_proba(score[folds == fold, None])[np.arange(100), y[folds == fold].astype(int)])
        assert losses[folds == fold].mean() == pytest.approx(want.mean(), abs=0.01)
    turned = label_losses(torch.from_numpy(-score), torch.from_numpy(y), torch.ones(400, dtype=torch.float64), folds)
    assert losses.mean() < 0.58 < 0.6 < turned.mean()
