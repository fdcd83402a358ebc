import numpy as np
import pytest
from sklearn import metrics as judge

from irm_fast.diagnostics.metrics import operating_points, reward_metrics

nan = float("nan")


def sample(n, ties=False, seed=0):
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=n) * 2
    preference = (rng.random(n) < 1 / (1 + np.exp(-logit - 0.3))).astype(np.int8)
    return np.round(logit) if ties else logit, preference


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [2, 17, 5000])
def test_against_scikit_learn(n, ties):
    logit, preference = sample(n, ties)
    preference[:2] = 0, 1
    probability = 1 / (1 + np.exp(-logit))
    got = reward_metrics(logit, preference)
    assert got["n"] == n and "pair_accuracy" not in got
    expected = {
        "mae": judge.mean_absolute_error(preference, probability),
        "rmse": judge.mean_squared_error(preference, probability) ** 0.5,
        "r2": judge.r2_score(preference, probability),
        "auroc": judge.roc_auc_score(preference, logit),
        "nll": judge.log_loss(preference, probability),
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-10, abs=1e-12), name


def test_calibration_error_by_hand():
    # Bins of width 1/15: two rows of 0.5 (one preferred) in the 8th, one of 0.9 in the 14th, 1.0 in the last.
    logit = np.array([0.0, 0.0, np.log(9), 100.0])
    got = reward_metrics(logit, np.array([1, 0, 0, 1]))
    assert got["ece"] == pytest.approx((2 * abs(0.5 - 0.5) + 1 * 0.9 + 1 * 0) / 4)
    logit, preference = sample(4000)
    probability = 1 / (1 + np.exp(-logit))
    observed, predicted = np.zeros(15), np.zeros(15)
    for p, y in zip(probability, preference, strict=True):
        observed[int(p * 15)] += y
        predicted[int(p * 15)] += p
    assert reward_metrics(logit, preference)["ece"] == pytest.approx(np.abs(observed - predicted).sum() / 4000)


def test_extreme_logits_keep_their_likelihood():
    got = reward_metrics(np.array([800.0, -800.0, 800.0]), np.array([1, 0, 0]))
    assert got["nll"] == pytest.approx(800 / 3) and got["mae"] == pytest.approx(1 / 3)
    assert np.isfinite(list(got.values())).all()


def test_pair_accuracy():
    logit = np.array([2.0, 1.0, 0.0, 5.0, 3.0, 3.0, 9.0, 1.0, 2.0])
    preference = np.array([1, 0, 1, 0, 1, 0, 1, 1, 1])
    pair = np.array([4, 4, 0, 0, 7, 7, -1, 2, 2])  # right, wrong, a tie, without a pair, both preferred
    assert reward_metrics(logit, preference, pair)["pair_accuracy"] == pytest.approx(1.5 / 3)
    order = np.random.default_rng(0).permutation(9)
    assert reward_metrics(logit[order], preference[order], pair[order])["pair_accuracy"] == pytest.approx(0.5)
    assert np.isnan(reward_metrics(logit[7:], preference[7:], pair[7:])["pair_accuracy"])
    assert "pair_accuracy" not in reward_metrics(logit, preference, np.full(9, -1))


def test_a_row_whose_partner_is_elsewhere_is_no_pair():
    got = reward_metrics(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 1]), np.array([1, 1, 2]))
    assert got["pair_accuracy"] == 1


def test_undefined_is_nan():
    got = reward_metrics(np.array([1.0, 2.0]), np.array([1, 1]))
    assert np.isnan(got["auroc"]) and np.isnan(got["r2"]) and np.isfinite(got["mae"])
    got = reward_metrics(np.zeros(0), np.zeros(0))
    assert got.pop("n") == 0 and np.isnan(list(got.values())).all()


def test_a_nan_logit_is_never_a_plausible_number():
    logit, preference = sample(20)
    logit[3] = nan
    got = reward_metrics(logit, preference, np.repeat(np.arange(10), 2))
    assert preference[2] != preference[3]
    assert got.pop("n") == 20 and np.isnan(list(got.values())).all()


@pytest.mark.parametrize(
    ("logit", "preference", "pair", "match"),
    [
        (np.zeros((2, 1)), np.zeros(2), None, r"\(2, 1\) and \(2,\)"),
        (np.zeros(2), np.zeros(3), None, r"\(3,\)"),
        (np.zeros(2), np.array([0, -1]), None, "expected 0 and 1"),
        (np.zeros(2), np.array([0, 1]), np.zeros(3), r"pair: got \(3,\)"),
        (np.zeros(3), np.array([0, 1, 1]), np.zeros(3, int), "pair: 0 has 3 rows"),
    ],
)
def test_bad_arguments(logit, preference, pair, match):
    with pytest.raises(ValueError, match=match):
        reward_metrics(logit, preference, pair)


def test_operating_points_by_hand():
    score = np.array([0.4, 0.1, 0.3, 0.2, 0.5])
    feedback = np.array([[1, 0, 0], [0, 1, 0], [1, -1, 0], [1, 1, 0], [1, 0, -1]])
    got = operating_points(score, feedback, shares=(0, 0.2, 0.4, 0.5, 1))
    assert [point["hidden"] for point in got] == [0, 0.2, 0.4, 0.5, 1]
    np.testing.assert_array_equal([point["threshold"] for point in got], [nan, 0.1, 0.2, 0.3, 0.5])
    lost = [[0, 0, nan], [0, 0.5, nan], [0.25, 1, nan], [0.375, 1, nan], [1, 1, nan]]
    np.testing.assert_allclose([point["lost"] for point in got], lost)


def test_operating_points_of_ties_and_of_no_rows():
    """Rows of equal scores are hidden alike: a constant score loses what it hides, whatever their order."""
    feedback = np.eye(10, dtype=int)[:, :2]
    for point in operating_points(np.zeros(10), feedback):
        assert point["lost"] == pytest.approx([point["hidden"]] * 2)
    ties = operating_points(np.round(np.arange(10) / 7), feedback, shares=(0.7,))
    assert ties[0]["lost"] == pytest.approx([1, 1]) and ties[0]["threshold"] == 1
    assert operating_points(np.arange(10), feedback, shares=(0.7,))[0]["threshold"] == 6  # 0.7 * 10 > 7 in floats
    assert operating_points(np.zeros(3), np.zeros((3, 0)))[0]["lost"] == []
    np.testing.assert_array_equal(operating_points(np.zeros(0), np.zeros((0, 1)), (0.5,))[0]["lost"], [nan])


def test_operating_points_of_a_good_score_lose_less_than_they_hide():
    rng = np.random.default_rng(0)
    rate = rng.random(20000)
    feedback = (rng.random(20000) < rate)[:, None].astype(int)
    got = operating_points(rate, feedback, shares=(0.1, 0.5))
    np.testing.assert_allclose([point["lost"][0] for point in got], [0.01, 0.25], atol=0.01)  # the integral of the rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": np.zeros(4)}, r"score and feedback: got shapes \(4,\) and \(3, 1\); expected"),
        ({"feedback": np.zeros(3)}, r"got shapes \(3,\) and \(3,\); expected \(N,\) and \(N, K\)"),
        ({"score": np.array([0, nan, nan])}, "score: got NaN in 2 rows"),
        ({"shares": (0.5, 1.5)}, r"shares: got \(0.5, 1.5\); expected numbers in \[0, 1\]"),
    ],
)
def test_operating_points_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        operating_points(**{"score": np.zeros(3), "feedback": np.zeros((3, 1)), **change})
