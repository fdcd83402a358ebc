"""Fit a reward model to embeddings and a log, in fixed steps.

The propensities come first, from rows on which other evidence proves the preference; then the reward, given these
propensities; then what only a fitted reward can show: the level of constant propensities, and how propensities depend
on the context. After each of these steps the reward is fitted again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from irm_fast.diagnostics import Diagnosis, diagnose
from irm_fast.diagnostics.subject import Check
from irm_fast.embeddings.candidates import candidate_rewards
from irm_fast.embeddings.context_step import Context, fit_context
from irm_fast.embeddings.declared import Signals
from irm_fast.embeddings.misclicks import warn_of_little_proof
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.one_signal import split_one_signal
from irm_fast.embeddings.optimize import Training
from irm_fast.embeddings.parts import Propensities, Reward, Scaler
from irm_fast.embeddings.problem import Problem, Split
from irm_fast.embeddings.progress import Progress
from irm_fast.embeddings.propensity_step import LEFT_OUT, FoundPropensities
from irm_fast.embeddings.reward_step import AUTO_LAYERS, PropensityLogits, propensity_shift
from irm_fast.embeddings.taste import without_taste
from irm_fast.embeddings.two_step import add_networks, mass, proof
from irm_fast.embeddings.uncertainty import covariance_factor, mean_error

CONTEXT_ROUNDS = 2  # the second with the reward of the first; more would follow the noise of the level
MISCLICK_ROUNDS = 15
TASTE_ROUNDS = 2
STILL = 0.003  # change of the mean preference from which another round is worth its time


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
    progress: Progress,
    labels_ignorable: bool = False,
    left_out: Check | None = None,
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
        progress: Is told of every step.
        labels_ignorable: Whether the choice of the rows with a preference does not depend on it.
        left_out: What `scripts.without_scripts` says of users whose rows are not here.

    Returns:
        The reward, the propensities, and what the held-out rows say about them.

    Raises:
        ValueError: All rows are in one group, or `estimator` is "two-step" and a signal has fewer than 10 co-actions.
    """
    # Order of signals, folds, scale, device
    observed = observed.in_order()
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

        # Propensities, and a reward given these
        wanted = "auto" if layers is None else layers
        one_signal = observed.designs == ("auto",)
        split = (
            split_one_signal(problem, observed, wanted)
            if one_signal
            else problem.split(observed.designs, estimator, wanted)
        )
        layers = (AUTO_LAYERS if layers is None else layers) if split.reward.networks else ()
        designs = zip(observed.signals, split.found.propensities.designs, strict=True)
        progress.done(
            f"propensities ({', '.join(f'{name} {design}' for name, design in designs)}) and reward ({_kind(layers)})"
        )

        # Misclicks: an action proves little, so that propensities and reward are fitted in turn
        believed: Tensor | None = None
        if any(observed.misclick_rate) and set(split.found.two_step) != {LEFT_OUT}:
            split, believed = _in_turn(problem, split, layers)
            warn_of_little_proof(problem, split, observed)
            progress.done("misclicks: propensities and reward in turn")

        # Level of constant propensities that only the joint likelihood shows
        if split.found.open_level.any() and not one_signal:
            shift = propensity_shift(split.reward, split.logits.held_out, problem.objective, split.found.open_level)
            split = problem.with_reward(split.found.shifted(shift), layers)
            progress.done("level of constant propensities, reward again")

        # Networks of the propensities, where the reward is one
        if layers and split.found.bends:
            split = problem.with_reward(_with_networks(problem, split, layers), layers)
            progress.done("networks of the propensities, reward again")

        # Context: who, when, where
        uncorrected = float(torch.sigmoid(split.reward.held_out).mean())
        split, alone, context = _in_context(problem, split, observed, layers, believed)
        progress.done(f"context: {', '.join(context.parts)}; reward again" if context else "context: none is seen")

        # Taste of the users, which is left out of the reward
        if observed.users is not None and not layers:
            for _ in range(TASTE_ROUNDS):
                without = without_taste(problem, split, observed.users)
                if without is None:
                    break
                split = split._replace(reward=without)
            progress.done("taste of users")
    reward, found = split.reward, split.found

    # How far a redraw of the log would move the reward
    covariance: Tensor | None = None
    if not reward.networks:
        covariance = covariance_factor(
            problem.embeddings,
            problem.features,
            reward,
            split.logits.training,
            found,
            problem.objective,
            observed.group_numbers(),
        )

    # Diagnosis
    held_out = reward.held_out.cpu().numpy()
    followers = np.array(observed.after) >= 0
    diagnosis = diagnose(
        np.where(followers, -1, observed.feedback),  # a follower depends on another signal, as declared
        signals=observed.signals,
        polarity=observed.polarity,
        misclick_rate=observed.misclick_rate,
        propensity_design=found.propensities.designs,
        reward_logits=held_out,
        propensity_logits=alone.cpu().numpy(),
        preference=observed.preference,
        labels_ignorable=labels_ignorable,
        weight=observed.weight,
        users=observed.users,
        fold_rewards=reward.each.cpu().numpy(),
        uncorrected_mean=uncorrected if context is not None else None,
        mean_error=None if covariance is None else mean_error(problem.embeddings, reward, covariance),
        propensity=observed.propensity,
        sessions=observed.sessions,
        times=observed.times,
        context=context.parts if context is not None else (),
    )
    if left_out is not None:
        tests = tuple(left_out if test.name == left_out.name else test for test in diagnosis.tests)
        diagnosis = replace(diagnosis, tests=tests)
    progress.done(f"diagnosis: {diagnosis.kind}")
    return Fitted(
        scaler=scaler,
        feature_scaler=feature_scaler,
        reward=Reward(reward.weight, reward.bias, reward.networks, covariance),
        propensities=found.propensities,
        context=context,
        held_out_nll=float(reward.losses.sum() / observed.weight.sum()),
        held_out_decision=held_out,
        diagnosis=diagnosis,
        signals=Signals(observed.signals, observed.polarity, observed.misclick_rate),
        candidates=candidate_rewards(problem, observed),
    )


def _kind(layers: Sequence[int]) -> str:
    return f"networks of widths {tuple(layers)}" if layers else "linear"


def _in_turn(problem: Problem, split: Split, layers: Sequence[int]) -> tuple[Split, Tensor]:
    """Fit propensities and reward in turn until the mean preference stands still.

    Returns:
        The split, and the probability (N, K) of each signal's side by everything else that is recorded.
    """
    for _ in range(MISCLICK_ROUNDS):
        before = float(torch.sigmoid(split.reward.held_out).mean())
        believed = mass(problem.objective, split.reward.held_out, split.logits.held_out)
        found = problem.refit_propensities(split.found, mass=believed)
        split = problem.with_reward(found, layers, split.reward.start)
        if abs(float(torch.sigmoid(split.reward.held_out).mean()) - before) < STILL:
            break
    return split, believed


def _with_networks(problem: Problem, split: Split, layers: Sequence[int]) -> FoundPropensities:
    """Add networks to the linear propensities."""
    bent = add_networks(
        split.found.propensities,
        split.found.by_fold,
        problem.embeddings,
        problem.features,
        problem.objective,
        problem.folds,
        layers,
        problem.training,
        problem.generator,
    )
    return split.found._replace(propensities=bent)


def _in_context(
    problem: Problem, split: Split, observed: Observed, layers: Sequence[int], believed: Tensor | None
) -> tuple[Split, Tensor, Context | None]:
    """Fit how propensities depend on the context, and the reward again.

    Returns:
        The split; held-out propensity logits (N, K) of each signal by itself; and the context, or None.
    """
    found = split.found
    alone, context, base, device = split.logits.held_out, None, split.logits, problem.embeddings.device
    for _ in range(CONTEXT_ROUNDS):
        if context is not None and not layers:  # base propensities that know the context
            order = problem.order(split.found)
            part = (context.part(base.training - order.training) - order.training).float().to(device)
            found = problem.refit_propensities(split.found, mass=believed, context=part)
            base = problem.logits(found)
        proofs = proof(problem.objective, split.reward.held_out, alone)
        context = fit_context(problem, Split(found, base, split.reward), observed, proofs, context)
        if context is None:
            break
        training, held_out = (part.pattern.float().to(device) for part in (context.training, context.held_out))
        logits, alone = PropensityLogits(training, held_out), context.held_out.alone.float().to(device)
        split = Split(found, logits, problem.fit_reward(logits, layers, split.reward.start))
    return split, alone, None if context is None else context.context(observed)
