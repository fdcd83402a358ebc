"""Who competes. Each method is its loss and what it reads; heads, candidates and folds are the same for all.

A method reads what it needs from a `contest.Facts`: the feedback, and nuisances that are estimated from it. The bounds,
known propensities and explicit labels, read `contest.Bounds`, which alone holds the truth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irm_fast.experiments.reproduce.fitting import Lagged, Method
from irm_fast.losses import baselines
from irm_fast.losses.implicit import implicit_rm_loss


def _naive(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return baselines.naive_loss(s, log.acted)


def _ips(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return baselines.ips_loss(s, log.popularity, log.acted)


def _upu(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return baselines.upu_loss(s, log.acted, class_prior=log.class_prior, action_rate=log.action_rate)


def _nnpu(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return baselines.nnpu_loss(s, log.acted, class_prior=log.class_prior, action_rate=log.action_rate)


def _doubly_robust(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return baselines.doubly_robust_loss(s, log.popularity, log.acted, imputed_preference=log.imputed)


def _clamped(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    """The value of nnPU with its own gradient: the rule's other direction is for batches, not for a line search."""
    liked = log.acted * (log.class_prior / log.action_rate)
    risk = baselines.pointwise_loss(s, liked, torch.zeros_like(liked))
    return risk + baselines.pointwise_loss(s, torch.zeros_like(liked), 1 - liked).clamp(min=0)


def _sar_em(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return baselines.sar_em_loss(s, t.squeeze(1), log.acted, stratification=_one(lagged))


def _recrec(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return baselines.recrec_loss(s, t.squeeze(1), log.acted, stratification=_one(lagged))


def _one(lagged: Lagged) -> Lagged:
    return None if lagged is None else (lagged[0], lagged[1].squeeze(1))


def _stratified(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return implicit_rm_loss(s, t, log.feedback, stratification=lagged or (s.detach(), t.detach()))


def _marginal(s: Tensor, t: Any, log: Any, _: Lagged) -> Tensor:
    """Negative log-likelihood of the actions: comparable between models, unlike a loss with posteriors."""
    return implicit_rm_loss(s, t, log.feedback)


def _known(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return implicit_rm_loss(s, log.known, log.feedback)


def _explicit(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(s, log.preference)


# Losses with posteriors share the stationary points of the likelihood (Fisher's identity), which linear heads minimise
# outright: expectation maximisation would creep there. ReCRec's gradient is twice the likelihood's in the reward and
# once in the propensity, so that beside it the prior of the reward counts half.
LIKELIHOOD: dict[str, Any] = {"judge": _marginal, "objective": _marginal}
NAIVE = Method("naive", _naive)
BASELINES = (
    NAIVE,
    Method("Rel-MF / IPS", _ips),
    Method("uPU", _upu),
    Method("nnPU", _nnpu, objective=_clamped),
    Method("DR", _doubly_robust),
    Method("SAR-EM", _sar_em, **LIKELIHOOD, propensity="hidden", lagged=True),
    Method("ReCRec-I", _recrec, **LIKELIHOOD, reward_prior=0.5, propensity="item"),
    Method("ReCRec-F", _recrec, **LIKELIHOOD, reward_prior=0.5, propensity="hidden"),
)
FORMS = (
    Method("stratified, current (paper)", _stratified, **LIKELIHOOD, propensity="hidden", sees="each"),
    Method("stratified, lagged (paper)", _stratified, **LIKELIHOOD, propensity="hidden", lagged=True, sees="each"),
    Method("marginal, constant", _marginal, propensity="constant", sees="each"),
    Method("marginal, features", _marginal, propensity="features", sees="each"),
    Method("marginal, hidden", _marginal, propensity="hidden", sees="each"),
)
KNOWN = Method("known propensities", _known, sees="truth")
EXPLICIT = Method("explicit labels", _explicit, sees="truth")
BOUNDS = (KNOWN, EXPLICIT)
ITEMS = 64  # clusters of embeddings that stand for items
DEFAULT, DEFAULT_FEATURES = "ImplicitRM (default)", "ImplicitRM (default, + features)"
