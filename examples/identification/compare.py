"""Variants of the estimator, the metrics they reach on a redraw of a world, and tables of these."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import expit, logit

from examples.identification.worlds import Draw, World, signals_of
from irm_fast import implicit_rm_loss
from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.experiments.report import ByMethod, method_table

NAIVE, KNOWN, TRUTH = "naive: any action", "known propensities", "ceiling: true g"


@dataclass(frozen=True)
class Variant:
    """One row of a table: a variant of `EmbeddingRewardModel`, or what it is compared with.

    Attributes:
        name: The name in the table.
        learns_from: "actions"; "any", where an action of any kind is taken for a label of 1 and silence for 0;
            "labels", the true preferences; "known", actions with the true propensities; "truth", g itself, no fit.
        settings: Parameters of `EmbeddingRewardModel`.
        signals: The number of signals, the first ones; None for all.
        features: Whether propensities may read the visible features of the text.
        prototype: A plain loop instead of the model, with one constant for each signal ("constant") or linear
            propensities ("free"); "" for the model.
    """

    name: str
    learns_from: Literal["actions", "any", "labels", "known", "truth"] = "actions"
    settings: Mapping[str, Any] = field(default_factory=dict)
    signals: int | None = None
    features: bool = False
    prototype: Literal["", "constant", "free"] = ""


def measure(world: World, variant: Variant, seed: int) -> dict[str, float]:
    """Fit a variant to a redraw of a world, and measure it on the clean test set.

    Returns:
        The metrics of `reward_metrics`, the mean error of g itself ("mae_g"), mean g as predicted and in truth, the
        rows of the log and in how many of them all signals act, and the seconds of the fit.
    """
    torch.set_num_threads(1)
    train, test = world.draw(seed)
    if variant.signals:
        train, test = signals_of(train, variant.signals), signals_of(test, variant.signals)
    start = time.perf_counter()
    predicted = _predict(train, test, variant, seed)
    seconds = time.perf_counter() - start
    g = expit(predicted)
    own = {"mae_g": float(np.abs(g - test.g).mean()), "mean_g": float(g.mean()), "true_mean_g": float(test.g.mean())}
    both = int((train.feedback == 1).all(axis=1).sum())
    log = {"rows": len(train.X), "coactions": both}
    return reward_metrics(predicted, test.preference) | own | log | {"seconds": seconds}


def _predict(train: Draw, test: Draw, variant: Variant, seed: int) -> np.ndarray:
    if variant.learns_from == "truth":
        return logit(np.clip(test.g, 1e-9, 1 - 1e-9))
    if variant.prototype:
        return plain_prototype(train, test, free=variant.prototype == "free", seed=seed)
    settings, fit, y = dict(variant.settings), {}, train.feedback
    if variant.learns_from in ("any", "labels"):
        labels = train.feedback.any(axis=1).astype(int) if variant.learns_from == "any" else train.preference
        y = np.full_like(train.feedback, -1)
        fit, settings["propensity_design"] = {"preference": labels, "propensity": np.full(y.shape, 0.5)}, "known"
    elif variant.learns_from == "known":
        fit, settings["propensity_design"] = {"propensity": train.m}, "known"
    if variant.features:
        fit["propensity_features"] = train.features
    return EmbeddingRewardModel(random_state=seed, **settings).fit(train.X, y, **fit).decision_function(test.X)


def plain_prototype(train: Draw, test: Draw, *, free: bool, seed: int, epochs: int = 20) -> np.ndarray:
    """Reward logits of two linear heads in the plainest loop: Adam, shuffled batches, a fixed number of epochs."""
    torch.manual_seed(seed)
    mean, scale = train.X.mean(axis=0), train.X.std(axis=0)
    x, feedback = torch.from_numpy((train.X - mean) / scale), torch.from_numpy(train.feedback)
    reward = torch.nn.Linear(x.shape[1], 1)
    propensity = torch.nn.Linear(x.shape[1] if free else 1, feedback.shape[1])
    optimizer = torch.optim.Adam([*reward.parameters(), *propensity.parameters()], lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(512):
            optimizer.zero_grad()
            seen = x[rows] if free else x.new_zeros(len(rows), 1)
            implicit_rm_loss(reward(x[rows]).squeeze(1), propensity(seen), feedback[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return reward(torch.from_numpy((test.X - mean) / scale)).squeeze(1).numpy()


COLUMNS = {"auroc": "AUROC", "r2": "R2", "mae": "MAE", "mae_g": "MAE of g", "mean_g": "mean g"}


def table(results: ByMethod) -> str:
    """A Markdown table with a row for each variant: mean and standard deviation over the redraws.

    The last column is the share of the distance of the mean AUROC from naive to known propensities that the variant
    closes; "-" where that distance is under two standard errors or 0.01.
    """
    return method_table(results, COLUMNS, last="closed", naive_of=lambda name: NAIVE, goal=KNOWN)
