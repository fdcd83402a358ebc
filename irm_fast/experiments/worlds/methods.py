"""Every method on the log of a world: the peers as `irm-fast reproduce` fits them, and the estimator as it comes."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.two_step import enough_coactions
from irm_fast.experiments.reproduce.contest import LOWER_LEVEL, Field, KnownOfLog, objective_of, without_length
from irm_fast.experiments.reproduce.methods import BY_NAME, EXPLICIT, KNOWN, NAIVE, known_loss
from irm_fast.experiments.reproduce.picks import AT, best_of
from irm_fast.experiments.worlds.drawing import Drawn
from irm_fast.experiments.worlds.knobs import World

LENGTH_OUT = "length taken out"
PAPER, WITH_FEATURES = "paper", ", features"
OURS, ALONE, LOWER_ENDS, TOLD = "irm_fast", "embeddings alone", "lower ends", "told"
_NAMES = {  # in the comparison
    "pairs": "pairs (Bradley-Terry)",
    "KTO": "KTO",
    "nnPU": "nnPU",
    "ReCRec": "ReCRec-F",
    PAPER: "stratified, lagged (paper)",
    "two towers": "two towers",
    f"ReCRec{WITH_FEATURES}": "ReCRec-F, + features",
    f"{PAPER}{WITH_FEATURES}": "stratified, lagged (paper), + features",
}
_FITTED = {name: BY_NAME[known_as] for name, known_as in _NAMES.items()} | {EXPLICIT.name: EXPLICIT}
PEERS = (NAIVE.name, LENGTH_OUT, *_NAMES)
BOUNDS = (KNOWN.name, EXPLICIT.name)
FEW = 0.1  # a rate below which few rows hold several actions
FORMS_OF_OURS = (OURS, ALONE, LOWER_ENDS, TOLD)
METHODS = (*PEERS, *FORMS_OF_OURS, *BOUNDS)


class Entrants:
    """All methods on one log.

    Args:
        world: The world.
        drawn: Its log.
        seed: The seed of folds and fits.
    """

    def __init__(self, world: World, drawn: Drawn, seed: int) -> None:
        self._world, self._drawn, self._seed = world, drawn, seed
        self._redraw = drawn.redraw
        self._field = Field(drawn.redraw.log, drawn.redraw.test_X, seed)
        self._seen = KnownOfLog(self._field, drawn.redraw, 0)

    def methods(self) -> tuple[str, ...]:
        """The names of the methods that differ in this world, in the order of `METHODS`."""
        return tuple(name for name in METHODS if _told(self._world) or name != TOLD)

    def measured(self, name: str) -> dict[str, Any]:
        """What a method came to on the test set.

        Args:
            name: The method.

        Returns:
            "auroc", of whether answers please; "picks", how often the best of 16 pleases; "seconds" beyond what other
            methods have made already.
        """
        start = time.perf_counter()
        reward = self._reward(name)
        seconds = time.perf_counter() - start
        picks = best_of(reward, self._drawn.please, self._redraw.test_features, (AT,))
        auroc = reward_metrics(reward, self._redraw.test_preference)["auroc"]
        return {"auroc": auroc, "picks": picks["pleases"][0], "seconds": seconds}

    def said(self) -> dict[str, Any]:
        """What the estimator says of itself as it comes: verdicts, choices, and levels beside the true ones.

        Returns:
            "ranking" and "scale", the verdicts; "context" and "is_linear", what was chosen; "propensity" (K numbers)
            and "preference", the means that were learned, and "true_propensity" and "true_preference". In a funnel
            the second propensity is that of both signals, as the estimator is not told of it.
        """
        model, propensity = self._default, self._redraw.truth.propensity
        acts = np.cumprod(propensity, axis=1) if self._world.funnel else propensity
        return {
            "ranking": model.diagnosis_.ranking,
            "scale": model.diagnosis_.scale,
            "context": list(model.context_),
            "is_linear": bool(model.is_linear_),
            "propensity": np.nanmean(model.training_propensity_, axis=0).tolist(),
            "true_propensity": acts.mean(axis=0).tolist(),
            "preference": float(model.predict_proba(self._redraw.test_X)[:, 1].mean()),
            "true_preference": float(self._drawn.please.mean()),
        }

    def _reward(self, name: str) -> np.ndarray:
        """(m,) the rewards of the test set."""
        if name == NAIVE.name:
            return self._seen.naive.test
        if name == LENGTH_OUT:
            return without_length(self._seen.naive, self._redraw).test
        if name == KNOWN.name:
            return self._known()
        if name in FORMS_OF_OURS:
            return self._ours(name)
        method = _FITTED[name]
        return self._field.fit(method, self._seen.read_by(method)).test

    def _known(self) -> np.ndarray:
        """The likelihood with the true propensities, which knows of misclicks and of a funnel."""
        log = replace(self._redraw.log, feedback=self._drawn.recorded)
        known = KnownOfLog(self._field, replace(self._redraw, log=log), 0).truth
        loss = partial(known_loss, misclick_rate=self._world.misclicks or None)
        return self._field.fit(replace(KNOWN, loss=loss), known).test

    def _ours(self, name: str) -> np.ndarray:
        """The estimator, with what `irm-fast train --embeddings` reads of a log."""
        if name == LOWER_ENDS and self._default.is_linear_:  # a network has no intervals
            return self._default.predict_interval(self._redraw.test_X, LOWER_LEVEL)[0]
        if name in (OURS, LOWER_ENDS):
            return self._default.decision_function(self._redraw.test_X)
        if name == ALONE:
            return self._fitted(features=False).decision_function(self._redraw.test_X)
        return self._fitted(features=True, **_told(self._world)).decision_function(self._redraw.test_X)

    @cached_property
    def _default(self) -> EmbeddingRewardModel:
        shown = enough_coactions(objective_of(torch.from_numpy(self._redraw.log.feedback)))
        return self._fitted(features=shown)  # else nothing shows what features draw

    def _fitted(self, features: bool, **told: Any) -> EmbeddingRewardModel:
        log = self._redraw.log
        read = {"propensity_features": log.features} if features else {}
        model = EmbeddingRewardModel(device="cpu", random_state=self._seed, **told)
        users = self._drawn.users.tolist(), self._drawn.sessions.tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a world that breaks an assumption is warned of, which is right
            return model.fit(log.X, log.feedback, users=users[0], sessions=users[1], groups=log.group.tolist(), **read)


def _told(world: World) -> dict[str, Any]:
    """Settings of the estimator by which it is told what holds in a world and its log shows badly or not at all."""
    told: dict[str, Any] = {}
    if world.misclicks:
        told["misclick_rate"] = world.misclicks
    if world.funnel:
        told["after"] = {1: 0}
    if world.funnel or world.signals == 1 or world.rate < FEW:  # few rows or none, in which signals act apart
        told["propensity_design"] = "features"
    return told
