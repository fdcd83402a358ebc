"""What a fit to embeddings and a log has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from irm_fast.diagnostics import Diagnosis
from irm_fast.embeddings import given
from irm_fast.embeddings.context_step import Context
from irm_fast.embeddings.declared import Signals
from irm_fast.embeddings.parts import Propensities, Reward, Scaler
from irm_fast.embeddings.propensity_step import training_logits
from irm_fast.embeddings.standardised import Standardised


@dataclass(frozen=True)
class Fitted:
    """The result of a fit.

    Attributes:
        scaler: Standardises the embeddings.
        feature_scaler: Standardises the propensity features; None without features.
        reward: The reward, without the values of the training rows.
        propensities: The propensities.
        context: How the propensities depend on user, time and session, or None.
        held_out_nll: The held-out loss per row (a weighted mean), in nats.
        held_out_decision: Reward logits (float32) of the training rows, of shape (N,), each from the fold model that
            did not see the row; None in a model that was loaded.
        training_propensity: The propensities (float32) under which the reward was fitted, of shape (N, K), known ones
            included; None in a model that was loaded.
        diagnosis: The assumptions and evidence that the reward rests on.
        signals: What is declared of the signals.
        candidates: The rewards of `candidates.candidate_rewards`; none in a model of an earlier version.
    """

    scaler: Scaler
    feature_scaler: Scaler | None
    reward: Reward
    propensities: Propensities
    context: Context | None
    held_out_nll: float
    held_out_decision: np.ndarray | None
    training_propensity: np.ndarray | None
    diagnosis: Diagnosis
    signals: Signals
    candidates: Mapping[str, Reward] = field(default_factory=dict)

    @property
    def is_linear(self) -> bool:
        """Whether neither the reward nor the propensities contain a network."""
        return not (self.reward.networks or self.propensities.networks)

    @property
    def n_features(self) -> int:
        """The embedding width D."""
        return len(self.scaler.mean)

    @property
    def n_propensity_features(self) -> int:
        """The number F of propensity features, 0 without them."""
        return 0 if self.feature_scaler is None else len(self.feature_scaler.mean)

    @property
    def known(self) -> np.ndarray:
        """Whether each signal has the design "known", of shape (K,)."""
        return np.array([design == "known" for design in self.propensities.designs])

    def reward_logits(self, x: Standardised) -> Tensor:
        """Return reward logits of shape (n,).

        Args:
            x: The standardised embeddings, of shape (n, D).

        Raises:
            ValueError: A logit overflows.
        """
        logits = x.map(lambda _, some: self.reward.logits(some))
        if not torch.isfinite(logits).all():
            row = int((~torch.isfinite(logits)).nonzero()[0])
            raise ValueError(
                f"X: row {row} is so large that its reward logit is {float(logits[row])}; expected embeddings of the "
                "scale of those in fit, made by the same model"
            )
        return logits

    def propensity_logits(
        self,
        x: Standardised,
        propensity_features: ArrayLike | None,
        users: Sequence | None,
        sessions: Sequence | None,
        times: ArrayLike | None,
    ) -> Tensor:
        """Return the propensity logits of later rows, of shape (n, K), 0 where known.

        Args:
            x: The standardised embeddings, of shape (n, D).
            propensity_features: As of `EmbeddingRewardModel.predict_propensity`, as the next three.
            users: Names of shape (n,), or None.
            sessions: Names of shape (n,), or None.
            times: Times of shape (n,), or None.

        Raises:
            ValueError: An argument has a wrong shape or value, or features were given to only one of fit and this.
        """
        scaler = self.feature_scaler
        if (propensity_features is None) != (scaler is None):
            raise ValueError(
                "propensity_features: got them in only one of fit and predict_propensity, predict_action_proba or "
                "score; expected both or none"
            )
        features: Tensor | None = None
        if scaler is not None:
            width = self.n_propensity_features
            features = scaler(given.matrix("propensity_features", propensity_features, len(x), width))
        names, places = given.names("users", users, len(x)), given.names("sessions", sessions, len(x))
        when = None if times is None else given.seconds(times, len(x))
        logits = training_logits(self.propensities, x, features)
        if self.context is not None:
            logits = self.context.logits(logits, names, places, when)
        return self.propensities.whatever_came_before(logits)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of a fitted estimator, which `EmbeddingRewardModel` describes, by name."""
        public: dict[str, Any] = {
            "classes_": np.array([0, 1]),
            "n_features_in_": self.n_features,
            "signals_": self.signals.names,
            "n_propensity_features_": self.n_propensity_features,
            "propensity_designs_": self.propensities.designs,
            "is_linear_": self.is_linear,
            "held_out_nll_": self.held_out_nll,
            "context_": () if self.context is None else self.context.parts,
            "diagnosis_": self.diagnosis,
        }
        if self.held_out_decision is not None:
            public["held_out_decision_"] = self.held_out_decision
        if self.is_linear:  # the linear reward of embeddings as they are given
            weight = self.reward.weight / self.scaler.scale
            public["coef_"] = weight.cpu().numpy()
            public["intercept_"] = float(self.reward.bias - (weight * self.scaler.mean).sum())
        return public
