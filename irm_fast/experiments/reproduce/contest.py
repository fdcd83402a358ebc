"""One redraw of a log: every method is fitted to it and measured on the clean test set."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irm_fast.data.signals import known_logits
from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.joint import start_level
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.parts import Scaler
from irm_fast.embeddings.reward_step import calibration
from irm_fast.experiments.reproduce.fitting import FOLDS, Fit, Method, Rows, fit
from irm_fast.experiments.reproduce.methods import (
    BASELINES,
    BOUNDS,
    DEFAULT,
    DEFAULT_FEATURES,
    EXPLICIT,
    FORMS,
    ITEMS,
    KNOWN,
    NAIVE,
)
from irm_fast.experiments.reproduce.population import Log, Redraw, Truth
from irm_fast.losses import nuisances

Key = tuple[str, int]  # name of a method, and how many signals it is given; 0: none, explicit labels
OURS = (DEFAULT, DEFAULT_FEATURES)


def entrants(signals: int) -> list[Key]:
    """Every method with every number of signals, in the order of the table."""
    names = [method.name for method in (*BASELINES, *FORMS)] + [*OURS, KNOWN.name]
    return [(name, count) for count in range(1, signals + 1) for name in names] + [(EXPLICIT.name, 0)]


class Facts:
    """A log and what can be estimated from it; each estimate is made when a method asks for it first.

    feedback: (n, K) int8.  acted: (n,) int8, whether any signal acted.  item: (n,) cluster of the embedding.
    popularity, imputed: (n,) float32 propensities and preferences, see `nuisances`.  class_prior, action_rate: numbers.
    width, level: K, and (K,) logits to start propensities from, under which half of the responses please.
    """

    def __init__(self, field: Field, feedback: np.ndarray) -> None:
        self._field = field
        self.feedback = torch.from_numpy(feedback)
        self.acted = (self.feedback == 1).any(1).to(torch.int8)
        self.width = feedback.shape[1]
        self.action_rate = float(self.acted.float().mean())

    @cached_property
    def objective(self) -> Objective:
        ones = torch.ones(len(self.feedback))
        return Objective(self.feedback, None, ones, (1,) * self.width, (0.0,) * self.width)

    @cached_property
    def level(self) -> Tensor:
        return start_level(self.objective)

    @cached_property
    def naive(self) -> Fit:
        with torch.enable_grad():  # whoever asks first may be judging
            return self._field.fit(NAIVE, self)

    @cached_property
    def class_prior(self) -> float:
        return nuisances.class_prior(self.naive.held_out, self.acted.numpy())

    @cached_property
    def popularity(self) -> Tensor:
        m = nuisances.popularity_propensity(self.acted.numpy(), self._field.rows.item.numpy())
        return torch.from_numpy(m).float()

    @cached_property
    def imputed(self) -> Tensor:
        chance = torch.sigmoid(torch.from_numpy(self.naive.held_out)).numpy()
        return torch.from_numpy(nuisances.imputed_preference(chance, self.popularity.numpy())).float()


class Bounds(Facts):
    """The same with the truth.  known: (n, K) true propensity logits.  preference: (n,) float32."""

    def __init__(self, field: Field, feedback: np.ndarray, truth: Truth) -> None:
        super().__init__(field, feedback)
        self.known = known_logits(torch.from_numpy(truth.propensity[:, : self.width]))
        self.preference = torch.from_numpy(truth.preference).float()


@dataclass(frozen=True)
class Default(Fit):
    """Of `EmbeddingRewardModel`; it keeps no scores.  propensity: (n, K) logits."""

    propensity: np.ndarray


class Field:
    """Embeddings, items and folds of a redraw: what all its fits share."""

    def __init__(self, log: Log, test_X: np.ndarray, seed: int) -> None:
        device = torch.device("cpu")
        scaler, features = Scaler.of(log.X, device), Scaler.of(log.features, device)
        self.seed, self.log, self._scale = seed, log, scaler.scale
        self._test_X, self.test_x = test_X, scaler(test_X)
        item = torch.from_numpy(_clusters(log.X, seed))
        self.rows = Rows(scaler(log.X), features(log.features), item, ITEMS)
        shuffled = np.random.default_rng([seed, 7]).permutation(log.group.max() + 1)
        self.folds = shuffled[log.group] % FOLDS

    def fit(self, method: Method, facts: Facts) -> Fit:
        return fit(method, facts, self.rows, self._scale, self.test_x, self.folds, self.seed)

    def default(self, count: int, features: bool) -> Default:
        """`EmbeddingRewardModel` as it comes, on the first so many signals; with or without features of the text."""
        log = self.log.signals(count)
        read: dict[str, Any] = {"propensity_features": log.features} if features else {}
        start = time.perf_counter()
        model = EmbeddingRewardModel(device="cpu", random_state=self.seed)
        model.fit(log.X, log.feedback, groups=log.group.tolist(), **read)
        seconds = time.perf_counter() - start
        m = np.clip(model.predict_propensity(log.X, **read), 1e-6, 1 - 1e-6)
        chosen = "linear" if model.is_linear_ else "network"
        test = model.decision_function(self._test_X)
        return Default(model.held_out_decision_, test, chosen, {}, seconds, np.log(m) - np.log1p(-m))


class Contest:
    """All entrants on one redraw."""

    def __init__(self, redraw: Redraw, seed: int) -> None:
        self._redraw, self.field = redraw, Field(redraw.log, redraw.test_X, seed)
        self._methods = {method.name: method for method in (*BASELINES, *FORMS, *BOUNDS)}
        self._facts: dict[tuple[str, int], Facts] = {}
        self._defaults: dict[tuple[int, bool], Default] = {}

    def measured(self, key: Key) -> dict[str, Any]:
        """Metrics on the test set, as fitted and equally calibrated, the candidates' held-out scores, and seconds."""
        name, count = key
        fitted = self._fit(name, count)
        slope, shift = self._calibration(fitted.held_out, count or self._redraw.log.feedback.shape[1])
        metrics = {
            kind: reward_metrics(logit, self._redraw.test_preference)
            for kind, logit in (("raw", fitted.test), ("calibrated", slope * fitted.test + shift))
        }
        budget = {"candidates": len(fitted.scores), "candidate": fitted.candidate, "scores": fitted.scores}
        return {"method": name, "signals": count, **metrics, **budget, "seconds": fitted.seconds}

    def _fit(self, name: str, count: int) -> Fit:
        if name in OURS:
            return self._default(count, features=name == DEFAULT_FEATURES)
        method = self._methods[name]
        facts = self.facts(method.sees, count)
        return facts.naive if method is NAIVE else self.field.fit(method, facts)

    def facts(self, sees: str, count: int) -> Facts:
        """What a method sees of the first so many signals; see `Method.sees`."""
        if (sees, count) not in self._facts:
            feedback = self._redraw.log.feedback[:, : count or None]
            if sees == "truth":
                self._facts[sees, count] = Bounds(self.field, feedback, self._redraw.truth)
            else:
                seen = feedback.max(axis=1, keepdims=True) if sees == "any" else feedback
                self._facts[sees, count] = Facts(self.field, seen)
        return self._facts[sees, count]

    def _default(self, count: int, features: bool) -> Default:
        if (count, features) not in self._defaults:
            self._defaults[count, features] = self.field.default(count, features)
        return self._defaults[count, features]

    def _calibration(self, held_out: np.ndarray, count: int) -> tuple[float, float]:
        """Slope and shift of the greatest implicit likelihood, under the default model's propensities for everybody."""
        propensity = torch.from_numpy(self._default(count, features=False).propensity).float()
        objective = self.facts("each", count).objective
        return calibration(torch.from_numpy(held_out), propensity, objective)


def _clusters(X: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    return MiniBatchKMeans(min(ITEMS, len(X)), n_init=1, random_state=seed).fit(X).labels_.astype(np.int64)
