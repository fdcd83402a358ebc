"""What happens where an assumption fails: signals that depend on each other."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.embeddings.estimator import EmbeddingRewardModel

ROWS, TEST = 20_000, 4000
SIGNALS = ("independent", "one menu", "nested", "duplicated")


def preferences_and_actions(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X (N, 16), preference (N,), feedback (N, 2); half of the responses please.

    Preference and propensities depend on three directions of x.
    """
    rng = np.random.default_rng([seed, 2])
    directions = np.random.default_rng(100).normal(size=(16, 3)) / 4
    X = rng.normal(size=(rows, 16)).astype(np.float32)
    part = X @ directions
    preference = rng.random(rows) < expit(2 * part[:, 0])
    active = rng.random((rows, 2)) < expit(1.2 * part[:, 1:] - 0.5)
    return X, preference.astype(int), (active & preference[:, None]).astype(int)


def tie(feedback: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    """Feedback (N, 2) of signals that were independent, tied: SIGNALS."""
    first, second = feedback.T
    if how == "one menu":  # a choice closes it: of two actions one is made
        both = (first * second).astype(bool)
        heads = rng.random(len(first)) < 0.5
        return np.column_stack([np.where(both & heads, 0, first), np.where(both & ~heads, 0, second)])
    second = {"independent": second, "nested": first * second, "duplicated": first}[how]
    return np.column_stack([first, second])


def fit_tied(how: str, seed: int, rows: int) -> dict[str, Any]:
    """Fits to two signals tied in a way of SIGNALS, and of their naive reward: linear rewards."""
    torch.set_num_threads(1)
    X, preference, feedback = preferences_and_actions(rows + TEST, seed)
    feedback = tie(feedback, how, np.random.default_rng([seed, 3]))
    any_acted = {"preference": feedback[:rows].any(axis=1).astype(int), "propensity": np.full((rows, 2), 0.5)}
    unseen = np.full((rows, 2), -1)
    naive = EmbeddingRewardModel((), "known", random_state=seed).fit(X[:rows], unseen, **any_acted)
    model = EmbeddingRewardModel((), random_state=seed).fit(X[:rows], feedback[:rows])
    logit = model.decision_function(X[rows:])
    span = model.diagnosis_.sensitivity.mean_g_range
    found = {
        "naive_auroc": naive.score(X[rows:], preference[rows:]),
        "mean_g": float(expit(logit).mean()),
        "true_mean_g": 0.5,
        "mean_g_range": None if span is None else list(span),
        "verdict": model.diagnosis_.kind,
        "failed": [test.name for test in model.diagnosis_.tests if test.result == "failed"],
    }
    return found | {name: reward_metrics(logit, preference[rows:])[name] for name in ("auroc", "r2")}


def signals_tied(pool: ProcessPoolExecutor, redraws: int, quick: bool) -> dict[str, Any]:
    """Way of being tied -> redraws."""
    jobs = {
        how: [pool.submit(fit_tied, how, seed, 1000 if quick else ROWS) for seed in range(redraws)] for how in SIGNALS
    }
    return {how: [job.result() for job in waiting] for how, waiting in jobs.items()}
