"""Fit a reward model to embeddings and a log, in fixed steps.

The propensities come first, from rows on which other evidence proves the preference; then the reward, given these
propensities; then what only a fitted reward can show: the level of constant propensities, and an activity that the
signals of a user share. After each of these corrections the reward is fitted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from irm_fast.diagnostics import Diagnosis, diagnose
from irm_fast.embeddings.activity import Activity, measure
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.optimize import Training
from irm_fast.embeddings.parts import Propensities, Reward, Scaler
from irm_fast.embeddings.propensity_step import fit_propensities
from irm_fast.embeddings.reward_step import AUTO_LAYERS, calibrated, fit_reward, propensity_shift
from irm_fast.embeddings.two_step import add_networks


@dataclass(frozen=True)
class Fitted:
    """The result of a fit.

    Attributes:
        scaler: Standardises the embeddings.
        feature_scaler: Standardises the propensity features; None without features.
        reward: The reward, without the values of the training rows.
        propensities: The propensities.
        activity: The activity that the signals of a user share, or None.
        held_out_nll: The held-out loss per row (a weighted mean), in nats.
        held_out_decision: Reward logits (float32) of the training rows, of shape (N,), each from the fold model that
            did not see the row; None in a model that was loaded.
        diagnosis: The assumptions and evidence that the reward rests on.
    """

    scaler: Scaler
    feature_scaler: Scaler | None
    reward: Reward
    propensities: Propensities
    activity: Activity | None
    held_out_nll: float
    held_out_decision: np.ndarray | None
    diagnosis: Diagnosis

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


@dataclass(frozen=True)
class _Data:
    """What every step of the fit reads, for N rows, embedding width D, F propensity features and K signals."""

    embeddings: Tensor  # (N, D) standardised
    spread: Tensor  # (D,) deviations before that
    features: Tensor | None  # (N, F) standardised
    objective: Objective
    known: Tensor  # (N, K) logits of known propensities, 0 elsewhere
    folds: np.ndarray  # (N,) from 0
    training: Training
    generator: torch.Generator  # of the order of rows

    def logits(self, propensities: Propensities) -> Tensor:
        """Return the propensity logits of all signals, known ones included, of shape (N, K)."""
        return propensities.logits(self.embeddings, self.features) + self.known

    def fit_reward(
        self, propensities: Propensities, layers: str | Sequence[int], activity: Activity | None = None
    ) -> Reward:
        """Fit a new reward given these propensities, corrected for the activity if there is one, and calibrate it."""
        logits = self.logits(propensities)
        if activity is not None:
            logits = activity.silence(logits, self.objective)
        reward = fit_reward(
            self.embeddings, self.spread, logits, self.objective, self.folds, layers, self.training, self.generator
        )
        return calibrated(reward, logits, self.objective)


def fit_model(
    embeddings: np.ndarray,
    observed: Observed,
    *,
    layers: Sequence[int] | None,
    estimator: str,
    propensity_sds: Sequence[float],
    n_folds: int,
    training: Training,
    device: torch.device,
    random: np.random.RandomState,
) -> Fitted:
    """Fit the propensities and the reward.

    Args:
        embeddings: Embeddings (float32) of shape (N, D).
        observed: The feedback and the other observations of the same rows, whose weights are all above 0.
        layers: Widths of the hidden layers of the networks; () for linear heads; None to choose.
        estimator: "two-step", "joint" or "auto".
        propensity_sds: Prior standard deviations of propensity logits between responses, to choose from.
        n_folds: The number of folds, each of which is held out once.
        training: How networks are trained.
        device: Where to compute.
        random: The source of all random numbers.

    Returns:
        The reward, the propensities, and what the held-out rows say about them.

    Raises:
        ValueError: All rows are in one group, or `estimator` is "two-step" and a signal has fewer than 10 co-actions.
    """
    # Folds, scale, device
    generator = torch.Generator().manual_seed(int(random.randint(2**31)))
    folds = observed.folds(n_folds, random)
    scaler = Scaler.of(embeddings, device)
    feature_scaler = None if observed.features is None else Scaler.of(observed.features, device)
    data = _Data(
        embeddings=scaler(embeddings),
        spread=scaler.scale,
        features=None if feature_scaler is None else feature_scaler(observed.features),  # type: ignore[arg-type]
        objective=Objective.of(observed, device),
        known=torch.from_numpy(observed.known_logits()).to(device),
        folds=folds,
        training=training,
        generator=generator,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.randint(2**31)))  # of new networks

        # Propensities
        found = fit_propensities(
            data.embeddings,
            data.spread,
            data.features,
            data.objective,
            observed.designs,
            data.known,
            folds,
            estimator=estimator,
            sds=propensity_sds,
        )
        propensities = found.propensities

        # Reward, given these propensities
        reward = data.fit_reward(propensities, "auto" if layers is None else layers)
        layers = (AUTO_LAYERS if layers is None else layers) if reward.networks else ()

        # Level of constant propensities that only the joint likelihood shows
        if found.open_level.any():
            shift = propensity_shift(reward, data.logits(propensities), data.objective, found.open_level)
            propensities = replace(propensities, bias=propensities.bias + shift)
            reward = data.fit_reward(propensities, layers)

        # Networks of the propensities, where the reward is one
        if layers and found.by_fold:
            propensities = add_networks(
                propensities,
                found.by_fold,
                data.embeddings,
                data.features,
                data.objective,
                folds,
                layers,
                training,
                generator,
            )
            reward = data.fit_reward(propensities, layers)

        # Activity that the signals of a user share
        activity = measure(observed, reward.held_out, data.logits(propensities))
        if activity is not None:
            uncorrected = reward
            factor = activity.factor(propensities.designs).to(device)
            propensities = replace(propensities, factor=factor)
            reward = data.fit_reward(propensities, layers, activity)
            before, after = (float(torch.sigmoid(fit.held_out).mean()) for fit in (uncorrected, reward))
            activity = replace(activity, mean_preference=(before, after))

    # Diagnosis
    held_out = reward.held_out.cpu().numpy()
    diagnosis = diagnose(
        observed.feedback,
        polarity=observed.polarity,
        misclick_rate=observed.misclick_rate,
        propensity_design=propensities.designs,
        reward_logits=held_out,
        propensity_logits=data.logits(propensities).cpu().numpy(),
        preference=observed.preference,
        weight=observed.weight,
        users=observed.users,
        fold_rewards=reward.each.cpu().numpy(),
        uncorrected_mean=None if activity is None else activity.mean_preference[0],
    )
    return Fitted(
        scaler=scaler,
        feature_scaler=feature_scaler,
        reward=Reward(reward.weight, reward.bias, reward.networks),
        propensities=propensities,
        activity=activity,
        held_out_nll=float(reward.losses.sum() / observed.weight.sum()),
        held_out_decision=held_out,
        diagnosis=diagnosis,
    )
