"""Methods, what they reach on a redraw of a world, and tables of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logit

from examples.identification.worlds import Draw, World, signals_of
from irm_fast import implicit_rm_loss
from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.experiments.report import markdown_table

NAIVE, KNOWN, TRUTH = "naive: any action", "known propensities", "ceiling: true g"


@dataclass(frozen=True)
class Method:
    """One row of a table.

    evidence: "actions"; "any", where an action of any kind is taken for a label of 1 and silence for 0; "labels", the
    true preferences; "known", actions with the true propensities; "truth", g itself, no fit.
    settings: of `EmbeddingRewardModel`.  signals: the first so many; None: all.  features: propensities may read the
    visible features of the text.  prototype: instead of the model a plain loop, with one constant a signal
    ("constant") or linear propensities ("free").
    """

    name: str
    evidence: str = "actions"
    settings: Mapping[str, Any] = field(default_factory=dict)
    signals: int | None = None
    features: bool = False
    prototype: str = ""


def measure(world: World, method: Method, seed: int) -> dict[str, float]:
    """`reward_metrics` on the clean test set of a redraw, mae_g: mean error of g itself, mean_g, and seconds."""
    torch.set_num_threads(1)
    train, test = world.draw(seed)
    if method.signals:
        train, test = signals_of(train, method.signals), signals_of(test, method.signals)
    start = time.perf_counter()
    predicted = _predict(train, test, method, seed)
    seconds = time.perf_counter() - start
    g = expit(predicted)
    own = {"mae_g": float(np.abs(g - test.g).mean()), "mean_g": float(g.mean()), "true_mean_g": float(test.g.mean())}
    both = int((train.feedback == 1).all(axis=1).sum())
    log = {"rows": len(train.X), "coactions": both}
    return reward_metrics(predicted, test.preference) | own | log | {"seconds": seconds}


def _predict(train: Draw, test: Draw, method: Method, seed: int) -> np.ndarray:
    if method.evidence == "truth":
        return logit(np.clip(test.g, 1e-9, 1 - 1e-9))
    if method.prototype:
        return plain_prototype(train, test, free=method.prototype == "free", seed=seed)
    settings, fit, y = dict(method.settings), {}, train.feedback
    if method.evidence in ("any", "labels"):
        labels = train.feedback.any(axis=1).astype(int) if method.evidence == "any" else train.preference
        y = np.full_like(train.feedback, -1)
        fit, settings["propensity_design"] = {"preference": labels, "propensity": np.full(y.shape, 0.5)}, "known"
    elif method.evidence == "known":
        fit, settings["propensity_design"] = {"propensity": train.m}, "known"
    if method.features:
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


Results = Mapping[str, Sequence[Mapping[str, float]]]  # method -> redraw -> metric -> value
COLUMNS = {"auroc": "AUROC", "r2": "R2", "mae": "MAE", "mae_g": "MAE of g", "mean_g": "mean g"}


def table(results: Results) -> str:
    """Markdown: a row a method, mean and standard deviation over the redraws.

    Last column: the share of the distance of the mean AUROC from naive to known propensities that the method closes,
    "-" where that distance is under two standard errors or 0.01.
    """
    lines = [["method", *COLUMNS.values(), "closed"]]
    for name, redraws in results.items():
        lines.append([name, *(_cell([redraw[key] for redraw in redraws]) for key in COLUMNS), _closed(results, name)])
    return markdown_table(lines)


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _closed(results: Results, name: str) -> str:
    value, low, high = (np.array([redraw["auroc"] for redraw in results[key]]) for key in (name, NAIVE, KNOWN))
    distance = high - low
    noise = 2 * distance.std(ddof=1) / np.sqrt(len(distance)) if len(distance) > 1 else 0.0
    return f"{(value - low).mean() / distance.mean():.0%}" if distance.mean() > max(noise, 0.01) else "-"
