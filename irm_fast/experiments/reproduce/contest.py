"""One redraw of a log: every method is fitted to it and measured on the clean test set."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from irm_fast.data.signals import known_logits
from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.joint import start_level
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.parts import Scaler
from irm_fast.embeddings.reward_step import calibration
from irm_fast.experiments.reproduce.facts import Actions, ActionsAndEstimates, ActionsAndTruth, Inputs
from irm_fast.experiments.reproduce.fitting import FOLDS, Fit, Known, Method, Setting, fit
from irm_fast.experiments.reproduce.methods import (
    BASELINES,
    BOUNDS,
    BY_NAME,
    DEFAULT,
    DEFAULT_FEATURES,
    EXPLICIT,
    FORMS,
    ITEMS,
    KNOWN,
    LOWER,
    NAIVE,
    ON_ESTIMATES,
    PENALISED,
    WITH_FEATURES,
)
from irm_fast.experiments.reproduce.picks import best_of
from irm_fast.experiments.reproduce.population import Log, Redraw
from irm_fast.losses import nuisances

Key = tuple[str, int]  # name of a method, and how many signals it is given; 0: none, explicit labels
OURS = (DEFAULT, DEFAULT_FEATURES, LOWER)
LOWER_LEVEL = 0.9  # of the intervals whose lower ends are a reward


def entrants(signals: int) -> list[Key]:
    """Every method with every number of signals, in the order of the table."""
    learned = (*BASELINES[1:], *FORMS, *WITH_FEATURES)
    names = [NAIVE.name, PENALISED, *(method.name for method in learned), *OURS, KNOWN.name]
    return [(name, count) for count in range(1, signals + 1) for name in names] + [(EXPLICIT.name, 0)]


@dataclass(frozen=True)
class Default(Fit):
    """The fit of `EmbeddingRewardModel`, which keeps no scores.

    Attributes:
        propensity: (n, K) the propensity logits of the rows of the log.
        lower: (m,) float32, the lower ends of the intervals of the test set; None where the reward is a network, which
            has none.
    """

    propensity: np.ndarray
    lower: np.ndarray | None


class Field:
    """Embeddings, items and folds of a redraw: what all its fits share.

    Args:
        log: The log.
        test_X: (m, D) float32, the embeddings of the test set.
        seed: The seed of clusters, folds and fits.
    """

    def __init__(self, log: Log, test_X: np.ndarray, seed: int) -> None:
        device = torch.device("cpu")
        scaler, features = Scaler.of(log.X, device), Scaler.of(log.features, device)
        self.log, self._test_X = log, test_X
        self.item = _clusters(log.X, seed)
        inputs = Inputs(scaler(log.X), features(log.features), torch.from_numpy(self.item), ITEMS)
        shuffled = np.random.default_rng([seed, 7]).permutation(log.group.max() + 1)
        folds = shuffled[log.group] % FOLDS
        self.setting = Setting(inputs, scaler.scale, scaler(test_X), folds, seed)

    def fit(self, method: Method[Known], known: Known) -> Fit:
        """Fit a method to what it reads of the log."""
        return fit(method, known, self.setting)

    def default(self, count: int, features: bool) -> Default:
        """`EmbeddingRewardModel` as it comes, on the first so many signals; with or without features of the text."""
        log = self.log.signals(count)
        read: dict[str, Any] = {"propensity_features": log.features} if features else {}
        start = time.perf_counter()
        model = EmbeddingRewardModel(device="cpu", random_state=self.setting.seed)
        model.fit(log.X, log.feedback, groups=log.group.tolist(), **read)
        seconds = time.perf_counter() - start
        m = np.clip(model.predict_propensity(log.X, **read), 1e-6, 1 - 1e-6)
        chosen = "linear" if model.is_linear_ else "network"
        test = model.decision_function(self._test_X)
        lower = model.predict_interval(self._test_X, LOWER_LEVEL)[0] if model.is_linear_ else None
        return Default(model.held_out_decision_, test, chosen, {}, seconds, np.log(m) - np.log1p(-m), lower)


class KnownOfLog:
    """What the methods read of the first so many signals of a redraw; each part is made when it is asked for first.

    Args:
        field: What all fits to the redraw share.
        redraw: The redraw.
        count: The number of signals; 0 for all.
    """

    def __init__(self, field: Field, redraw: Redraw, count: int) -> None:
        self._field, self._truth = field, redraw.truth
        self._feedback = redraw.log.feedback[:, : count or None]
        self._group = torch.from_numpy(redraw.log.group)

    @cached_property
    def each_signal(self) -> Actions:
        """The actions, a column a signal."""
        return _actions(self._feedback, self._group)

    @cached_property
    def any_signal(self) -> Actions:
        """The actions, in one column: whether any signal acted."""
        return _actions(self._feedback.max(axis=1, keepdims=True), self._group)

    @cached_property
    def naive(self) -> Fit:
        """The fit of the naive method, from which preferences are imputed."""
        return self._field.fit(NAIVE, self.any_signal)

    @cached_property
    def estimates(self) -> ActionsAndEstimates:
        """Whether any signal acted, and the nuisances that are estimated from it."""
        acted, held_out = self.any_signal.acted.numpy(), self.naive.held_out
        popularity = torch.from_numpy(nuisances.popularity_propensity(acted, self._field.item)).float()
        chance = torch.sigmoid(torch.from_numpy(held_out)).numpy()
        imputed = torch.from_numpy(nuisances.imputed_preference(chance, popularity.numpy())).float()
        prior = nuisances.class_prior(held_out, acted)
        return ActionsAndEstimates(**vars(self.any_signal), popularity=popularity, imputed=imputed, class_prior=prior)

    @cached_property
    def truth(self) -> ActionsAndTruth:
        """The actions, a column a signal, with the truth."""
        propensity = np.ascontiguousarray(self._truth.propensity[:, : self._feedback.shape[1]])
        known = known_logits(torch.from_numpy(propensity))
        preference = torch.from_numpy(self._truth.preference).float()
        return ActionsAndTruth(**vars(self.each_signal), known=known, preference=preference)

    def read_by(self, method: Method[Any]) -> Actions:
        """What a method reads, with the truth for the bounds alone."""
        if method in ON_ESTIMATES:
            return self.estimates
        if method in BOUNDS:
            return self.truth
        return self.any_signal if method.sees == "any" else self.each_signal


def _actions(feedback: np.ndarray, group: torch.Tensor) -> Actions:
    """The actions in feedback (n, K) int8, of rows of these groups (n,)."""
    seen = torch.from_numpy(feedback)
    acted = (seen == 1).any(1).to(torch.int8)
    return Actions(seen, acted, float(acted.float().mean()), start_level(objective_of(seen)), group)


def objective_of(feedback: torch.Tensor) -> Objective:
    """The implicit likelihood of feedback (n, K), of positive signals without misclicks."""
    signals = feedback.shape[1]
    return Objective(feedback, None, torch.ones(len(feedback)), (1,) * signals, (0.0,) * signals)


class Contest:
    """All entrants on one redraw.

    Args:
        redraw: The redraw: the log, its truth, and the test set.
        seed: The seed of clusters, folds and fits.
    """

    def __init__(self, redraw: Redraw, seed: int) -> None:
        self._redraw, self.field = redraw, Field(redraw.log, redraw.test_X, seed)
        self._known: dict[int, KnownOfLog] = {}
        self._defaults: dict[tuple[int, bool], Default] = {}

    def measured(self, key: Key) -> dict[str, Any]:
        """Metrics on the test set, as fitted and equally calibrated, picks of n, candidates' scores, and seconds."""
        name, count = key
        fitted = self._fit(name, count)
        slope, shift = self._calibration(fitted.held_out, count or self._redraw.log.feedback.shape[1])
        metrics = {
            kind: reward_metrics(logit, self._redraw.test_preference)
            for kind, logit in (("raw", fitted.test), ("calibrated", slope * fitted.test + shift))
        }
        picks = best_of(fitted.test, self._redraw.test_preference, self._redraw.test_features)
        budget = {"candidates": len(fitted.scores), "candidate": fitted.candidate, "scores": fitted.scores}
        return {"method": name, "signals": count, **metrics, "best_of": picks, **budget, "seconds": fitted.seconds}

    def known(self, count: int) -> KnownOfLog:
        """What the methods read of the first so many signals; 0 for all."""
        if count not in self._known:
            self._known[count] = KnownOfLog(self.field, self._redraw, count)
        return self._known[count]

    def _fit(self, name: str, count: int) -> Fit:
        if name in OURS:
            fitted = self._default(count, features=name == DEFAULT_FEATURES)
            lower = fitted.lower if name == LOWER else None
            return fitted if lower is None else replace(fitted, test=lower)
        known = self.known(count)
        if name == NAIVE.name:
            return known.naive
        if name == PENALISED:
            return without_length(known.naive, self._redraw)
        method = BY_NAME[name]
        return self.field.fit(method, known.read_by(method))

    def _default(self, count: int, features: bool) -> Default:
        if (count, features) not in self._defaults:
            self._defaults[count, features] = self.field.default(count, features)
        return self._defaults[count, features]

    def _calibration(self, held_out: np.ndarray, count: int) -> tuple[float, float]:
        """Slope and shift of the greatest implicit likelihood, under the default model's propensities for everybody."""
        propensity = torch.from_numpy(self._default(count, features=False).propensity).float()
        objective = objective_of(self.known(count).each_signal.feedback)
        return calibration(torch.from_numpy(held_out), propensity, objective)


def without_length(fitted: Fit, redraw: Redraw) -> Fit:
    """A fit less the part of its held-out reward that is linear in the first feature, which is length in texts."""
    length, test_length = redraw.log.features[:, 0], redraw.test_features[:, 0]
    covariance = np.cov(length, fitted.held_out)
    slope = covariance[0, 1] / covariance[0, 0] if covariance[0, 0] > 0 else 0.0
    held_out, test = fitted.held_out - slope * length, fitted.test - slope * test_length
    return replace(fitted, held_out=held_out.astype(np.float32), test=test.astype(np.float32))


def _clusters(X: np.ndarray, seed: int) -> np.ndarray:
    """(n,) int64, the cluster of each embedding."""
    from sklearn.cluster import MiniBatchKMeans

    return MiniBatchKMeans(min(ITEMS, len(X)), n_init=1, random_state=seed).fit(X).labels_.astype(np.int64)
