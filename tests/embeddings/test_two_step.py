"""Propensities from rows where something else proves the preference, against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from irm_fast.embeddings.joint import BIAS_SD, fit_joint
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import REWARD_SDS, Training
from irm_fast.embeddings.parts import Network, Propensities
from irm_fast.embeddings.propensity_networks import add_networks
from irm_fast.embeddings.propensity_step import fit_propensities
from irm_fast.embeddings.two_step import coactions, fit_proven, proven
from tests.embeddings.embedding_cases import make, sigmoid

ONES = torch.ones(4)  # a prior spread evenly over the features of `case`


def objective_of(feedback: np.ndarray, **fields) -> Objective:
    n, k = feedback.shape
    given = {
        "preference": None,
        "weight": torch.ones(n),
        "polarity": (1,) * k,
        "misclick_rate": (0.0,) * k,
        "after": (-1,) * k,
    }
    return Objective(torch.from_numpy(feedback.astype(np.int8)), **{**given, **fields})


def draw(n: int = 400, k: int = 4, *, seed: int = 0, labelled: bool = True) -> Objective:
    """Evidence of all kinds; that for both sides is not avoided: each row is judged by what stands in it."""
    random = np.random.default_rng(seed)
    return objective_of(
        random.choice([-1, 0, 1], p=[0.2, 0.5, 0.3], size=(n, k)),
        preference=torch.from_numpy(random.choice([-1, 0, 1], p=[0.8, 0.1, 0.1], size=n)) if labelled else None,
        weight=torch.from_numpy(random.choice([0.0, 0.5, 1.0], size=n).astype(np.float32)),
        polarity=(1, -1, 1, -1),
        misclick_rate=(0.0, 0.0, 0.1, 0.0),
    )


def proven_by_definition(objective: Objective) -> np.ndarray:
    n, count = objective.feedback.shape
    rows = np.zeros((n, count), bool)
    for i in range(n):
        for k in range(count):
            side = objective.polarity[k]
            for j in range(count):
                if j != k and objective.feedback[i, j] == 1 and objective.polarity[j] == side:
                    rows[i, k] = True
            label = -1 if objective.preference is None else int(objective.preference[i])
            if label == {1: 1, -1: 0}[side]:
                rows[i, k] = True
            if objective.feedback[i, k] < 0 or objective.weight[i] == 0:
                rows[i, k] = False
    return rows


@pytest.mark.parametrize("labelled", [True, False])
def test_proven_rows(labelled: bool) -> None:
    objective = draw(labelled=labelled)
    want = proven_by_definition(objective)
    np.testing.assert_array_equal(proven(objective).numpy(), want)
    assert (want.mean(axis=0) > 0.02).all()  # that signal 3 may be a misclick is for `mass` to weigh


def test_coactions() -> None:
    objective = draw()
    rows, acted = proven_by_definition(objective), objective.feedback.numpy() == 1
    want = [min((rows & acted)[:, k].sum(), (rows & ~acted)[:, k].sum()) for k in range(4)]
    assert coactions(objective).tolist() == want


@pytest.fixture(scope="module")
def case():
    return make(3000, 4, slopes=(1, 0.7))


def folds_of(n: int, count: int = 3) -> np.ndarray:
    return np.arange(n) % count


@pytest.mark.parametrize("sd", [0.3, 1.0])
def test_the_regression_is_that_of_the_proven_rows(case, sd: float) -> None:
    """Posterior mode for iid normal slopes of deviation sd / sqrt(D), minimised here to the last digit."""
    weight = np.random.default_rng(1).uniform(0.5, 2, 3000).astype(np.float32)
    x, folds = torch.from_numpy(case.x), folds_of(3000)
    objective = objective_of(case.feedback, weight=torch.from_numpy(weight))
    mean, (slopes, _, bias), losses, _ = fit_proven(x, None, objective, ("hidden", "constant"), folds, sd, ONES)
    losses = np.stack(losses)
    np.testing.assert_allclose(mean.weight, slopes.mean(0), rtol=1e-6)
    np.testing.assert_allclose(mean.bias, bias.mean(0), rtol=1e-6)
    held_out = np.zeros((2, 2))
    for fold in range(3):
        for k in range(2):
            rows = (case.feedback[:, 1 - k] == 1) & (folds != fold)
            held = (case.feedback[:, 1 - k] == 1) & (folds == fold)
            acted, w = case.feedback[:, k] == 1, weight.astype(float)
            rate = (np.sum(w[rows & acted]) + 0.5) / (np.sum(w[rows]) + 1)
            constant = np.log(rate / (1 - rate))
            logit = np.full(held.sum(), constant)
            held_out[0, k] += np.sum(w[held] * np.logaddexp(0, np.where(acted[held], -logit, logit)))
            if k == 0:
                judge = LogisticRegression(C=sd**2 / 4, tol=1e-10, max_iter=5000)
                judge.fit(case.x[rows].astype(float), acted[rows], w[rows])
                np.testing.assert_allclose(slopes[fold, k], judge.coef_[0], atol=5e-3)
                np.testing.assert_allclose(bias[fold, k], judge.intercept_[0], atol=5e-3)
                logit = judge.decision_function(case.x[held].astype(float))
            else:
                assert not slopes[fold, k].any() and bias[fold, k] == pytest.approx(constant, abs=1e-5)
            held_out[1, k] += np.sum(w[held] * np.logaddexp(0, np.where(acted[held], -logit, logit)))
    np.testing.assert_allclose(losses, held_out, rtol=1e-3)
    assert losses[1, 0] < losses[0, 0] and losses[1, 1] == losses[0, 1]


def test_features_have_slopes_of_their_own(case) -> None:
    x, z = torch.from_numpy(case.x), torch.from_numpy(case.x[:, :2] * [1, -1]).float()
    objective, folds = objective_of(case.feedback), folds_of(3000)
    mean, (slopes, feature_slopes, _), *_ = fit_proven(x, z, objective, ("hidden", "features"), folds, 1.0, ONES)
    assert slopes.shape == (3, 2, 4) and feature_slopes.shape == (3, 2, 2)
    assert slopes[:, 0].all() and feature_slopes.all() and not slopes[:, 1].any()
    rows = case.feedback[:, 0] == 1
    judge = LogisticRegression(C=1 / 2, tol=1e-10, max_iter=5000).fit(z.numpy()[rows], case.feedback[rows, 1])
    np.testing.assert_allclose(mean.feature_weight[1], judge.coef_[0], atol=0.03)  # of all rows, not a mean over folds
    logits = mean.logits(x, z)
    want = x @ mean.weight.T + z @ mean.feature_weight.T + mean.bias
    torch.testing.assert_close(logits, want)


def test_a_share_is_a_prior_deviation_of_its_own_for_each_feature(case) -> None:
    """The same as features in these units under an even prior."""
    x, folds, share = torch.from_numpy(case.x), folds_of(3000), torch.tensor([2.0, 0.5, 1.0, 0.5])
    objective, designs = objective_of(case.feedback), ("hidden", "hidden")
    mean, each, losses, _ = fit_proven(x, None, objective, designs, folds, 0.5, share)
    scaled, _, same, _ = fit_proven(x * share.sqrt(), None, objective, designs, folds, 0.5, ONES)
    torch.testing.assert_close(mean.weight, scaled.weight * share.sqrt())
    torch.testing.assert_close(each[0].mean(0), mean.weight)
    np.testing.assert_allclose(losses, same)
    assert (mean.weight - fit_proven(x, None, objective, designs, folds, 0.5, ONES)[0].weight).abs().max() > 0.01


def test_the_share_that_predicts_actions_is_taken() -> None:
    """Propensities that depend on the few directions in which the embedding varies most, and 200 others."""
    rng = np.random.default_rng(0)
    spread = np.concatenate([np.full(3, 5.0), np.full(200, 0.1)])
    x = rng.normal(size=(4000, 203)).astype(np.float32)
    m = sigmoid(x[:, :3] @ rng.normal(size=(3, 2)) * 1.5)
    feedback = ((rng.random((4000, 2)) < m) & (rng.random(4000) < 0.5)[:, None]).astype(np.int8)
    arguments = (None, objective_of(feedback), ("hidden", "hidden"), torch.zeros(4000, 2), folds_of(4000))
    errors = {}
    for name, deviations in (("raw", spread), ("even", np.ones(203))):
        given = torch.from_numpy(deviations.astype(np.float32))
        found = fit_propensities(torch.from_numpy(x), given, *arguments, estimator="two-step", sds=(1.0,))
        errors[name] = np.abs(sigmoid(found.propensities.logits(torch.from_numpy(x)).numpy()) - m).mean()
    assert errors["raw"] < 0.7 * errors["even"]


def test_known_signals_are_left_out(case) -> None:
    mean, *_ = fit_proven(
        torch.from_numpy(case.x), None, objective_of(case.feedback), ("known", "hidden"), folds_of(3000), 1.0, ONES
    )
    assert not mean.weight[0].any() and not mean.bias[0] and mean.weight[1].all()


def test_a_factor_multiplies_the_propensities() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    plain = Propensities(("hidden", "hidden"), torch.ones(2, 3), torch.zeros(2, 0), torch.tensor([0.5, -1.0]))
    scaled = Propensities(*list(vars(plain).values())[:4], factor=torch.tensor([0.6, 1.0]))
    m, corrected = plain.logits(x).sigmoid(), scaled.logits(x).sigmoid()
    torch.testing.assert_close(corrected[:, 0], 0.6 * m[:, 0])
    torch.testing.assert_close(corrected[:, 1], m[:, 1], rtol=0, atol=0)


def test_networks_start_from_the_linear_propensities_and_stay_where_these_are_right(case) -> None:
    x, folds, objective = torch.from_numpy(case.x), folds_of(3000), objective_of(case.feedback)
    mean, each, *_ = fit_proven(x, None, objective, ("hidden", "constant"), folds, 1.0, ONES)
    more = add_networks(
        mean, each, x, None, objective, folds, (8,), Training(64, 0.01, 0.1, 4, 2), torch.Generator().manual_seed(0)
    )
    assert len(more.networks) == 3
    torch.testing.assert_close(more.logits(x)[:, 1], mean.logits(x)[:, 1], rtol=0, atol=0)  # constant it stays
    moved = more.logits(x)[:, 0] - mean.logits(x)[:, 0]
    assert 0 < moved.abs().mean() < 0.3


def test_networks_find_what_is_curved() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(6000, 2)).astype(np.float32)
    m = sigmoid(3 * (np.abs(x[:, :1]) - 0.8))
    feedback = np.column_stack([random.random(6000) < 0.5, random.random(6000) < m[:, 0]])
    objective, folds = objective_of(feedback), folds_of(6000, 2)
    mean, each, *_ = fit_proven(torch.from_numpy(x), None, objective, ("known", "hidden"), folds, 1.0, ONES[:2])
    more = add_networks(
        mean,
        each,
        torch.from_numpy(x),
        None,
        objective,
        folds,
        (16,),
        Training(64, 0.02, 0.0, 15, 5),
        torch.Generator(),
    )
    errors = [np.abs(one.logits(torch.from_numpy(x))[:, 1].sigmoid().numpy() - m[:, 0]).mean() for one in (mean, more)]
    assert errors[0] > 0.2 and errors[1] < 0.08
    assert isinstance(more.networks[0], Network) and not more.logits(torch.from_numpy(x))[:, 0].any()


# --- which estimator each signal gets ------------------------------------------------------------------------------


def steps(case, designs, estimator="auto", feedback=None, known=None):
    feedback = case.feedback if feedback is None else feedback
    x = torch.from_numpy(case.x)
    known = torch.zeros(feedback.shape) if known is None else known
    return fit_propensities(
        x, ONES, None, objective_of(feedback), designs, known, folds_of(len(x)), estimator=estimator, sds=(1.0,)
    )


def test_each_signal_gets_the_estimator_that_its_coactions_allow() -> None:
    """Signal 3 acts in rows of its own: two steps for the others alone, and of signal 3 the level remains open."""
    case = make(3000, 4, polarity=(1, 1, 1), slopes=(1, 1, 0))
    apart = case.feedback.copy()
    apart[apart[:, :2].any(axis=1), 2] = 0
    found = steps(case, ("auto", "auto", "auto"), feedback=apart)
    propensities = found.propensities
    assert propensities.designs == ("hidden", "hidden", "constant") and found.bends
    assert found.open_level.tolist() == [0, 0, 1] and found.two_steps == (True, True, False)
    assert [part.shape for part in found.by_fold] == [(3, 3, 4), (3, 3, 0), (3, 3)]
    designs = ("hidden", "hidden", "known")
    x, objective, folds = torch.from_numpy(case.x), objective_of(apart), folds_of(3000)
    alone, *_ = fit_proven(x, None, objective, designs, folds, 1.0, ONES, sharing=found.sharing)
    torch.testing.assert_close(propensities.weight, alone.weight)
    torch.testing.assert_close(propensities.bias[:2], alone.bias[:2])
    assert propensities.bias[2] != 0


def test_joint_is_asked_for(case) -> None:
    found = steps(case, ("hidden", "constant"), "joint")
    assert found.propensities.designs == ("hidden", "constant") and found.open_level.tolist() == [0, 1]
    assert found.two_steps == (False, False) and not found.bends
    assert found.propensities.weight[0].all() and not found.propensities.weight[1].any()
    for mean, each in zip(
        (found.propensities.weight, found.propensities.feature_weight, found.propensities.bias),
        found.by_fold,
        strict=True,
    ):
        torch.testing.assert_close(each.mean(0), mean)


def penalised(case, rows: np.ndarray, parameters: list[Tensor], reward_sd: float, sd: float) -> Tensor:
    """What `fit_joint` minimises over some rows, from the definition of the marginal likelihood, in float64."""
    reward, reward_bias, weight, bias = parameters
    x = torch.from_numpy(case.x[rows]).double()
    s, t = x @ reward + reward_bias, x @ weight.T + bias
    g, m = s.sigmoid()[:, None], t.sigmoid()
    acted = torch.from_numpy(case.feedback[rows] == 1)
    silent = torch.log(1 - g[:, 0] * (1 - (1 - m).prod(1)))
    some = g[:, 0].log() + torch.where(acted, m, 1 - m).log().sum(1)
    d = case.x.shape[1]
    prior = d * (reward**2).sum() / reward_sd**2 + d * (weight**2).sum() / sd**2 + (bias**2).sum() / BIAS_SD**2
    return -torch.where(acted.any(1), some, silent).mean() + prior / (2 * len(s))


def minimum(case, rows: np.ndarray, reward_sd: float, sd: float) -> tuple[Tensor, Tensor]:
    """Weights and biases of the propensities that minimise it, from zero."""
    leaves = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in (4, (), (2, 4), 2)]
    optimizer = torch.optim.LBFGS(leaves, max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = penalised(case, rows, leaves, reward_sd, sd)
        value.backward()
        return value

    optimizer.step(closure)
    return leaves[2].detach(), leaves[3].detach()


def test_the_joint_fits_are_minima_of_the_penalised_likelihood(case) -> None:
    """Each without its fold, for every prior of the reward that is tried: one of them is what comes out."""
    objective, x, folds = objective_of(case.feedback), torch.from_numpy(case.x), folds_of(3000, 2)
    mean, (weight, _, bias) = fit_joint(x, None, objective, ("hidden", "hidden"), torch.zeros(3000, 2), folds, sd=0.5)
    torch.testing.assert_close(mean.weight, weight.mean(0))
    off = []
    for reward_sd in REWARD_SDS:
        wants = [minimum(case, folds != fold, reward_sd, 0.5) for fold in (0, 1)]
        found = [torch.cat([got.flatten(), level]) for got, level in zip(weight, bias, strict=True)]
        expected = [torch.cat([want.flatten(), level]) for want, level in wants]
        pairs = zip(found, expected, strict=True)
        off.append(max(float((one - two).abs().max()) for one, two in pairs))
    assert min(off) < 0.01 < max(off)
    assert (weight[0] - weight[1]).abs().max() > 0.02  # they have not seen the same rows


def test_known_propensities_stay_in_the_joint_fit(case) -> None:
    """Only the other signal is fitted, and with the truth beside it."""
    known = torch.from_numpy(np.log(case.m / (1 - case.m))).float()
    known[:, 1] = 0
    propensities = steps(case, ("known", "hidden"), "joint", known=known).propensities
    assert not propensities.weight[0].any() and not propensities.bias[0]
    m = propensities.logits(torch.from_numpy(case.x)).sigmoid()[:, 1].numpy()
    assert np.abs(m - case.m[:, 1]).mean() < 0.05
