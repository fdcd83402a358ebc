"""Fit a reward model to embeddings and a log, in fixed steps.

The propensities come first, from rows on which other evidence proves the preference; then the reward, given these
propensities; then what only a fitted reward can show: the level of constant propensities, and how propensities depend
on the context. After each of these steps the reward is fitted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irm_fast.diagnostics import Diagnosis, diagnose
from irm_fast.embeddings.context_step import Context, fit_context
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.one_signal import one_signal
from irm_fast.embeddings.optimize import Training
from irm_fast.embeddings.parts import Propensities, Reward, Scaler
from irm_fast.embeddings.problem import Problem
from irm_fast.embeddings.propensity_step import LEFT_OUT
from irm_fast.embeddings.reward_step import AUTO_LAYERS, PropensityLogits, propensity_shift
from irm_fast.embeddings.two_step import add_networks, mass
from irm_fast.embeddings.uncertainty import covariance_factor


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
    """

    scaler: Scaler
    feature_scaler: Scaler | None
    reward: Reward
    propensities: Propensities
    context: Context | None
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


CONTEXT_ROUNDS = 2
MISCLICK_ROUNDS = 15
STILL = 0.003  # change of the mean preference from which another round is worth its time


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
    problem = Problem(
        embeddings=scaler(embeddings),
        spread=scaler.scale,
        features=None if feature_scaler is None else feature_scaler(observed.features),  # type: ignore[arg-type]
        objective=Objective.of(observed, device),
        known=torch.from_numpy(observed.known_logits()).to(device),
        folds=folds,
        propensity_sds=propensity_sds,
        training=training,
        generator=generator,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.randint(2**31)))  # of new networks

        # Propensities
        one = len(observed.designs) == 1 and observed.designs[0] == "auto"
        wanted = "auto" if layers is None else layers
        if one:
            split = one_signal(problem, observed, wanted)
            found, reward = split.found, split.reward
            logits = problem.logits(found)
        else:
            found = problem.fit_propensities(observed.designs, estimator)
            logits = problem.logits(found)

            # Reward, given these propensities
            reward = problem.fit_reward(logits, wanted)
        layers = (AUTO_LAYERS if layers is None else layers) if reward.networks else ()
        believed: Tensor | None = None  # how far actions that may be misclicks prove a side

        # Misclicks: an action proves little, so that propensities and reward are fitted in turn
        if any(observed.misclick_rate) and set(found.two_step) - {LEFT_OUT}:
            for _ in range(MISCLICK_ROUNDS):
                before = float(torch.sigmoid(reward.held_out).mean())
                believed = mass(problem.objective, reward.held_out, logits.held_out)
                found = problem.refit_propensities(found, mass=believed)
                logits = problem.logits(found)
                reward = problem.fit_reward(logits, layers, reward.start)
                if abs(float(torch.sigmoid(reward.held_out).mean()) - before) < STILL:
                    break

        # Level of constant propensities that only the joint likelihood shows
        if found.open_level.any() and not one:
            found = found.shifted(propensity_shift(reward, logits.held_out, problem.objective, found.open_level))
            logits = problem.logits(found)
            reward = problem.fit_reward(logits, layers)

        # Networks of the propensities, where the reward is one
        if layers and found.bends:
            bent = add_networks(
                found.propensities,
                found.by_fold,
                problem.embeddings,
                problem.features,
                problem.objective,
                folds,
                layers,
                training,
                generator,
            )
            found = found._replace(propensities=bent)
            logits = problem.logits(found)
            reward = problem.fit_reward(logits, layers)

        # Context: who, when, where
        alone, context, base = logits.held_out, None, logits
        for _ in range(CONTEXT_ROUNDS):  # each with the reward of the round before
            if context is not None and not layers:
                part = context.part(base.training).float().to(device)
                base = problem.logits(problem.refit_propensities(found, mass=believed, context=part))
            context = fit_context(observed, *base, reward.held_out, folds, context)
            if context is None:
                break
            logits = PropensityLogits(
                *(part.pattern.float().to(device) for part in (context.training, context.held_out))
            )
            alone = context.held_out.alone.float()
            reward = problem.fit_reward(logits, layers, reward.start)

    # How far a redraw of the log would move the reward
    covariance: Tensor | None = None
    if not reward.networks:
        covariance = covariance_factor(
            problem.embeddings,
            problem.features,
            reward,
            logits.training,
            found,
            problem.objective,
            observed.group_numbers(),
        )

    # Diagnosis
    held_out = reward.held_out.cpu().numpy()
    diagnosis = diagnose(
        observed.feedback,
        polarity=observed.polarity,
        misclick_rate=observed.misclick_rate,
        propensity_design=found.propensities.designs,
        reward_logits=held_out,
        propensity_logits=alone.cpu().numpy(),
        preference=observed.preference,
        weight=observed.weight,
        users=observed.users,
        fold_rewards=reward.each.cpu().numpy(),
    )
    return Fitted(
        scaler=scaler,
        feature_scaler=feature_scaler,
        reward=Reward(reward.weight, reward.bias, reward.networks, covariance),
        propensities=found.propensities,
        context=None if context is None else context.context,
        held_out_nll=float(reward.losses.sum() / observed.weight.sum()),
        held_out_decision=held_out,
        diagnosis=diagnosis,
    )
