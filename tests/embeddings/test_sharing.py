"""Slopes that signals share in part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from irm_fast.embeddings import propensity_step
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.propensity_step import SHARING, FoundPropensities, fit_propensities, refit_propensities
from irm_fast.embeddings.two_step import fit_proven, sharers
from tests.embeddings.embedding_cases import make, model, sigmoid

FOLDS = np.arange(3000) % 3


def objective_of(feedback: np.ndarray, polarity: tuple[int, ...] = (1, 1)) -> Objective:
    """An objective of weights of 1 without labels."""
    n, k = feedback.shape
    return Objective(torch.from_numpy(feedback.astype(np.int8)), None, torch.ones(n), polarity, (0.0,) * k)


def few_coactions(cosine: float, n: int = 3000, d: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (n, d), feedback (n, 2), preferences (n,): propensities fall as preference rises, along two
    directions with this cosine."""
    random = np.random.default_rng(0)
    x = random.normal(size=(n, d)).astype(np.float32)
    reward, shared, own = random.normal(size=(3, d)) / np.sqrt(d)
    second = cosine * shared + np.sqrt(1 - cosine**2) * own
    m = sigmoid(1.5 * x @ np.column_stack([shared, second]) - 0.8 * (x @ reward)[:, None] - 0.5)
    preferred = random.random(n) < sigmoid(1.5 * x @ reward)
    return x, ((random.random((n, 2)) < m) & preferred[:, None]).astype(np.int8), preferred


def steps(x: np.ndarray, feedback: np.ndarray, polarity: tuple[int, ...] = (1, 1)) -> FoundPropensities:
    n, k = feedback.shape
    return fit_propensities(
        torch.from_numpy(x),
        torch.ones(x.shape[1]),
        None,
        objective_of(feedback, polarity),
        ("auto",) * k,
        torch.zeros(n, k),
        np.arange(n) % 3,
        estimator="auto",
        sds=(1.0,),
    )


@pytest.mark.parametrize("sharing", [0.3, 0.8])
def test_the_fit_is_the_posterior_mode(sharing: float) -> None:
    """One regression on stacked rows: columns of the common slopes, of each signal's own, and wide intercepts."""
    case, sd = make(3000, 4), 0.5
    mean, _, losses, _ = fit_proven(
        torch.from_numpy(case.x), None, objective_of(case.feedback), ("hidden",) * 2, FOLDS, sd, torch.ones(4), sharing
    )
    for_fold, held_out = [], 0.0
    for fold in range(3):
        rows, acted = [], []
        for k in range(2):
            some = case.feedback[:, 1 - k] == 1
            x, y = case.x[some] * sd / 2, case.feedback[some, k]
            own = [np.sqrt(1 - sharing) * x * (j == k) for j in range(2)]
            stacked = np.hstack([np.sqrt(sharing) * x, *own, np.full((len(x), 2), 100.0) * (np.arange(2) == k)])
            rows.append((stacked, FOLDS[some] == fold))
            acted.append(y)
        fitted = np.vstack([x[~held] for x, held in rows])
        y = np.concatenate([y[~held] for y, (_, held) in zip(acted, rows, strict=True)])
        judge = LogisticRegression(C=1, tol=1e-10, max_iter=5000, fit_intercept=False).fit(fitted, y)
        common, first, second = judge.coef_[0][:12].reshape(3, 4) * sd / 2
        for_fold.append(np.sqrt(sharing) * common + np.sqrt(1 - sharing) * np.stack([first, second]))
        for (x, held), y in zip(rows, acted, strict=True):
            held_out -= np.log(judge.predict_proba(x[held])[np.arange(held.sum()), y[held]]).sum()
    np.testing.assert_allclose(mean.weight, np.mean(for_fold, axis=0), atol=5e-3)
    assert losses.design.sum() == pytest.approx(held_out, rel=1e-3)


@pytest.mark.parametrize("seen", ["mass", "context"])
def test_signals_that_share_almost_nothing_are_fitted_by_themselves(seen: str) -> None:
    """The fit of all signals at once reads misclicks and the context as the fits of one signal do."""
    random = np.random.default_rng(0)
    activity = 2 * random.normal(size=3000)
    case = make(3000, 4, activity=activity)
    values = random.uniform(0.3, 1, (3000, 2)) if seen == "mass" else np.column_stack([activity, activity])
    given = {seen: torch.from_numpy(values.astype(np.float32))}
    arguments = (
        torch.from_numpy(case.x),
        None,
        objective_of(case.feedback),
        ("hidden",) * 2,
        FOLDS,
        1.0,
        torch.ones(4),
    )
    apart, shared, blind = (
        fit_proven(*arguments, sharing, first=1, **some) for sharing, some in ((0.0, given), (1e-6, given), (1e-6, {}))
    )
    torch.testing.assert_close(shared.propensities.weight, apart.propensities.weight, rtol=0, atol=0.02)
    torch.testing.assert_close(shared.propensities.bias, apart.propensities.bias, rtol=0, atol=0.02)
    np.testing.assert_allclose(shared.losses.design, apart.losses.design, rtol=1e-3)
    assert (blind.propensities.weight - apart.propensities.weight).abs().max() > 0.1


def test_sharing_brings_the_reward_nearer_to_that_of_known_propensities(monkeypatch: pytest.MonkeyPatch) -> None:
    x, feedback, preferred = few_coactions(0.9)
    scores = {}
    for cost in (propensity_step.SHARING_COST, -np.inf):
        monkeypatch.setattr(propensity_step, "SHARING_COST", cost)
        fitted = model(propensity_sd=1.0).fit(x[:2000], feedback[:2000])
        scores[cost] = roc_auc_score(preferred[2000:], fitted.decision_function(x[2000:]))
    shared, apart = scores.values()
    assert shared > apart + 0.01


def test_held_out_actions_decide_who_shares() -> None:
    alike, apart = (steps(*few_coactions(cosine)[:2]) for cosine in (0.9, -0.9))
    assert (alike.sharing, apart.sharing) == (SHARING, 0.0)


def test_a_refit_shares_as_the_fit_did() -> None:
    x, feedback, _ = few_coactions(0.9)
    found = steps(x, feedback)
    again = refit_propensities(found, torch.from_numpy(x), None, objective_of(feedback), FOLDS)
    torch.testing.assert_close(again.propensities.weight, found.propensities.weight, rtol=0, atol=0)


def test_with_many_coactions_every_signal_is_fitted_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(6000, 2)
    assert steps(case.x, case.feedback).sharing == 0.0
    monkeypatch.setattr(propensity_step, "SHARING_FEW", 1e9)
    assert steps(case.x, case.feedback).sharing == SHARING


@pytest.mark.parametrize(
    ("designs", "polarity", "after", "sharing"),
    [
        (("hidden", "constant", "hidden"), (1, 1, 1), (), [0, 2]),
        (("hidden", "features", "hidden", "features"), (1, -1, -1, -1), (), [1, 3]),
        (("hidden", "hidden"), (1, -1), (), []),
        (("constant", "constant", "known", "known"), (1, 1, 1, 1), (), []),
        (("hidden", "hidden", "hidden"), (1, 1, 1), (-1, 0, -1), [0, 2]),
    ],
)
def test_signals_of_one_polarity_and_design_may_share(
    designs: tuple[str, ...], polarity: tuple[int, ...], after: tuple[int, ...], sharing: list[int]
) -> None:
    """A follower reads whether the signal before it acted, and shares with no other."""
    objective = replace(objective_of(np.zeros((1, len(designs)))), polarity=polarity, after=after)
    assert sharers(designs, objective) == sharing
