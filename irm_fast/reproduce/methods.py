"""Who competes. Each method is its loss and what it reads; heads, candidates and folds are the same for all.

A method reads what it needs from a `contest.Facts`: the feedback, and nuisances that are estimated from it. The bounds,
known propensities and explicit labels, read `contest.Bounds`, which alone holds the truth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irm_fast import baselines, implicit_rm_loss
from irm_fast.reproduce.fitting import Lagged, Method


def _naive(s: Tensor, _: Any, log: Any, __: Lagged) -> Tensor:
    return baselines.naive_loss(s, log.acted)


def _ips(s: Tensor, _: Any, log: Any, __: Lagged) -> Tensor:
    return baselines.ips_loss(s, log.popularity, log.acted)


def _upu(s: Tensor, _: Any, log: Any, __: Lagged) -> Tensor:
    return baselines.upu_loss(s, log.acted, class_prior=log.class_prior, action_rate=log.action_rate)


def _nnpu(s: Tensor, _: Any, log: Any, __: Lagged) -> Tensor:
    return baselines.nnpu_loss(s, log.acted, class_prior=log.class_prior, action_rate=log.action_rate)


def _doubly_robust(s: Tensor, _: Any, log: Any, __: Lagged) -> Tensor:
    return baselines.doubly_robust_loss(s, log.popularity, log.acted, imputed_preference=log.imputed)


def _sar_em(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return baselines.sar_em_loss(s, t.squeeze(1), log.acted, stratification=_one(lagged))


def _recrec(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return baselines.recrec_loss(s, t.squeeze(1), log.acted, stratification=_one(lagged))


def _one(lagged: Lagged) -> Lagged:
    return None if lagged is None else (lagged[0], lagged[1].squeeze(1))


def _actions(s: Tensor, t: Any, log: Any, _: Lagged) -> Tensor:
    """Negative log-likelihood of whether the user acted: comparable between models, unlike a loss with posteriors."""
    return implicit_rm_loss(s, t.squeeze(1), log.acted)


def _stratified(s: Tensor, t: Any, log: Any, lagged: Lagged) -> Tensor:
    return implicit_rm_loss(s, t, log.feedback, stratification=lagged or (s.detach(), t.detach()))


def _marginal(s: Tensor, t: Any, log: Any, _: Lagged) -> Tensor:
    return implicit_rm_loss(s, t, log.feedback)


def _known(s: Tensor, _: Any, log: Any, __: Lagged) -> Tensor:
    return implicit_rm_loss(s, log.known, log.feedback)


def _explicit(s: Tensor, _: Any, log: Any, __: Lagged) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(s, log.preference)


NAIVE = Method("naive", _naive)
LAG = 5
BASELINES = (
    NAIVE,
    Method("Rel-MF / IPS", _ips),
    Method("uPU", _upu),
    Method("nnPU", _nnpu),
    Method("DR", _doubly_robust),
    Method("SAR-EM", _sar_em, _actions, "hidden", LAG),
    Method("ReCRec-I", _recrec, _actions, "item", 1),
    Method("ReCRec-F", _recrec, _actions, "hidden", 1),
)
FORMS = (
    Method("stratified, current (paper)", _stratified, _marginal, "hidden", 1),
    Method("stratified, lagged (paper)", _stratified, _marginal, "hidden", LAG),
    Method("marginal, constant", _marginal, propensity="constant"),
    Method("marginal, features", _marginal, propensity="features"),
    Method("marginal, hidden", _marginal, propensity="hidden"),
)
KNOWN, EXPLICIT = Method("known propensities", _known), Method("explicit labels", _explicit)
BOUNDS = (KNOWN, EXPLICIT)
DEFAULT, DEFAULT_FEATURES = "ImplicitRM (default)", "ImplicitRM (default, + features)"
