"""A fit over shards, as each process of a torchrun does it.

python -m tests.embeddings.sharded_fit FOLDER CASE, whose embeddings are the arrays FOLDER/*.npy.
"""

import os
import sys
from pathlib import Path

import numpy as np

from irm_fast.embeddings import blocks
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from tests.embeddings.embedding_cases import make, model

ROWS, BLOCK = 1500, 400
_USERS = np.random.default_rng(1).integers(250, size=ROWS)
_ACTIVITY = np.random.default_rng(2).normal(size=250)[_USERS]
_FEATURES = np.random.default_rng(3).normal(size=(ROWS, 2)).astype(np.float32)
LOG = make(ROWS, 4, activity=_ACTIVITY)
THREE = make(ROWS, 4, polarity=(1, 1, 1), slopes=(1, 1, 1))
CLICKED = make(ROWS, 4, misclick_rate=0.05)
_NAMES = [f"user {user}" for user in _USERS]
_SOME = np.where(np.arange(ROWS) % 4, -1, LOG.preferred)
CASES = {
    "two signals": (LOG.feedback, {}, {}),
    "one signal": (LOG.feedback[:, :1], {}, {}),
    "one signal, labels": (LOG.feedback[:, :1], {}, {"preference": _SOME}),
    "features": (LOG.feedback, {}, {"propensity_features": _FEATURES}),
    "features alone": (LOG.feedback[:, :1], {"propensity_design": "features"}, {"propensity_features": _FEATURES}),
    "joint": (LOG.feedback, {"estimator": "joint", "propensity_design": "hidden"}, {}),
    "misclicks": (CLICKED.feedback, {"misclick_rate": 0.05}, {}),
    "known": (LOG.feedback, {"propensity_design": "known"}, {"propensity": LOG.m}),
    "order": (THREE.feedback, {"after": {1: 0}}, {}),
    "users": (LOG.feedback, {}, {"users": _NAMES, "times": np.arange(ROWS) * 60.0}),
    "groups, weights": (LOG.feedback, {}, {"groups": _NAMES, "sample_weight": np.arange(ROWS) % 5 / 2}),
    "networks": (LOG.feedback, {"hidden_layers": (4,), "max_epochs": 3, "learning_rate": 0.02}, {}),
}


def fitted(case: str, embeddings: object) -> tuple[EmbeddingRewardModel, dict[str, np.ndarray]]:
    """The model that is fitted to a case, and its numbers."""
    feedback, settings, more = CASES[case]
    fit = model(n_folds=2, **settings).fit(embeddings, feedback, **more)
    found = {"reward": fit.decision_function(LOG.x), "held_out": fit.held_out_decision_}
    found |= {"propensity": fit.training_propensity_, "nll": np.array(fit.held_out_nll_)}
    if fit.is_linear_:
        found["lower"] = fit.predict_interval(LOG.x)[0]
    return fit, found


def main(folder: str, *cases: str) -> None:
    blocks.ROWS = BLOCK
    for case in cases:
        fit, found = fitted(case, folder)
        rank = os.environ.get("RANK", "0")
        np.savez(Path(folder) / f"{case}.{rank}.npz", kind=fit.diagnosis_.kind, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
