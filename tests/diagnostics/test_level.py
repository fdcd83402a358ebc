"""The level of a fit, its error, and the misclick rate that a log shows."""

import numpy as np
import pytest
from scipy.special import expit, logit

from irm_fast.diagnostics.level import _fitted, _Rows, refit_level
from irm_fast.diagnostics.subject import DiagnosedLog
from tests.diagnostics.made import ROWS, failed, make, sigmoid


def subject(made, misclick=(0.0, 0.0), polarity=(1, 1), preference=None):
    own = sigmoid(made.reward[:, None] * np.array(polarity))
    return DiagnosedLog(
        names=("copy", "share"),
        designs=("hidden", "hidden"),
        feedback=made.feedback.astype(np.int64),
        polarity=np.array(polarity),
        misclick=np.array(misclick),
        preference=np.full(len(own), -1) if preference is None else preference,
        users=np.arange(len(own)),
        known=np.full(made.feedback.shape, np.nan),
        own=own,
        propensity=sigmoid(made.propensity),
    )


def slow_loss(log, row, parameters):
    """The loss of a row, by the sum over both sides, entry by entry."""
    s = logit(log.own[:, 0]) * log.polarity[0]
    along = (s - s.mean()) / s.std()
    g = expit(np.exp(parameters[0]) * s[row] + parameters[1])
    total = 0.0
    for side, chance in ((1, g), (-1, 1 - g)):
        if log.preference[row] >= 0 and (log.preference[row] == 1) != (side == 1):
            continue
        for k in range(2):
            m = expit(logit(log.propensity[row, k]) + parameters[2 + k] + parameters[4 + k] * along[row])
            acts = m if log.polarity[k] == side else m * log.misclick[k]
            chance = chance * {1: acts, 0: 1 - acts, -1: 1.0}[log.feedback[row, k]]
        total += chance
    return -np.log(total)


@pytest.mark.parametrize("polarity", [(1, 1), (1, -1), (-1, -1)])
def test_losses_and_derivatives_are_those_of_the_definition(polarity):
    made = make(0, rows=600)
    made.feedback[::7, 0] = -1
    preference = np.where(np.arange(600) % 5 == 0, made.pleased, -1).astype(int)
    log = subject(made, (0.05, 0.2), polarity, preference)
    rows, parameters = _Rows(log), np.array([0.2, -0.1, 0.3, -0.4, 0.1, -0.2])
    losses, scores = rows.losses(parameters, log.misclick)
    assert losses[:80] == pytest.approx([slow_loss(log, row, parameters) for row in range(80)])
    for j in range(6):
        step = 1e-5 * np.eye(6)[j]
        ends = [rows.losses(parameters + sign * step, log.misclick)[0] for sign in (1, -1)]
        assert scores[:, j] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7)


def test_a_level_that_is_off_is_found_again_within_its_error():
    errors = []
    for seed in range(12):
        made = make(seed, rows=3600)
        made.reward, made.propensity = 0.7 * made.reward + 1, made.propensity - 0.8
        found = refit_level(subject(made), np.zeros(2))
        errors.append((found.mean - 0.5) / found.error)
        assert 0.005 < found.error < 0.05
    assert abs(np.mean(errors)) < 0.7
    assert 0.5 < np.std(errors) < 1.6


def test_the_fit_is_a_minimum():
    made = make(1, rows=2400)
    log = subject(made)
    rows = _Rows(log)
    found = _fitted(rows, log.misclick, np.zeros(6))
    best = rows.losses(found, log.misclick)[0].sum()
    for step in 0.1 * np.vstack([np.eye(6), -np.eye(6)]):
        assert rows.losses(found + step, log.misclick)[0].sum() > best - 0.05


def act_by_mistake(made, rate):
    made.act(pleased=made.pleased[:, None] | (made.rng.random((ROWS, 2)) < rate))


def check(found):
    return next(test for test in found.tests if test.name == "misclicks")


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_misclicks_that_nobody_declared_are_named(rate):
    for seed in range(2):
        made = make(seed)
        act_by_mistake(made, rate)
        found = made.diagnose()
        assert "misclicks" in failed(found)
        assert found.scale == "contradicted" and found.ranking != "contradicted"
        assert check(found).statistic == pytest.approx(rate, abs=0.1)
        assert "Declare a misclick rate near" in " ".join(found.remedies)
        assert found.sensitivity.mean_g_range[0] < 0.5 < found.sensitivity.mean_g_range[1]
        assert "misclicks" not in failed(made.diagnose(misclick_rate=(rate, rate)))


def test_misclicks_that_are_not_there_are_named():
    made = make(0)
    found = made.diagnose(misclick_rate=(0.2, 0.2))
    assert "misclicks" in failed(found)
    assert check(found).statistic < 0.1
    assert "better than the declared 0.2" in check(found).text
    assert check(made.diagnose(misclick_rate=(0.01, 0.01))).p_value == 1.0  # one in a hundred is no matter


def test_neither_activity_nor_taste_nor_lost_rows_look_like_misclicks():
    for seed in range(2):
        made = make(seed)
        assert check(made.diagnose()).result == "passed"
        u = made.rng.normal(size=made.users.max() + 1)[made.users]
        made.act(sigmoid(made.propensity + 1.5 * u[:, None]))
        made.fit()
        assert check(made.diagnose("users")).result == "passed"
        made = make(seed)
        made.keep((made.feedback == 1).any(axis=1) | (made.rng.random(ROWS) < 0.5))
        made.fit()
        assert check(made.diagnose()).result == "passed"
    few = make(0, rows=600)
    assert check(few.diagnose()).result == "too few data"
    assert check(make(0, signals=1).diagnose()).result == "not testable"
