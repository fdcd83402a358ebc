"""Intervals of the reward: they cover the truth as often as they say, and know what they rest on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.exceptions import NotFittedError

from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.embeddings import uncertainty
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.objective import Objective
from tests.embeddings.embedding_cases import SMALL_NETWORK, Case, make, model


@pytest.fixture(scope="module")
def case() -> Case:
    return make(1500, 5)


@pytest.fixture(scope="module")
def fitted(case: Case) -> EmbeddingRewardModel:
    return model().fit(case.x, case.feedback)


def width(found: EmbeddingRewardModel, x: np.ndarray, level: float = 0.9) -> float:
    lower, upper = found.predict_interval(x, level)
    return float((upper - lower).mean())


def covered(seed: int, level: float = 0.9, known: bool = False, **world: Any) -> tuple[float, float]:
    """The share of rows whose true logit is in its interval, and the mean width, in a world of its own."""
    case = make(**{"n": 3000, "d": 8, "seed": seed, **world})
    settings = {"propensity_design": "known"} if known else {}
    found = model(polarity=world.get("polarity"), **settings)
    found.fit(case.x, case.feedback, propensity=case.m if known else None)
    lower, upper = found.predict_interval(case.x, level)
    truth = np.log(case.g / (1 - case.g))
    return float(((lower <= truth) & (truth <= upper)).mean()), float((upper - lower).mean())


@pytest.mark.parametrize("polarity", [(1, 1), (1, -1, 1, -1)])
def test_nine_of_ten_intervals_contain_the_truth(polarity: Sequence[int]) -> None:
    """The mean over 12 worlds has a standard error of about .025; without the part of the propensities it is .82."""
    slopes = (1,) * len(polarity)
    shares = [covered(seed, polarity=polarity, slopes=slopes)[0] for seed in range(12)]
    assert np.mean(shares) == pytest.approx(0.9, abs=0.065)


def test_the_error_of_the_mean_preference_is_that_of_redraws() -> None:
    """It has no bias to speak of, and its spread over 16 redraws is known to a fifth."""
    off = []
    for seed in range(16):
        case = make(3000, 6, seed=seed)
        found = model(n_folds=3).fit(case.x, case.feedback).diagnosis_.sensitivity
        assert found.mean_g is not None and found.mean_g_error is not None
        off.append((found.mean_g - case.g.mean()) / found.mean_g_error)
    assert abs(np.mean(off)) < 0.8
    assert 0.6 < np.std(off) < 1.5


def test_half_of_the_narrow_intervals_contain_it() -> None:
    assert np.mean([covered(seed, level=0.5)[0] for seed in range(10)]) == pytest.approx(0.5, abs=0.12)


def test_known_propensities_leave_less_to_doubt() -> None:
    free, known = ([covered(seed, known=given) for seed in range(8)] for given in (False, True))
    assert np.mean([share for share, _ in known]) == pytest.approx(0.9, abs=0.075)
    assert np.mean([size for _, size in known]) < 0.85 * np.mean([size for _, size in free])


def test_rows_of_one_user_that_repeat_each_other_tell_nothing_new(case: Case) -> None:
    """Four copies of each row: with their users, intervals are as wide as those of one copy, else half as wide."""
    once = width(model().fit(case.x, case.feedback, users=range(1500)), case.x)
    x, feedback, users = np.repeat(case.x, 4, axis=0), np.repeat(case.feedback, 4, axis=0), np.repeat(range(1500), 4)
    assert width(model().fit(x, feedback, groups=users), case.x) == pytest.approx(once, rel=0.15)
    assert width(model().fit(x, feedback), case.x) == pytest.approx(once / 2, rel=0.15)


def test_more_rows_tell_more() -> None:
    few, many = (np.mean([covered(seed, n=n)[1] for seed in range(4)]) for n in (2000, 8000))
    assert many == pytest.approx(few / 2, rel=0.2)


def test_the_middle_is_the_reward_and_the_level_sets_the_width(case: Case, fitted: EmbeddingRewardModel) -> None:
    lower, upper = fitted.predict_interval(case.x)
    assert lower.dtype == upper.dtype == np.float32 and lower.shape == (1500,)
    np.testing.assert_allclose((lower + upper) / 2, fitted.decision_function(case.x), atol=1e-5)
    assert width(fitted, case.x, 0.6827) == pytest.approx(width(fitted, case.x) / 1.645, rel=1e-3)
    assert width(fitted, 3 * case.x) > 2 * width(fitted, case.x)  # far from the log


def test_a_level_that_only_the_joint_likelihood_shows_widens_it() -> None:
    flat = make(4000, 5, slopes=(0, 0))
    one, m = flat.feedback[:, :1], flat.m[:, :1]
    joint = model(propensity_design="constant").fit(flat.x, one)
    known = model(propensity_design="known").fit(flat.x, one, propensity=m)
    assert width(joint, flat.x) > 1.3 * width(known, flat.x)


def test_features_of_the_propensities_count() -> None:
    features = np.random.default_rng(0).normal(size=(3000, 3))
    case = make(3000, 5, features=features)
    found = model(propensity_design="features").fit(case.x, case.feedback, propensity_features=features)
    known = model(propensity_design="known").fit(case.x, case.feedback, propensity=case.m)
    assert 1.02 * width(known, case.x) < width(found, case.x) < 2 * width(known, case.x)


def test_gradients_of_the_rows_by_differences() -> None:
    """Of every kind of row: missing feedback, labels, misclicks, both polarities, weights."""
    random = np.random.default_rng(0)
    rows, polarity, misclick = 200, (1, 1, -1), (0.0, 0.1, 0.05)
    feedback = random.integers(-1, 2, (rows, 3))
    feedback[:, 0] = np.minimum(feedback[:, 0], feedback[:, 2] < 1)  # no evidence for both sides
    preference = np.where(feedback[:, 0] == 1, -1, random.integers(-1, 2, rows))
    tensors = [torch.from_numpy(values.astype(np.int8)) for values in (feedback, preference)]
    objective = Objective(*tensors, torch.from_numpy(random.random(rows).astype(np.float32) + 0.5), polarity, misclick)
    reward, logits = torch.from_numpy(random.normal(size=rows)).float(), torch.from_numpy(random.normal(size=(rows, 3)))
    found = uncertainty._gradients(reward, logits.float(), objective, slice(0, rows))
    for k in range(3):
        step = torch.zeros(3).index_fill_(0, torch.tensor([k]), 1e-2)
        moved = [(logits + sign * step).float() for sign in (1, -1)]
        ends = [uncertainty._gradients(reward, values, objective, slice(0, rows)).reward for values in moved]
        torch.testing.assert_close(found.cross[:, k], (ends[0] - ends[1]) / 2e-2, atol=1e-4, rtol=1e-3)


def test_a_matrix_that_is_singular_but_for_rounding_is_factored() -> None:
    vector = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    singular = vector @ vector.T - 1e-7 * torch.eye(5, dtype=torch.float64)
    root = uncertainty._root(singular)
    torch.testing.assert_close(root @ root.T, singular, atol=1e-4, rtol=0)
    assert uncertainty._root(torch.full((2, 2), torch.nan)).isnan().any()  # and comes to an end


def test_saved_and_read(case: Case, fitted: EmbeddingRewardModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    again = EmbeddingRewardModel.load(tmp_path).predict_interval(case.x)
    np.testing.assert_array_equal(again, fitted.predict_interval(case.x))


def test_a_model_of_an_earlier_version_says_so(case: Case, fitted: EmbeddingRewardModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    path = tmp_path / "embedding_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name != "reward.factor"}, path)
    (tmp_path / MANIFEST).unlink()  # which earlier versions did not write
    assert json.loads((tmp_path / "embedding_model.json").read_text())["format"] == 1
    old = EmbeddingRewardModel.load(tmp_path)
    np.testing.assert_array_equal(old.decision_function(case.x), fitted.decision_function(case.x))
    with pytest.raises(ValueError, match="saved by a version that computed none; fit it again"):
        old.predict_interval(case.x)


def test_what_is_refused(case: Case, fitted: EmbeddingRewardModel) -> None:
    for level in (0.0, 1.0, 90):
        with pytest.raises(ValueError, match=f"level: got {level}; expected a probability"):
            fitted.predict_interval(case.x, level)
    with pytest.raises(ValueError, match=r"the reward is a network.* fit with hidden_layers=\(\)"):
        model(**SMALL_NETWORK).fit(case.x, case.feedback).predict_interval(case.x)
    with pytest.raises(NotFittedError):
        model().predict_interval(case.x)
