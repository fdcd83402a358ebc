"""Fit a reward model to embeddings and a log, in fixed steps.

The propensities come first, from rows on which other evidence proves the preference; then the reward, given these
propensities; then what only a fitted reward can show: the level of constant propensities, and how propensities depend
on the context. After each of these steps the reward is fitted again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from irm_fast.diagnostics import Diagnosis, diagnose
from irm_fast.diagnostics.learned import constant_in_words, is_constant
from irm_fast.diagnostics.subject import Check
from irm_fast.embeddings.assumed import warn_of_few_coactions
from irm_fast.embeddings.candidates import candidate_rewards
from irm_fast.embeddings.context_step import Context, fit_context
from irm_fast.embeddings.declared import Signals
from irm_fast.embeddings.fitted import Fitted
from irm_fast.embeddings.misclicks import warn_of_little_proof
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.one_signal import split_one_signal
from irm_fast.embeddings.optimize import Training
from irm_fast.embeddings.parts import NONE, Reward, Scaler
from irm_fast.embeddings.problem import Problem, Split
from irm_fast.embeddings.progress import Progress
from irm_fast.embeddings.propensity_networks import add_networks
from irm_fast.embeddings.propensity_step import LEFT_OUT, FoundPropensities
from irm_fast.embeddings.reward_step import AUTO_LAYERS, PropensityLogits, propensity_shift
from irm_fast.embeddings.standardised import Standardised
from irm_fast.embeddings.taste import without_taste
from irm_fast.embeddings.two_step import mass, proof
from irm_fast.embeddings.uncertainty import covariance_factor, mean_error
from irm_fast.models.processes import from_main_process

CONTEXT_ROUNDS = 2  # the second with the reward of the first; more would follow the noise of the level
MISCLICK_ROUNDS = 15
TASTE_ROUNDS = 2
STILL = 0.003  # change of the mean preference from which another round is worth its time


def fit_model(
    embeddings: Standardised,
    scaler: Scaler,
    observed: Observed,
    *,
    layers: Sequence[int] | None,
    estimator: str,
    propensity_sds: Sequence[float],
    n_folds: int,
    training: Training,
    random: np.random.RandomState,
    progress: Progress,
    labels_ignorable: bool = False,
    left_out: Check | None = None,
) -> Fitted:
    """Fit the propensities and the reward.

    Args:
        embeddings: The standardised embeddings, of shape (N, D), on the device where to compute.
        scaler: What standardised them.
        observed: The feedback and the other observations of the same rows, whose weights are all above 0.
        layers: Widths of the hidden layers of the networks; () for linear heads; None to choose.
        estimator: "two-step", "joint" or "auto".
        propensity_sds: Prior standard deviations of propensity logits between responses, to choose from.
        n_folds: The number of folds, each of which is held out once.
        training: How networks are trained.
        random: The source of all random numbers.
        progress: Is told of every step.
        labels_ignorable: Whether the choice of the rows with a preference does not depend on it.
        left_out: What `scripts.without_scripts` says of users whose rows are not here.

    Returns:
        The reward, the propensities, and what the held-out rows say about them.

    Raises:
        ValueError: All rows are in one group, or `estimator` is "two-step" and a signal has fewer than 10 co-actions.
    """
    # The rows: order of signals, folds, scale
    observed, device = observed.in_order(), embeddings.device
    generator = torch.Generator().manual_seed(int(random.randint(2**31)))
    feature_scaler = None if observed.features is None else Scaler.of(observed.features, device)
    problem = Problem(
        embeddings=embeddings,
        spread=scaler.scale,
        features=None if feature_scaler is None else feature_scaler(observed.features),  # type: ignore[arg-type]
        objective=Objective.of(observed, device),
        known=_known_logits(observed, device),
        folds=observed.folds(n_folds, random),
        propensity_sds=propensity_sds,
        training=training,
        generator=generator,
    )

    # Propensities and reward, then what only a fitted reward can show
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.randint(2**31)))  # of new networks
        wanted = "auto" if layers is None else layers
        if observed.designs == ("auto",):
            split = split_one_signal(problem, observed, wanted)
        else:
            if estimator == "auto":
                warn_of_few_coactions(observed, problem.objective)
            split = problem.split(observed.designs, estimator, wanted)
        chosen = (AUTO_LAYERS if layers is None else layers) if split.reward.networks else ()
        fit = _Fit(problem, observed, split, chosen)
        progress.done(fit.designs_in_words())
        for step in (fit.misclicks, fit.level, fit.networks, fit.in_context, fit.without_taste):
            if said := step():
                progress.done(said)

    # What it rests on; nothing rests on a reward that is dead
    _check_varies(fit.split.reward)
    covariance = _covariance(fit)
    diagnosis = _diagnosis(fit, covariance, labels_ignorable, left_out)
    progress.done(f"diagnosis: {diagnosis.kind}")
    reward = fit.split.reward
    return Fitted(
        scaler=scaler,
        feature_scaler=feature_scaler,
        reward=Reward(reward.weight, reward.bias, reward.networks, covariance),
        propensities=fit.split.found.propensities,
        context=fit.context,
        held_out_nll=float(reward.losses.sum() / observed.weight.sum()),
        held_out_decision=reward.held_out.cpu().numpy(),
        training_propensity=fit.split.logits.training.sigmoid().cpu().numpy(),
        diagnosis=diagnosis,
        signals=Signals(observed.signals, observed.polarity, observed.misclick_rate),
        candidates=candidate_rewards(problem, observed),
    )


def _known_logits(observed: Observed, device: torch.device) -> Tensor:
    """Return the logits of known propensities, of shape (N, K), 0 elsewhere; without any, zeros that take no memory."""
    if observed.propensity is None:
        return torch.zeros(1, device=device).expand(observed.feedback.shape)
    return torch.from_numpy(observed.known_logits()).to(device)


@dataclass
class _Fit:
    """A fit on its way. Each of its steps says what it did, or returns None where there was nothing to do.

    Attributes:
        problem: The rows.
        observed: Their observations.
        split: The propensities and the reward, which every step replaces.
        layers: Widths of the hidden layers; () if the reward is linear.
        believed: `two_step.mass` of the last round of misclicks, or None.
        uncorrected: The mean preference before the context.
        context: How the propensities depend on the context, or None.
        alone: Held-out propensity logits (N, K) of each signal by itself.
    """

    problem: Problem
    observed: Observed
    split: Split
    layers: Sequence[int]
    believed: Tensor | None = None
    uncorrected: float = math.nan
    context: Context | None = None
    alone: Tensor = NONE

    def designs_in_words(self) -> str:
        """Return what was fitted first."""
        pairs = zip(self.observed.signals, self.split.found.propensities.designs, strict=True)
        kind = f"networks of widths {tuple(self.layers)}" if self.layers else "linear"
        return f"propensities ({', '.join(f'{name} {design}' for name, design in pairs)}) and reward ({kind})"

    def misclicks(self) -> str | None:
        """Fit propensities and reward in turn, where an action proves little."""
        if not any(self.observed.misclick_rate) or set(self.split.found.two_step) == {LEFT_OUT}:
            return None
        self.split, self.believed = _in_turn(self.problem, self.split, self.layers)
        warn_of_little_proof(self.problem, self.split, self.observed)
        return "misclicks: propensities and reward in turn"

    def level(self) -> str | None:
        """Fit the level of constant propensities that only the joint likelihood shows."""
        found, logits = self.split.found, self.split.logits.held_out
        if not found.open_level.any() or self.observed.designs == ("auto",):  # one signal has found it
            return None
        shift = propensity_shift(self.split.reward, logits, self.problem.objective, found.open_level)
        self.split = self.problem.with_reward(found.shifted(shift), self.layers)
        return "level of constant propensities, reward again"

    def networks(self) -> str | None:
        """Add networks to the propensities, where the reward is one."""
        if not self.layers or not self.split.found.bends:
            return None
        self.split = self.problem.with_reward(_with_networks(self.problem, self.split, self.layers), self.layers)
        return "networks of the propensities, reward again"

    def in_context(self) -> str:
        """Fit how propensities depend on who, when and where."""
        self.uncorrected = self.split.reward.mean_preference()
        self.split, self.alone, self.context = _in_context(
            self.problem, self.split, self.observed, self.layers, self.believed
        )
        return f"context: {', '.join(self.context.parts)}; reward again" if self.context else "context: none is seen"

    def without_taste(self) -> str | None:
        """Fit the taste of the users beside the reward, and leave it out."""
        if self.observed.users is None or self.layers:
            return None
        for _ in range(TASTE_ROUNDS):
            without = without_taste(self.problem, self.split, self.observed.users)
            if without is None:
                break
            self.split = self.split._replace(reward=without)
        return "taste of users"


def _in_turn(problem: Problem, split: Split, layers: Sequence[int]) -> tuple[Split, Tensor]:
    """Fit propensities and reward in turn until the mean preference stands still.

    Returns:
        The split, and the probability (N, K) of each signal's side by everything else that is recorded.
    """
    for _ in range(MISCLICK_ROUNDS):
        before = split.reward.mean_preference()
        believed = mass(problem.objective, split.reward.held_out, split.logits.held_out)
        found = problem.refit_propensities(split.found, mass=believed)
        split = problem.with_reward(found, layers, split.reward.start)
        if abs(split.reward.mean_preference() - before) < STILL:
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
    if not observed.has_context:
        return split, split.logits.held_out, None
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


def _check_varies(reward: Reward) -> None:
    """Raise ValueError if the reward is the same for all rows, or not finite."""
    logits = reward.each.mean(0).cpu().numpy()
    wrong = np.flatnonzero(~np.isfinite(logits))
    if len(wrong):
        raise ValueError(
            f"X: the reward of row {wrong[0]} is {logits[wrong[0]]} ({len(wrong)} of {len(logits)} are not finite): "
            "the fit diverged; expected embeddings of an ordinary scale, and for networks a smaller learning_rate"
        )
    if is_constant(logits):
        raise ValueError(
            f"X: {constant_in_words(logits)}: nothing was learned; expected embeddings that differ between rows and "
            "are no smaller than float32 resolves, weights of about 1, and for networks a smaller learning_rate"
        )


def _covariance(fit: _Fit) -> Tensor | None:
    """Return how far a redraw of the log would move a linear reward; None for networks."""
    problem, split = fit.problem, fit.split
    if split.reward.networks:
        return None
    return covariance_factor(
        problem.embeddings,
        problem.features,
        split.reward,
        split.logits.training,
        split.found,
        problem.objective,
        fit.observed.group_numbers(),
    )


def _diagnosis(fit: _Fit, covariance: Tensor | None, labels_ignorable: bool, left_out: Check | None) -> Diagnosis:
    """Diagnose the log by what was fitted to it, held out, and by what is said of users that were left out."""
    observed, context, reward = fit.observed, fit.context, fit.split.reward
    followers = np.array(observed.after) >= 0
    error = None if covariance is None else mean_error(fit.problem.embeddings, reward, covariance)
    diagnosed = partial(
        diagnose,
        np.where(followers, -1, observed.feedback),  # a follower depends on another signal, as declared
        signals=observed.signals,
        polarity=observed.polarity,
        misclick_rate=observed.misclick_rate,
        propensity_design=fit.split.found.propensities.designs,
        reward_logits=reward.held_out.cpu().numpy(),
        propensity_logits=fit.alone.cpu().numpy(),
        preference=observed.preference,
        labels_ignorable=labels_ignorable,
        weight=observed.weight,
        users=observed.users,
        fold_rewards=reward.each.cpu().numpy(),
        uncorrected_mean=None if context is None else fit.uncorrected,
        mean_error=error,
        propensity=observed.propensity,
        sessions=observed.sessions,
        times=observed.times,
        context=() if context is None else context.parts,
    )
    diagnosis = from_main_process(diagnosed, distributed=fit.problem.embeddings.blocks.distributed)
    if left_out is None:
        return diagnosis
    tests = tuple(left_out if test.name == left_out.name else test for test in diagnosis.tests)
    return replace(diagnosis, tests=tests)
