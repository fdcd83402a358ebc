"""One procedure for every method: the same heads, the same candidates, the same folds; only the loss differs.

Candidates are eight linear heads (four prior deviations of the reward logit; this prior and that of propensities are
spread evenly over the standardised features, or by their raw variances) and a network. Each is fitted without the first
fold and judged on it by the method's own implicit criterion; the best is fitted without each other fold, and the logits
are averaged, as in `EmbeddingRewardModel`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.embeddings.joint import BIAS_SD
from irm_fast.embeddings.optimize import REWARD_SDS, Training, fit_map, prior_shares, rows_where, train_network
from irm_fast.embeddings.parts import Network
from irm_fast.embeddings.reward_step import AUTO_LAYERS

FOLDS, PROPENSITY_SD = 5, 1.0
Lagged = tuple[Tensor, Tensor] | None
Loss = Callable[[Tensor, Any, Any, Lagged], Tensor]  # reward logits, propensity logits or None, `Batch`, lagged logits


@dataclass(frozen=True)
class Method:
    """A way to learn from a log.

    loss: the training objective of a batch.  judge: the held-out criterion; None: the loss.  objective: what linear
    heads minimise, with the stationary points of the loss; None: the loss.  reward_prior: by what their prior of the
    reward is multiplied.  propensity: the head that is learned beside the reward: "" none, constant, hidden, features,
    item.  lagged: posteriors come from the weights at the start of an epoch.  sees: "any", whether any signal acted;
    "each" signal; or "truth" besides.
    """

    name: str
    loss: Loss
    judge: Loss | None = None
    objective: Loss | None = None
    reward_prior: float = 1.0
    propensity: str = ""
    lagged: bool = False
    sees: str = "any"


@dataclass(frozen=True)
class Rows:
    """Inputs of the heads, n rows.  x: (n, D) and z: (n, F) standardised.  item: (n,) from 0 to below `items`."""

    x: Tensor
    z: Tensor
    item: Tensor
    items: int

    def take(self, rows: Tensor) -> Rows:
        x, z, item = (value.index_select(0, rows) for value in (self.x, self.z, self.item))
        return Rows(x, z, item, self.items)


class Batch:
    """What is known of some rows: an attribute of `known` with a value a row is gathered, any other handed on."""

    def __init__(self, known: Any, rows: Tensor) -> None:
        self._known, self._rows = known, rows

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._known, name)
        return value.index_select(0, self._rows) if isinstance(value, Tensor) and value.dim() else value


class Linear(nn.Module):
    """Linear heads, (n, D) to (n, O), whose weights are parameters in units of their prior deviations, `unit` (D,)."""

    def __init__(self, unit: Tensor, outputs: int) -> None:
        super().__init__()
        self.unit = unit
        self.units, self.bias = nn.Parameter(unit.new_zeros(outputs, len(unit))), nn.Parameter(unit.new_zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x @ (units * self.unit) for units in self.units], 1) + self.bias  # faster than one product


class Heads(nn.Module):
    """Reward and, of the kind asked for, propensity: logits (n,) and (n, K).

    unit: (D,) prior deviations of linear weights, up to a factor; None: networks.  level: (K,) to start at.
    """

    def __init__(self, rows: Rows, kind: str, level: Tensor, unit: Tensor | None) -> None:
        super().__init__()
        self.kind, width, signals = kind, rows.x.shape[1], len(level)
        self.reward: Any = Network(width, AUTO_LAYERS, 1) if unit is None else Linear(unit, 1)
        if kind == "hidden":
            self.propensity: Any = (
                Network(width, AUTO_LAYERS, signals).zero_output() if unit is None else Linear(unit, signals)
            )
        elif kind == "features":
            self.propensity = Linear(torch.ones_like(rows.z[0]), signals)
        elif kind == "item":
            self.propensity = nn.Embedding(rows.items, signals)
            nn.init.zeros_(self.propensity.weight)
        self.level = nn.Parameter(level.clone(), requires_grad=bool(kind))

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        s = self.reward(rows.x).squeeze(1)
        if not self.kind:
            return s, None
        if self.kind == "constant":
            return s, self.level.expand(len(s), -1)
        read = {"hidden": rows.x, "features": rows.z, "item": rows.item}[self.kind]
        return s, self.propensity(read) + self.level

    def penalty(self, sd: float, reward_prior: float) -> Tensor:
        """Minus the log prior of linear heads; sd: prior deviation of a reward logit between responses."""
        total = reward_prior * _precision(self.reward.units, sd)
        if self.kind:
            total = total + (self.level**2).sum() / (2 * BIAS_SD**2)
        if self.kind in ("hidden", "features"):
            total = total + _precision(self.propensity.units, PROPENSITY_SD)
        if self.kind == "item":
            total = total + (self.propensity.weight**2).sum() / (2 * PROPENSITY_SD**2)
        return total


def _precision(units: Tensor, sd: float) -> Tensor:
    """Minus the log prior of weights (O, D) under which a logit varies by `sd`."""
    return (units**2).sum() * units.shape[1] / (2 * sd**2)


@dataclass(frozen=True)
class Fit:
    """held_out: (n,) logit of each row of the log by the part that did not see it.  test: (m,) logits of other rows.

    candidate: the one chosen.  scores: held-out criterion of every candidate; smaller is better.  seconds: it took.
    """

    held_out: np.ndarray
    test: np.ndarray
    candidate: str
    scores: dict[str, float]
    seconds: float


def fit(method: Method, known: Any, rows: Rows, spread: Tensor, test_x: Tensor, folds: np.ndarray, seed: int) -> Fit:
    """Choose a candidate on the first fold, fit it without each fold, and average.

    known: has the attributes that the method's loss reads of a `Batch`.  spread: (D,) deviations of the embeddings
    before they were standardised.  test_x: (m, D).  folds: (n,) from 0 to below 5.
    """
    start = time.perf_counter()
    first = _Fold(method, known, rows, folds, 0, seed)
    priors, found = {}, {"network": first.network()}
    for share, variance in prior_shares(spread).items():
        heads = None
        for sd in REWARD_SDS:  # from the strongest prior to the weakest, each starts where the last one ended
            name, unit = f"linear, {share}, sd {sd:g}", variance.sqrt()
            priors[name], found[name] = (unit, sd), (heads := first.linear(unit, sd, heads))
    scores = {name: first.judged(heads) for name, heads in found.items()}
    best = min(scores, key=lambda name: scores[name])
    held_out, test = np.empty(len(folds), np.float32), np.zeros(len(test_x), np.float32)
    for fold in range(FOLDS):
        part, heads = first, found[best]
        if fold:
            part = _Fold(method, known, rows, folds, fold, seed)
            heads = part.network() if best == "network" else part.linear(*priors[best])
        with torch.no_grad():
            held_out[folds == fold] = heads.reward(part.held.x).squeeze(1)
            test += heads.reward(test_x).squeeze(1).numpy() / FOLDS
    return Fit(held_out, test, best, scores, time.perf_counter() - start)


class _Fold:
    """A log without one fold, to fit to, and that fold, to judge on."""

    def __init__(self, method: Method, known: Any, rows: Rows, folds: np.ndarray, fold: int, seed: int) -> None:
        self.method, self.known, self.rows, self.seed = method, known, rows, FOLDS * seed + fold
        device = rows.x.device
        self.index, self.held_index = (rows_where(part, device) for part in (folds != fold, folds == fold))
        self.part, self.held = rows.take(self.index), rows.take(self.held_index)
        self.batch, self.held_batch = (Batch(known, index) for index in (self.index, self.held_index))

    def heads(self, unit: Tensor | None) -> Heads:
        return Heads(self.rows, self.method.propensity, self.known.level, unit)

    def judged(self, heads: Heads) -> float:
        with torch.no_grad():
            s, t = heads(self.held)
            return float((self.method.judge or self.method.loss)(s, t, self.held_batch, None))

    def linear(self, unit: Tensor, sd: float, start: Heads | None = None) -> Heads:
        """Linear heads of the smallest penalised objective, by L-BFGS."""
        heads = self.heads(unit)
        if start is not None:
            heads.load_state_dict(start.state_dict())
        objective = self.method.objective or self.method.loss

        def loss() -> Tensor:
            s, t = heads(self.part)
            prior = heads.penalty(sd, self.method.reward_prior) / len(self.index)
            return objective(s, t, self.batch, None) + prior

        fit_map([parameter for parameter in heads.parameters() if parameter.requires_grad], loss)
        return heads

    def network(self) -> Heads:
        """Networks by AdamW in shuffled batches, until the held-out criterion rises six times in a row."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            heads, lagged = self.heads(None), None

        def loss(heads: Heads, rows: Tensor) -> Tensor:
            old = None if lagged is None else (lagged[0].index_select(0, rows), lagged[1].index_select(0, rows))
            s, t = heads(self.rows.take(rows))
            return self.method.loss(s, t, Batch(self.known, rows), old)

        def before_epoch() -> None:
            nonlocal lagged
            if self.method.lagged:
                with torch.no_grad():
                    lagged = heads(self.rows)

        train_network(
            heads,
            loss,
            self.index,
            self.held_index,
            Training(),
            torch.Generator().manual_seed(self.seed),
            judge=self.judged,
            before_epoch=before_epoch,
        )
        return heads
