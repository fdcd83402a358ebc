"""The statistics behind a diagnosis, each against what it is worth by definition."""

from itertools import permutations

import numpy as np
import pytest
from scipy.special import expit, logit

from irm_fast.diagnostics.calibration import calibrate, refit
from irm_fast.diagnostics.cross_row import cross_row_dependence
from irm_fast.diagnostics.sensitivity import rank_correlation, refit_agreement, shared_activity


def test_cross_row_by_its_definition():
    """Sums over pairs of different rows of a user, of recorded entries, at rates scaled to the actions."""
    rng = np.random.default_rng(0)
    feedback = rng.integers(-1, 2, (60, 2))
    rates = rng.uniform(0.2, 0.8, (60, 2))
    rates[7, 1] = np.nan
    users = [None if i % 11 == 0 else f"user {i % 13}" for i in range(60)]
    counts = (feedback >= 0) & np.isfinite(rates) & np.array([[u is not None] for u in users])
    p = np.where(counts, rates, 0)
    p = np.minimum(p * np.where(counts, feedback, 0).sum(0) / p.sum(0), 1)
    e = np.where(counts, feedback - p, 0)
    pairs = [(i, k) for i, k in permutations(range(60), 2) if users[i] is not None and users[i] == users[k]]
    rho = sum(np.outer(e[i], e[k]) for i, k in pairs) / sum(np.outer(p[i], p[k]) for i, k in pairs)
    found = cross_row_dependence(feedback, rates, users)
    np.testing.assert_allclose(found.rho, rho)
    present = {i for i in range(60) if counts[i].any()}
    assert found.pairs == len([pair for pair in pairs if set(pair) <= present]) // 2
    assert found.users == 13
    assert (found.interval[..., 0] < found.rho).all()
    assert (found.rho < found.interval[..., 1]).all()


def active_users(sd, seed, users=3_000, each=10):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), each)
    base = rng.normal(-0.5, 0.7, (len(user), 2))
    g = expit(rng.normal(size=len(user)))
    grid = np.random.default_rng(9).normal(size=400)
    m = expit(base + sd * rng.normal(size=users)[user, None])
    mean = expit(base[:, :, None] + sd * grid).mean(axis=2)
    acted = (rng.random(len(user)) < g)[:, None] & (rng.random(m.shape) < m)
    rate = (g[:, None, None] * expit(base[:, :, None] + sd * grid)).mean(axis=0)  # (2, 400), of an activity
    truth = rate.prod(axis=0).mean() / rate.mean(axis=1).prod() - 1
    return acted.astype(int), g[:, None] * mean, user.tolist(), truth


def test_cross_row_measures_shared_activity():
    """And intervals of 95% hold the truth about as often."""
    inside = []
    for seed in range(12):
        feedback, rates, users, truth = active_users(1.0, seed, users=1_000)
        found = cross_row_dependence(feedback, rates, users)
        assert found.z > 8
        low, high = found.interval[0, 1]
        inside.append(low < truth < high)
        assert high - low < 0.2
        assert cross_row_dependence(feedback, rates, users, slack=0.5).z < 0
    assert sum(inside) >= 10


def test_cross_row_of_users_alike_is_standard_normal():
    """Also where predictions are off by a factor, and for some rows."""
    z = []
    for seed in range(60):
        feedback, rates, users, _ = active_users(0.0, seed, users=200)
        off = np.random.default_rng(seed).choice([0.5, 0.9], (len(users), 1))
        z.append(cross_row_dependence(feedback, rates * off, users).z)
    assert abs(np.mean(z)) < 3 / np.sqrt(60)
    assert 0.75 < np.std(z) < 1.3


def test_rows_without_a_user_have_no_say():
    rng = np.random.default_rng(3)
    feedback, rates = rng.integers(-1, 2, (200, 2)), rng.uniform(0.2, 0.8, (200, 2))
    users = [None if number % 3 == 0 else f"user {number % 40}" for number in range(200)]
    known = np.array([user is not None for user in users])
    found = cross_row_dependence(feedback, rates, users)
    alone = cross_row_dependence(feedback[known], rates[known], [user for user in users if user is not None])
    assert found.z == alone.z and (found.rho == alone.rho).all() and found[3:] == alone[3:]
    assert found.users > 20 and abs(found.z) > 0.01


def test_no_user_twice_is_no_evidence():
    found = cross_row_dependence(np.ones((5, 2), int), np.full((5, 2), 0.5), [None, None, "a", "b", "c"])
    assert np.isnan(found.z)
    assert found.pairs == 0
    assert np.isnan(found.rho).all()


def test_refit_finds_the_rate_and_keeps_what_is_right():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2))
    rate = expit(-1 + x[:, 0] + 0.5 * x[:, 1] ** 2)
    acted = (rng.random(20_000) < rate).astype(int)
    assert np.abs(refit(acted, np.full(20_000, 0.3), x) - rate).mean() < 0.01
    assert np.abs(refit(acted, rate, x) - rate).mean() < 0.01
    none = refit(np.zeros(20_000, int), np.full(20_000, 0.01), x)
    assert np.isfinite(none).all()
    assert none.max() < 0.01


def test_calibration_by_decile():
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.05, 0.6, 10_000)
    found = [calibrate((rng.random(10_000) < rate).astype(int), rate).statistic for _ in range(40)]
    assert np.mean(found) == pytest.approx(10, abs=2.5)  # chi-square with ten degrees of freedom
    off = calibrate((rng.random(10_000) < rate).astype(int), rate * 0.8)
    assert off.statistic > 50
    assert off.rows.sum() == 10_000
    assert (off.observed > off.predicted).mean() > 0.8
    assert len(calibrate(np.arange(20) % 2, np.full(20, 0.5)).rows) == 2


@pytest.mark.parametrize("sd", [0.5, 1.0, 2.0])
def test_shared_activity_is_solved(sd):
    """From the truth to what a fit under independence would see, and back."""
    rng = np.random.default_rng(0)
    g, base = rng.uniform(0.1, 0.9, 200), rng.normal(-0.5, 1, (200, 2, 1))
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    m = expit(base + sd * node)
    p, p_12 = g[:, None] * (m @ weight) / weight.sum(), g * (m.prod(axis=1) @ weight) / weight.sum()
    fitted = p.prod(axis=1) / p_12
    found = shared_activity(fitted, *(p / fitted[:, None]).T, sd)
    assert fitted.mean() < g.mean() - 0.01
    assert found.mean_g == pytest.approx(g.mean(), abs=2e-3)
    assert found.rank_correlation == pytest.approx(rank_correlation(fitted, g), abs=2e-3)
    assert found.impossible == 0


def test_as_much_activity_as_the_log_cannot_have():
    found = shared_activity(np.full(3, 0.9), np.full(3, 0.3), np.full(3, 0.3), 2.0)
    assert found.impossible == 1
    assert found.mean_g == pytest.approx(1)
    assert np.isnan(found.rank_correlation)


def test_agreement_of_refits():
    one = np.arange(5.0)
    assert refit_agreement(np.stack([one, one**3, logit(one / 9 + 0.1)])) == pytest.approx(1)
    assert refit_agreement(np.stack([one, -one])) == pytest.approx(-1)
    assert np.isnan(refit_agreement(one[None]))
