"""How often intervals of the reward contain the true reward, where assumptions hold and where users differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from irm_fast.embeddings.estimator import EmbeddingRewardModel

ROWS, WIDTHS, ROWS_A_USER, TEST = (4000, 10_000), (8, 16, 64), 10, 2000
KINDS = ("no users", "users", "users with alike responses", "users differ in activity", "users differ in taste")


def draw(rows: int, width: int, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X (N, D), feedback (N, 2), users (N,), true reward logit (N,); the last `TEST` rows are those of other users.

    Reward and propensities are linear in x, logits of deviation 1.5 and 1. Users with alike responses share half of the
    variance of x. Users who differ move a logit by a normal variable of deviation 1: of all propensities, or of the
    preference, where the true reward is that of the user in the middle.
    """
    rng = np.random.default_rng([seed, rows, width])
    users = np.arange(rows + TEST) // ROWS_A_USER
    X, own = rng.normal(size=(len(users), width)), rng.normal(size=(users[-1] + 1, width))
    if kind == "users with alike responses":
        X = (X + own[users]) / np.sqrt(2)
    directions = rng.normal(size=(3, width))
    part = X @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T
    offset = rng.normal(size=users[-1] + 1)[users]
    active, taste = (offset * (kind == f"users differ in {what}") for what in ("activity", "taste"))
    preferred = rng.random(len(users)) < expit(1.5 * part[:, 0] + taste)
    acts = rng.random((len(users), 2)) < expit(part[:, 1:] - 0.5 + active[:, None])
    return X.astype(np.float32), (acts & preferred[:, None]).astype(int), users, 1.5 * part[:, 0]


def measure(rows: int, width: int, kind: str, seed: int) -> dict[str, float]:
    """The share of test rows whose true logit is in its 90% interval, and the mean standard deviation of the logit."""
    torch.set_num_threads(1)
    X, feedback, users, truth = draw(rows, width, kind, seed)
    model = EmbeddingRewardModel(hidden_layers=(), random_state=seed)
    model.fit(X[:rows], feedback[:rows], users=None if kind == "no users" else users[:rows])
    lower, upper = model.predict_interval(X[rows:])
    inside = (lower <= truth[rows:]) & (truth[rows:] <= upper)
    return {"coverage": float(inside.mean()), "deviation": float((upper - lower).mean() / 2 / 1.6449)}


def intervals(pool: ProcessPoolExecutor, redraws: int, quick: bool) -> dict[str, list[dict[str, float]]]:
    """Every kind of users, number of rows and width; each redraw is a world of its own."""
    sizes = [(1500, 8)] if quick else [(rows, width) for rows in ROWS for width in WIDTHS]
    jobs = {
        f"{kind}, {rows:,} x {width}": [pool.submit(measure, rows, width, kind, seed) for seed in range(redraws)]
        for kind in KINDS
        for rows, width in sizes
    }
    return {name: [job.result() for job in waiting] for name, waiting in jobs.items()}


def coverage_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A Markdown table: mean coverage over the redraws, its standard error, and the mean deviation of a logit."""
    lines = ["| world | coverage of 90% intervals | deviation of a logit |", "|---|---|---|"]
    for name, redraws in found.items():
        coverage, deviation = (np.array([redraw[key] for redraw in redraws]) for key in ("coverage", "deviation"))
        error = coverage.std(ddof=1) / np.sqrt(len(coverage)) if len(coverage) > 1 else np.nan
        lines.append(f"| {name} | {coverage.mean():.3f} ± {error:.3f} | {deviation.mean():.2f} |")
    return "\n".join(lines)
