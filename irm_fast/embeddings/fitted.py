"""What a fit to embeddings and a log has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from irm_fast.diagnostics import Diagnosis
from irm_fast.embeddings.context_step import Context
from irm_fast.embeddings.declared import Signals
from irm_fast.embeddings.parts import Propensities, Reward, Scaler


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
