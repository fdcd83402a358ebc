"""Training of heads on embeddings in memory."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

import irm_fast
from irm_fast.embeddings.optimize import Training, fit_map, one_epoch, rows_where, train_network
from irm_fast.embeddings.parts import Network, Scaler
from irm_fast.embeddings.reward_step import PropensityLogits, fit_reward
from tests.embeddings.embedding_cases import make
from tests.embeddings.test_two_step import draw, folds_of, objective_of


def test_losses_of_some_rows() -> None:
    """Against the float64 reference, with evidence of every kind but the contradictory."""
    objective, generator = draw(), torch.Generator().manual_seed(0)
    objective.feedback[:, 1].clamp_(max=0), objective.feedback[:, 3].clamp_(max=0)
    objective.preference[(objective.feedback == 1).any(1)] = -1
    rows = torch.randperm(400, generator=generator)[:150]
    s, t = torch.randn(400, generator=generator), torch.randn(400, 4, generator=generator)
    options = {"polarity": objective.polarity, "misclick_rate": objective.misclick_rate, "backend": "reference"}
    fields = {name: getattr(objective, name)[rows] for name in ("preference", "weight")}
    for reduction in ("mean", "none"):
        want = irm_fast.implicit_rm_loss(
            s[rows].double(), t[rows].double(), objective.feedback[rows], **fields, **options, reduction=reduction
        )
        got = objective.loss(s[rows], t[rows], rows, reduction)
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-5, atol=1e-6)


def test_linear_losses_count_the_rows_they_are_asked_for() -> None:
    case = make(300, 5)
    weight = torch.rand(300, generator=torch.Generator().manual_seed(0))
    objective, x = objective_of(case.feedback, weight=weight), torch.from_numpy(case.x)
    counted = torch.from_numpy(folds_of(300) > 0)
    w, t = torch.ones(5) / 3, torch.from_numpy(np.log(case.m / (1 - case.m))).float()
    got = objective.linear_loss(x, w, torch.tensor(0.3), t, counted.float())
    want = objective.loss((x @ w + 0.3)[counted], t[counted], counted.nonzero()[:, 0])
    torch.testing.assert_close(got, want)


def test_the_reward_meets_propensities_only_in_silent_rows() -> None:
    """So rows that two_step reads for propensities have no second say in the reward: no cross-fitting is needed."""
    case = make(500, 3, polarity=(1, 1, -1), slopes=(1, 1, 1))
    objective, generator = objective_of(case.feedback, polarity=(1, 1, -1)), torch.Generator().manual_seed(0)
    rows, s = torch.arange(500), torch.randn(500, generator=generator)

    def gradient(t: Tensor) -> Tensor:
        leaf = s.clone().requires_grad_()
        return torch.autograd.grad(objective.loss(leaf, t, rows, "sum"), leaf)[0]

    t = torch.randn(500, 3, generator=generator)
    moved = (gradient(t) - gradient(t + torch.randn(500, 3, generator=generator))).abs()
    acted = (objective.feedback == 1).any(1)
    assert 100 < acted.sum() < 400
    assert (moved[acted] == 0).all() and (moved[~acted] > 1e-6).all()


def test_an_epoch_visits_every_row_once_in_new_order() -> None:
    seen: list[Tensor] = []
    network = Network(2, (), 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def loss(network: Network, rows: Tensor) -> Tensor:
        seen.append(rows)
        return network(torch.ones(len(rows), 2)).mean()

    rows, generator = torch.arange(3, 50, 2), torch.Generator().manual_seed(0)
    for _ in range(2):
        one_epoch(network, loss, rows, optimizer, 10, generator)
    assert [len(batch) for batch in seen] == [10, 10, 4] * 2
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    for order in (first, second):
        assert torch.equal(order.sort().values, rows)
    assert not torch.equal(first, second)


def test_the_weights_that_are_best_on_held_out_rows_are_kept() -> None:
    """The held-out loss falls for three epochs and then rises: training stops `patience` later and goes back."""
    network, states, curve = Network(1, (), 1), [], iter([9.0, 5, 4, 3, 6, 7, 2])

    def loss(network: Network, rows: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return network(torch.ones(len(rows), 1)).mean()
        states.append(copy.deepcopy(network.state_dict()))
        return torch.tensor(next(curve))

    train_network(network, loss, torch.arange(4), torch.arange(4, 6), Training(2, 0.1, 0.0, 50, 2), torch.Generator())
    assert len(states) == 6  # before training, and after each of five epochs
    for name, value in network.state_dict().items():
        assert torch.equal(value, states[3][name]) and not torch.equal(value, states[5][name])


def test_networks() -> None:
    network = Network(3, (5, 4), 2)
    x = torch.randn(7, 3)
    first, second, last = (network.layers[i] for i in (0, 2, 4))
    want = last(second(first(x).relu()).relu())
    torch.testing.assert_close(network(x), want)
    assert network(x).shape == (7, 2) and not network.zero_output()(x).any()
    assert Network(3, (), 1)(x).shape == (7, 1)


def test_fit_map_finds_the_minimum() -> None:
    target = torch.tensor([1.0, -2.0, 3.0])
    parameter = torch.zeros(3)
    fit_map([parameter], lambda: ((parameter - target) ** 2 * torch.tensor([1.0, 10.0, 0.1])).sum())
    torch.testing.assert_close(parameter, target, atol=1e-3, rtol=0)
    assert not parameter.requires_grad


def test_rows_where() -> None:
    assert rows_where(np.array([False, True, True]), torch.device("cpu")).tolist() == [1, 2]


def test_scaler() -> None:
    x = np.random.default_rng(0).normal([5, -3, 0, 1e-3, 0], [2, 0.1, 0, 0, 1e-12], size=(2000, 5)).astype(np.float32)
    x[:, 3] = 0.1  # not exact in binary
    scaled = Scaler.of(x, torch.device("cpu"))(x).numpy()
    np.testing.assert_allclose(scaled[:, [0, 1, 4]].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled[:, [0, 1, 4]].std(axis=0), 1, atol=1e-4)
    assert not scaled[:, 2:4].any()


@pytest.mark.parametrize("layers", [(), (6,)])
def test_rewards_of_folds(layers: tuple[int, ...]) -> None:
    """The model is the mean of the fits; each row's held-out logit is by the fit without it."""
    case = make(600, 4)
    x, folds = torch.from_numpy(case.x), folds_of(600)
    logits = torch.from_numpy(np.log(case.m / (1 - case.m))).float()
    training = Training(64, 0.01, 0.1, 3, 2)

    def fit(feedback: np.ndarray):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        propensity = PropensityLogits(logits, logits)
        return fit_reward(x, x.std(0), propensity, objective_of(feedback), folds, layers, training, generator)

    reward = fit(case.feedback)
    assert len(reward.networks) == (3 if layers else 0) and reward.each.shape == (3, 600)
    torch.testing.assert_close(reward.logits(x), reward.each.mean(0), atol=1e-5, rtol=1e-5)
    assert torch.equal(reward.held_out, reward.each[torch.from_numpy(folds), torch.arange(600)])
    rows = torch.arange(600)
    torch.testing.assert_close(reward.losses, objective_of(case.feedback).loss(reward.held_out, logits, rows, "none"))
    if not layers:  # a network is chosen by its held-out rows, among its epochs
        changed = case.feedback.copy()
        changed[folds == 1] = 1 - changed[folds == 1]
        other = fit(changed)
        torch.testing.assert_close(other.each[1], reward.each[1], atol=0.2, rtol=0)
        assert (other.each[0] - reward.each[0]).abs().mean() > 0.2
