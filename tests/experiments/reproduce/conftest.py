"""What makes a comparison quick: few candidates, folds and entrants, small data."""

from __future__ import annotations

from functools import partial

import pytest

from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.optimize import Training, fit_map
from irm_fast.experiments.reproduce import contest, experiment, fitting
from irm_fast.experiments.reproduce.methods import (
    DEFAULT,
    EXPLICIT,
    KNOWN,
)
from irm_fast.experiments.reproduce.population import semi_synthetic


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few candidates, folds, iterations and epochs: what is tested here holds for any number."""
    patch = pytest.MonkeyPatch()
    for place in (fitting, contest):
        patch.setattr(place, "FOLDS", 2)
    patch.setattr(fitting, "REWARD_SDS", (2.0,))
    patch.setattr(fitting, "fit_map", partial(fit_map, iterations=20))
    patch.setattr(fitting, "Training", lambda: Training(max_epochs=2))
    small = {"hidden_layers": (), "n_folds": 2}
    patch.setattr(contest, "EmbeddingRewardModel", partial(EmbeddingRewardModel, **small))
    yield
    patch.undo()


@pytest.fixture
def few(monkeypatch):
    """Only some of the entrants."""
    keys = [
        ("naive", 1),
        (DEFAULT, 1),
        (KNOWN.name, 1),
        ("naive", 2),
        (DEFAULT, 2),
        (KNOWN.name, 2),
        (EXPLICIT.name, 0),
    ]
    monkeypatch.setattr(contest, "entrants", lambda signals: keys)
    return keys


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(experiment, "semi_synthetic", lambda rows, noise: semi_synthetic(rows, 8, noise))
