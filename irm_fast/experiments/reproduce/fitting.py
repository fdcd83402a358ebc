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
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.embeddings.joint import BIAS_SD
from irm_fast.embeddings.optimize import REWARD_SDS, Training, fit_map, prior_shares, rows_where, train_network
from irm_fast.embeddings.parts import Network
from irm_fast.embeddings.reward_step import AUTO_LAYERS
from irm_fast.experiments.reproduce.facts import Actions, Inputs

FOLDS, PROPENSITY_SD = 5, 1.0
_READ = {"hidden": "x", "features": "z", "both": "both", "item": "item"}  # the inputs of each kind of propensity head
Known = TypeVar("Known", bound=Actions)  # what a method reads of a log
PropensityHead = Literal["", "constant", "hidden", "features", "both", "item"]


class Logits(NamedTuple):
    """The logits of n rows.

    Attributes:
        reward: (n,) float32.
        propensity: (n, K) float32; no columns where the method learns no propensity.
        lagged: Reward logits (n,) and propensity logits (n, K) by the weights at the start of the epoch, for methods
            whose posteriors come from there.
    """

    reward: Tensor
    propensity: Tensor
    lagged: tuple[Tensor, Tensor] | None = None


Loss = Callable[[Logits, Known], Tensor]


@dataclass(frozen=True)
class Method(Generic[Known]):
    """A way to learn from a log.

    Attributes:
        name: The name in tables.
        loss: The training objective of a batch: a scalar from its logits and what the method reads of its rows.
        judge: The held-out criterion; None for the loss.
        objective: What linear heads minimise, with the stationary points of the loss; None for the loss.
        reward_prior: The factor of the prior of the reward for linear heads.
        propensity: The head that is learned beside the reward, by what it reads: "hidden", the embedding; "features",
            the visible features; "both"; "item", the cluster; "constant", nothing. "" for no head.
        lagged: Whether posteriors come from the weights at the start of an epoch.
        sees: "each" signal for itself, or whether "any" of them acted.
    """

    name: str
    loss: Loss[Known]
    judge: Loss[Known] | None = None
    objective: Loss[Known] | None = None
    reward_prior: float = 1.0
    propensity: PropensityHead = ""
    lagged: bool = False
    sees: Literal["any", "each"] = "any"


@dataclass(frozen=True)
class Setting:
    """What all fits to one redraw share.

    Attributes:
        inputs: The inputs of the n rows of the log.
        spread: (D,) deviations of the embeddings before they were standardised.
        test_x: (m, D) standardised embeddings of the test set.
        folds: (n,) the fold of each row, from 0 to below `FOLDS`.
        seed: The seed of networks and batches.
    """

    inputs: Inputs
    spread: Tensor
    test_x: Tensor
    folds: np.ndarray
    seed: int


class Linear(nn.Module):
    """Linear heads, (n, D) to (n, O), whose weights are parameters in units of their prior deviations.

    Args:
        unit: (D,) the prior deviations.
        outputs: The number of heads, O.
    """

    def __init__(self, unit: Tensor, outputs: int) -> None:
        super().__init__()
        self.unit = unit
        self.units, self.bias = nn.Parameter(unit.new_zeros(outputs, len(unit))), nn.Parameter(unit.new_zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x @ (units * self.unit) for units in self.units], 1) + self.bias  # faster than one product


class Heads(nn.Module):
    """A head of the reward and, of the kind asked for, one of the propensities.

    Args:
        inputs: Rows such as the heads will read, for the shapes.
        kind: The propensity head, as in `Method.propensity`.
        level: (K,) propensity logits to start from.
        unit: (D,) prior deviations of linear weights, up to a factor; None for networks.
    """

    def __init__(self, inputs: Inputs, kind: PropensityHead, level: Tensor, unit: Tensor | None) -> None:
        super().__init__()
        self.kind, signals, visible = kind, len(level), torch.ones_like(inputs.z[0])
        self.reward: nn.Module = _head(inputs.x, unit, 1)
        self.propensity: nn.Module | None = None
        if kind in ("hidden", "both"):
            if unit is not None and kind == "both":
                unit = torch.cat([unit, visible])
            head = _head(getattr(inputs, _READ[kind]), unit, signals)
            self.propensity = head.zero_output() if isinstance(head, Network) else head
        elif kind == "features":
            self.propensity = Linear(visible, signals)
        elif kind == "item":
            self.propensity = nn.Embedding(inputs.items, signals)
            nn.init.zeros_(self.propensity.weight)
        self.level = nn.Parameter(level.clone(), requires_grad=bool(kind))

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Reward logits (n,) and propensity logits (n, K); (n, 0) without a propensity head."""
        reward = self.reward(inputs.x).squeeze(1)
        if not self.kind:
            return reward, reward.new_empty(len(reward), 0)
        if self.propensity is None:
            return reward, self.level.expand(len(reward), -1)
        read: Tensor = getattr(inputs, _READ[self.kind])
        return reward, self.propensity(read) + self.level

    def penalty(self, sd: float, reward_prior: float) -> Tensor:
        """Minus the log prior of linear heads.

        Args:
            sd: The prior deviation of a reward logit between responses.
            reward_prior: The factor of the prior of the reward.
        """
        assert isinstance(self.reward, Linear)
        total = reward_prior * _precision(self.reward.units, sd)
        if self.kind:
            total = total + (self.level**2).sum() / (2 * BIAS_SD**2)
        if isinstance(self.propensity, Linear):
            total = total + _precision(self.propensity.units, PROPENSITY_SD)
        if isinstance(self.propensity, nn.Embedding):
            total = total + (self.propensity.weight**2).sum() / (2 * PROPENSITY_SD**2)
        return total


def _head(read: Tensor, unit: Tensor | None, outputs: int) -> nn.Module:
    """A head that reads (n, D): linear with these prior deviations (D,), or a network where there are none."""
    return Network(read.shape[1], AUTO_LAYERS, outputs) if unit is None else Linear(unit, outputs)


def _precision(units: Tensor, sd: float) -> Tensor:
    """Minus the log prior of weights (O, D) under which a logit varies by `sd`."""
    return (units**2).sum() * units.shape[1] / (2 * sd**2)


@dataclass(frozen=True)
class Fit:
    """What a method came to.

    Attributes:
        held_out: (n,) float32, the reward logit of each row of the log by the fit that did not see it.
        test: (m,) float32, the reward logits of the test set.
        candidate: The name of the candidate that was chosen.
        scores: The held-out criterion of every candidate; smaller is better.
        seconds: How long it took.
    """

    held_out: np.ndarray
    test: np.ndarray
    candidate: str
    scores: dict[str, float]
    seconds: float


def fit(method: Method[Known], known: Known, setting: Setting) -> Fit:
    """Choose a candidate on the first fold, fit it without each fold, and average.

    Args:
        method: The method.
        known: What the method reads of the log.
        setting: What all fits to the log share.
    """
    start = time.perf_counter()

    # Candidates
    first = _Fold(method, known, setting, 0)
    priors, found = {}, {"network": first.network()}
    for share, variance in prior_shares(setting.spread).items():
        heads = None
        for sd in REWARD_SDS:  # from the strongest prior to the weakest, each starts where the last one ended
            name, unit = f"linear, {share}, sd {sd:g}", variance.sqrt()
            priors[name], found[name] = (unit, sd), (heads := first.linear(unit, sd, heads))
    scores = {name: first.judged(heads) for name, heads in found.items()}
    best = min(scores, key=lambda name: scores[name])

    # Folds
    folds = setting.folds
    held_out, test = np.empty(len(folds), np.float32), np.zeros(len(setting.test_x), np.float32)
    for fold in range(FOLDS):
        part, heads = first, found[best]
        if fold:
            part = _Fold(method, known, setting, fold)
            heads = part.network() if best == "network" else part.linear(*priors[best])
        with torch.no_grad():
            held_out[folds == fold] = heads.reward(part.held.x).squeeze(1)
            test += heads.reward(setting.test_x).squeeze(1).numpy() / FOLDS
    return Fit(held_out, test, best, scores, time.perf_counter() - start)


class _Fold(Generic[Known]):
    """A log without one fold, to fit to, and that fold, to judge on."""

    def __init__(self, method: Method[Known], known: Known, setting: Setting, fold: int) -> None:
        self.method, self.known, self.inputs = method, known, setting.inputs
        self.seed = FOLDS * setting.seed + fold
        device, inside = setting.inputs.x.device, setting.folds != fold
        self.index, self.held_index = rows_where(inside, device), rows_where(~inside, device)
        self.part, self.held = (self.inputs.take(index) for index in (self.index, self.held_index))
        self.batch, self.held_batch = (known.take(index) for index in (self.index, self.held_index))

    def heads(self, unit: Tensor | None) -> Heads:
        return Heads(self.inputs, self.method.propensity, self.known.level, unit)

    def judged(self, heads: Heads) -> float:
        """The held-out criterion."""
        with torch.no_grad():
            return float((self.method.judge or self.method.loss)(Logits(*heads(self.held)), self.held_batch))

    def linear(self, unit: Tensor, sd: float, start: Heads | None = None) -> Heads:
        """Linear heads of the smallest penalised objective, by L-BFGS."""
        heads = self.heads(unit)
        if start is not None:
            heads.load_state_dict(start.state_dict())
        objective = self.method.objective or self.method.loss

        def loss() -> Tensor:
            prior = heads.penalty(sd, self.method.reward_prior) / len(self.index)
            return objective(Logits(*heads(self.part)), self.batch) + prior

        fit_map([parameter for parameter in heads.parameters() if parameter.requires_grad], loss)
        return heads

    def network(self) -> Heads:
        """Networks by AdamW in shuffled batches, until the held-out criterion rises six times in a row."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            heads = self.heads(None)
        lagged: tuple[Tensor, Tensor] | None = None

        def loss(heads: Heads, rows: Tensor) -> Tensor:
            old = None if lagged is None else (lagged[0].index_select(0, rows), lagged[1].index_select(0, rows))
            reward, propensity = heads(self.inputs.take(rows))
            return self.method.loss(Logits(reward, propensity, old), self.known.take(rows))

        def before_epoch() -> None:
            nonlocal lagged
            if self.method.lagged:
                with torch.no_grad():
                    lagged = heads(self.inputs)

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
