"""Who competes. Each method is its loss and what it reads; heads, candidates and folds are the same for all.

Losses take the logits of some rows and what is known of these rows: `Actions`, or `ActionsAndEstimates` where they need
nuisances. The bounds, known propensities and explicit labels, read `ActionsAndTruth`, which alone holds the truth.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from irm_fast.experiments.reproduce.facts import Actions, ActionsAndEstimates, ActionsAndTruth
from irm_fast.experiments.reproduce.fitting import Logits, Method
from irm_fast.losses import baselines
from irm_fast.losses.implicit import implicit_rm_loss

# Losses of the actions, taken for labels


def _naive(logits: Logits, log: Actions) -> Tensor:
    return baselines.naive_loss(logits.reward, log.acted)


def _ips(logits: Logits, log: ActionsAndEstimates) -> Tensor:
    return baselines.ips_loss(logits.reward, log.popularity, log.acted)


def _upu(logits: Logits, log: ActionsAndEstimates) -> Tensor:
    return baselines.upu_loss(logits.reward, log.acted, class_prior=log.class_prior, action_rate=log.action_rate)


def _nnpu(logits: Logits, log: ActionsAndEstimates) -> Tensor:
    return baselines.nnpu_loss(logits.reward, log.acted, class_prior=log.class_prior, action_rate=log.action_rate)


def _clamped(logits: Logits, log: ActionsAndEstimates) -> Tensor:
    """The value of nnPU with its own gradient: the rule's other direction is for batches, not for a line search."""
    liked = log.acted * (log.class_prior / log.action_rate)
    risk = baselines.pointwise_loss(logits.reward, liked, torch.zeros_like(liked))
    return risk + baselines.pointwise_loss(logits.reward, torch.zeros_like(liked), 1 - liked).clamp(min=0)


def _doubly_robust(logits: Logits, log: ActionsAndEstimates) -> Tensor:
    return baselines.doubly_robust_loss(logits.reward, log.popularity, log.acted, imputed_preference=log.imputed)


# What products do with actions


def _pairs(logits: Logits, log: Actions) -> Tensor:
    """Bradley-Terry over pairs: each row that acted against a silent one of its prompt, or of the next that has one."""
    order = torch.argsort(log.group, stable=True)
    acted, reward = log.acted[order] == 1, logits.reward[order]
    better, silent = acted.nonzero().squeeze(1), (~acted).nonzero().squeeze(1)
    if not len(better) or not len(silent):
        return 0 * logits.reward.sum()
    group = log.group[order]
    place = torch.searchsorted(group[silent], group[better])  # the first silent row from this prompt on
    worse = silent[place % len(silent)]
    return torch.nn.functional.softplus(reward[worse] - reward[better]).mean()


def _kto(logits: Logits, log: Actions) -> Tensor:
    """The value function of KTO (arXiv:2402.01306) around 0, with acted and silent rows of equal weight."""
    acted, rate = log.acted == 1, log.action_rate
    weight = torch.where(acted, 1 / (2 * rate), 1 / (2 * (1 - rate)))
    return (weight * torch.sigmoid(torch.where(acted, -logits.reward, logits.reward))).mean()


def _towers(logits: Logits, log: Actions) -> Tensor:
    """The actions by a sum of two logits, of which one is the reward (Zhao et al., doi 10.1145/3298689.3346997)."""
    return baselines.naive_loss(logits.reward + logits.propensity.squeeze(1), log.acted)


# Losses with posteriors, from the weights at the start of an epoch or from the present ones


def _sar_em(logits: Logits, log: Actions) -> Tensor:
    return baselines.sar_em_loss(
        logits.reward, logits.propensity.squeeze(1), log.acted, stratification=_lagged_of_one_signal(logits)
    )


def _recrec(logits: Logits, log: Actions) -> Tensor:
    return baselines.recrec_loss(
        logits.reward, logits.propensity.squeeze(1), log.acted, stratification=_lagged_of_one_signal(logits)
    )


def _lagged_of_one_signal(logits: Logits) -> tuple[Tensor, Tensor] | None:
    return None if logits.lagged is None else (logits.lagged[0], logits.lagged[1].squeeze(1))


def _stratified(logits: Logits, log: Actions) -> Tensor:
    posteriors_from = logits.lagged or (logits.reward.detach(), logits.propensity.detach())
    return implicit_rm_loss(logits.reward, logits.propensity, log.feedback, stratification=posteriors_from)


# Likelihoods


def _marginal(logits: Logits, log: Actions) -> Tensor:
    """Negative log-likelihood of the actions: comparable between models, unlike a loss with posteriors."""
    return implicit_rm_loss(logits.reward, logits.propensity, log.feedback)


def known_loss(logits: Logits, log: ActionsAndTruth, misclick_rate: float | None = None) -> Tensor:
    """Negative log-likelihood of the actions under true propensities, and a true rate of misclicks where there are."""
    return implicit_rm_loss(logits.reward, log.known, log.feedback, misclick_rate=misclick_rate)


def _explicit(logits: Logits, log: ActionsAndTruth) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(logits.reward, log.preference)


# Losses with posteriors share the stationary points of the likelihood (Fisher's identity), which linear heads minimise
# outright: expectation maximisation would creep there. ReCRec's gradient is twice the likelihood's in the reward and
# once in the propensity, so that beside it the prior of the reward counts half.
LIKELIHOOD: dict[str, Any] = {"judge": _marginal, "objective": _marginal}
NAIVE: Method[Actions] = Method("naive", _naive)
ON_ESTIMATES: tuple[Method[ActionsAndEstimates], ...] = (
    Method("Rel-MF / IPS", _ips),
    Method("uPU", _upu),
    Method("nnPU", _nnpu, objective=_clamped),
    Method("DR", _doubly_robust),
)
WITH_POSTERIORS: tuple[Method[Actions], ...] = (
    Method("SAR-EM", _sar_em, **LIKELIHOOD, propensity="hidden", lagged=True),
    Method("ReCRec-I", _recrec, **LIKELIHOOD, reward_prior=0.5, propensity="item"),
    Method("ReCRec-F", _recrec, **LIKELIHOOD, reward_prior=0.5, propensity="hidden"),
)
PENALISED = "naive, length taken out"  # a classifier of actions less what its reward owes to length
PRODUCTS: tuple[Method[Actions], ...] = (Method("pairs (Bradley-Terry)", _pairs), Method("KTO", _kto))
BASELINES: tuple[Method[Any], ...] = (NAIVE, *PRODUCTS, *ON_ESTIMATES, *WITH_POSTERIORS)
FORMS: tuple[Method[Actions], ...] = (
    Method("stratified, current (paper)", _stratified, **LIKELIHOOD, propensity="hidden", sees="each"),
    Method("stratified, lagged (paper)", _stratified, **LIKELIHOOD, propensity="hidden", lagged=True, sees="each"),
    Method("marginal, constant", _marginal, propensity="constant", sees="each"),
    Method("marginal, features", _marginal, propensity="features", sees="each"),
    Method("marginal, hidden", _marginal, propensity="hidden", sees="each"),
)
KNOWN: Method[ActionsAndTruth] = Method("known propensities", known_loss, sees="each")
EXPLICIT: Method[ActionsAndTruth] = Method("explicit labels", _explicit, sees="each")
BOUNDS = (KNOWN, EXPLICIT)
# Methods that are given the visible features too, as `EmbeddingRewardModel` may be
RECREC, PAPER = WITH_POSTERIORS[-1], FORMS[1]
TOWERS: Method[Actions] = Method("two towers", _towers, propensity="features")
WITH_FEATURES: tuple[Method[Actions], ...] = (
    TOWERS,
    replace(RECREC, name=f"{RECREC.name}, + features", propensity="both"),
    replace(PAPER, name=f"{PAPER.name}, + features", propensity="both"),
)
BY_NAME: dict[str, Method[Any]] = {method.name: method for method in (*BASELINES, *FORMS, *WITH_FEATURES, *BOUNDS)}
ITEMS = 64  # clusters of embeddings that stand for items
DEFAULT, DEFAULT_FEATURES = "ImplicitRM (default)", "ImplicitRM (default, + features)"  # `EmbeddingRewardModel`
LOWER = "ImplicitRM (default, lower)"  # the lower ends of its intervals
