"""The losses that people learn from implicit feedback with, to compare `irm_fast.implicit_rm_loss` to.

s are the reward logits, `l1 = softplus(-s)` and `l0 = softplus(s)` the losses of a label of 1 and of 0, f the feedback,
m the propensity P(act | preferred), pi the class prior P(preferred). All but ReCRec are weights on l1 and l0 for a
launch of `pointwise_loss`, two for nnPU and SAR-EM; the weights are constants, whatever they were computed from.

Shared arguments:
    reward_logits: (N,) float32, bfloat16 or float16; float64 selects the reference backend.
    feedback: (N,) bool or integer: 1 acted, 0 silent, -1 missing; anything else gives NaN. Several signals have to be
        made one first, such as "any acted": these losses know one.
    propensity: probabilities in (0, 1], not logits: a number, or (N,) as tensor or numpy array.
    weight: (N,) row weights >= 0. Rows that are missing or of weight 0 contribute nothing, whatever else they hold.
    reduction, normalizer, backend: as in `irm_fast.implicit_rm_loss`.
All return float32 (float64 for float64 logits), () or, for reduction "none", (N,). They raise TypeError and ValueError
for arguments of other kinds, shapes or devices, and for numbers out of range; values of tensors are not looked at.

Nuisances are the quantities that a loss needs and nobody is interested in. `irm_fast.nuisances` estimates class prior,
propensity and imputed preferences from a log without clean labels; what each assumes is said there. CONTRIBUTING.md
says how to add a baseline.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import logsigmoid

from irm_fast.losses import checks
from irm_fast.losses.implicit import implicit_rm_loss
from irm_fast.losses.operator import Reduction, divided
from irm_fast.losses.pointwise import pointwise_loss

__all__ = [
    "causalrm_loss",
    "doubly_robust_loss",
    "ips_loss",
    "naive_loss",
    "nnpu_loss",
    "pointwise_loss",
    "recrec_loss",
    "sar_em_loss",
    "upu_loss",
]
MIN_PROPENSITY = 0.05


def naive_loss(reward_logits: Tensor, feedback: Tensor, *, weight: Tensor | None = None, **options: Any) -> Tensor:
    """Binary cross-entropy that takes actions for labels: `f l1 + (1 - f) l0`.

    Unbiased for P(f = 1), not for the preference: it learns the product of preference and propensity. Nothing else is
    needed.
    """
    f, recorded = _feedback(reward_logits, feedback, weight)
    return pointwise_loss(reward_logits, f, recorded - f, **options)


def ips_loss(
    reward_logits: Tensor,
    propensity: ArrayLike | Tensor,
    feedback: Tensor,
    *,
    min_propensity: float = MIN_PROPENSITY,
    weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Inverse propensity scoring, the loss of Rel-MF: `(f/m) l1 + (1 - f/m) l0` (Saito et al., WSDM 2020).

    Unbiased for the fully labelled loss if m is right, at a variance that grows as 1/m: m is clipped at
    `min_propensity` from below, which trades some of it for bias. The propensity is given, by an experiment, or
    estimated: Rel-MF takes the popularity of the item, `nuisances.popularity_propensity`. Its largest value is 1: the
    scale is arbitrary, and so is that of the reward.
    """
    f, recorded = _feedback(reward_logits, feedback, weight)
    ratio = f / _clipped(propensity, min_propensity, reward_logits)
    return _risk(reward_logits, ratio, recorded - ratio, recorded != 0, options)


def upu_loss(
    reward_logits: Tensor,
    feedback: Tensor,
    *,
    class_prior: Tensor | float,
    action_rate: Tensor | float | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Unbiased risk from positive and unlabelled rows: `pi mean_P(l1 - l0) + mean_U l0` (du Plessis et al., ICML 2015).

    P are the rows that acted; U are all recorded rows, since in a log the acting rows were drawn from the same users.
    Unbiased if preferred rows act equally often everywhere (SCAR); then it is `ips_loss` with the constant propensity
    `action_rate / pi`. Its value has no lower bound: flexible models overfit it.

    class_prior: pi, a number or 0-dim tensor; given, or by best bin estimation, `nuisances.class_prior`.
    action_rate: share of the acting among the recorded rows of the whole log; None: that of this batch, as in the
        formula, which is biased where batches hold few actions.
    """
    positive, recorded = _positives(reward_logits, feedback, class_prior, action_rate, weight)
    return pointwise_loss(reward_logits, positive, recorded - positive, **options)


def nnpu_loss(
    reward_logits: Tensor,
    feedback: Tensor,
    *,
    class_prior: Tensor | float,
    action_rate: Tensor | float | None = None,
    beta: float = 0.0,
    gamma: float = 1.0,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Non-negative risk of positive and unlabelled rows, nnPU (Kiryo et al., NIPS 2017).

    `pi mean_P l1 + max(0, mean_U l0 - pi mean_P l0)`. The bracket estimates the risk on the rows that are not
    preferred, which cannot be negative. Where that of the batch, a mean over its recorded rows, falls below `-beta`,
    the gradient is that of `-gamma` times the bracket instead, which undoes some of the overfitting. The rule is of a
    whole batch: the result is (), a sum over N or `normalizer`. No value is read on the host.

    Arguments and assumption as in `upu_loss`.
    """
    positive, recorded = _positives(reward_logits, feedback, class_prior, action_rate, weight)
    if not beta >= 0:
        raise ValueError(f"beta must be 0 or more, got {beta}")
    n = reward_logits.shape[0]
    checks.check_reduction(n, reward_logits.device, "mean", normalizer)
    nothing = torch.zeros_like(positive)
    liked = pointwise_loss(reward_logits, positive, nothing, reduction="sum", backend=backend)
    rest = pointwise_loss(reward_logits, nothing, recorded - positive, reduction="sum", backend=backend)
    followed = torch.where(rest < -beta * recorded.sum(), -gamma * rest, liked + rest)
    value = (liked + rest.clamp(min=0)).detach()
    return divided(followed + (value - followed.detach()), n if normalizer is None else normalizer)


def doubly_robust_loss(
    reward_logits: Tensor,
    propensity: ArrayLike | Tensor,
    feedback: Tensor,
    *,
    imputed_preference: ArrayLike | Tensor,
    min_propensity: float = MIN_PROPENSITY,
    weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Doubly robust loss for implicit feedback: `f (l1 - l(s, r)) / m + l(s, r)`, with `l(s, r) = r l1 + (1 - r) l0`.

    The form of Wang et al. (ICML 2019) for ratings, with actions in the place of observed ratings.
    r is an imputed preference in [0, 1], (N,) or a number. An action shows preferred rows only, so with right m the
    expectation is `g l1 + (1 - g) l(s, r)`: unlike for explicit feedback, it is the fully labelled loss only where r is
    0 in rows that are not preferred. m as in `ips_loss`; r from another model of the log,
    `nuisances.imputed_preference`.
    """
    f, recorded = _feedback(reward_logits, feedback, weight)
    ratio = f / _clipped(propensity, min_propensity, reward_logits)
    r = _numbers("imputed_preference", imputed_preference, reward_logits, least=0.0)
    return _risk(reward_logits, recorded * r + ratio * (1 - r), (recorded - ratio) * (1 - r), recorded != 0, options)


def causalrm_loss(
    reward_logits: Tensor,
    propensity: ArrayLike | Tensor,
    feedback: Tensor,
    *,
    observed: Tensor,
    flip_rates: tuple[float, float],
    min_propensity: float = MIN_PROPENSITY,
    weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Inverse propensities and noisy labels, CausalRM (arXiv:2603.18736): `o (f L1 + (1 - f) L0) / m`.

    o is whether the user's reaction was observed, m = P(o = 1), and f the reaction, which is flipped with known rates:
    `L1 = ((1 - h10) l1 - h01 l0) / D`, `L0 = ((1 - h01) l0 - h10 l1) / D`, `D = 1 - h10 - h01`. Unbiased for the fully
    labelled loss if m and the rates are right. A log of actions does not say who looked: without a recorded o this loss
    cannot be used.

    observed: (N,) bool or 0 and 1: o.
    flip_rates: (h10, h01) = P(f = 1 | r* = 0, observed), P(f = 0 | r* = 1, observed), with a sum below 1; from a small
        sample with clean labels, or from rows that are certain to please, or not to.
    """
    h10, h01 = flip_rates
    if not (h10 >= 0 and h01 >= 0 and h10 + h01 < 1):
        raise ValueError(f"flip_rates must be two rates with a sum below 1, got {flip_rates}")
    f, recorded = _feedback(reward_logits, feedback, weight)
    checks.check_codes("observed", observed, reward_logits.shape, reward_logits.device)
    scale = 1 / (_clipped(propensity, min_propensity, reward_logits) * (1 - h10 - h01))
    silent, counted = recorded - f, (observed == 1) & (recorded != 0)
    positive, negative = scale * (f * (1 - h10) - silent * h10), scale * (silent * (1 - h01) - f * h01)
    return _risk(reward_logits, positive, negative, counted, options)


def sar_em_loss(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    stratification: tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Expectation maximisation where labels are selected at random, SAR-EM (Bekker et al., ECML PKDD 2019).

    `CE(q, s) + q BCE(m, f)` with m = sigmoid(propensity logit) and the posterior q = P(r* = 1 | f), a constant: 1 where
    the user acted, g (1 - m) / (1 - g m) elsewhere. The propensity is learned from the rows that are likely preferred.

    propensity_logits: (N,), trained together with the rewards.
    stratification: (reward_logits', propensity_logits') that q comes from, both (N,); None: the current ones.
    """
    f, recorded = _feedback(reward_logits, feedback, weight)
    checks.check_logits("propensity_logits", propensity_logits, reward_logits.shape, reward_logits.device)
    posterior = reward_logits.detach(), propensity_logits.detach()
    if stratification is not None:
        posterior = checks.check_stratification(stratification, reward_logits, propensity_logits)
    s, t = posterior
    acted, counted = (feedback == 1).to(f.dtype), recorded != 0
    # P(r* = 1 | silent) = g (1 - m) / (1 - g m), in logits
    q = f + (recorded - f) * torch.sigmoid(s.to(f.dtype) + logsigmoid(-t.to(f.dtype)))
    reward = _risk(reward_logits, q, recorded - q, counted, options)
    return reward + _risk(propensity_logits, q * acted, q * (1 - acted), counted, options)


def recrec_loss(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    stratification: tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """ReCRec (Lin et al., TOIS 2024): `CE(q, s) + CE(p, t) + BCE(f, m g)`, with m a constant in the last term.

    q and p are the posterior masses of "preferred" and "active", constants; the last term fits the product to the
    actions. ReCRec-I has a propensity logit for each item, ReCRec-F one that depends on the response freely: the caller
    makes the logits, and learns them by this loss.

    propensity_logits: (N,).  stratification: as in `sar_em_loss`; posteriors and the constant m come from it.
    """
    recorded = _feedback(reward_logits, feedback, weight)[1]
    checks.check_logits("propensity_logits", propensity_logits, reward_logits.shape, reward_logits.device)
    lagged = (reward_logits.detach(), propensity_logits.detach()) if stratification is None else stratification
    options: dict[str, Any] = {"reduction": reduction, "normalizer": normalizer, "backend": backend}
    pair: Tensor = implicit_rm_loss(
        reward_logits, propensity_logits, feedback, stratification=lagged, weight=recorded, **options
    )
    product: Tensor = implicit_rm_loss(reward_logits, lagged[1].detach(), feedback, weight=recorded, **options)
    return pair + product


def _feedback(reward_logits: Tensor, feedback: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Whether a row acted and whether it is recorded, both times its weight: (N,) float32, or float64."""
    checks.check_rewards(reward_logits)
    checks.check_codes("feedback", feedback, reward_logits.shape, reward_logits.device)
    dtype = torch.float64 if reward_logits.dtype == torch.float64 else torch.float32
    code = feedback.to(torch.int16) if feedback.dtype in (torch.bool, torch.uint8) else feedback  # 255 is not -1
    acted = code == 1
    recorded = torch.where(acted | (code == 0), 1.0, torch.where(code == -1, 0.0, torch.nan)).to(dtype)
    if weight is not None:
        weight = checks.check_weight(weight, reward_logits).to(dtype)
        recorded = torch.where(weight == 0, 0.0, recorded * weight)
    return torch.where(acted, recorded, 0.0), recorded


def _risk(
    reward_logits: Tensor, positive: Tensor, negative: Tensor, counted: Tensor, options: dict[str, Any]
) -> Tensor:
    """`pointwise_loss` with weights that are 0 where a row does not count, whatever made them."""
    return pointwise_loss(
        reward_logits, torch.where(counted, positive, 0.0), torch.where(counted, negative, 0.0), **options
    )


def _positives(
    reward_logits: Tensor,
    feedback: Tensor,
    class_prior: Tensor | float,
    action_rate: Tensor | float | None,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`pi f / rate` and the recorded rows, both times the weight."""
    f, recorded = _feedback(reward_logits, feedback, weight)
    prior = _numbers("class_prior", class_prior, reward_logits, rows=False)
    given = f.sum() / recorded.sum() if action_rate is None else action_rate
    rate = _numbers("action_rate", given, reward_logits, rows=False)
    return torch.where(f == 0, 0.0, f * prior / rate), recorded  # a batch without actions has no mean over them


def _numbers(
    name: str, values: Any, reward_logits: Tensor, *, least: float | None = None, rows: bool = True
) -> Tensor | float:
    """Constants in the precision that weights are read in; a number has to lie in (0, 1], or from `least` on."""
    if isinstance(values, (int, float, np.number)):
        if not (0 < values <= 1 or values == least):  # NaN fails too
            raise ValueError(f"{name} must be a probability, got {values}")
        return float(values)
    if not isinstance(values, Tensor):
        values = torch.as_tensor(values, device=reward_logits.device)
    shapes = [torch.Size(()), reward_logits.shape] if rows else [torch.Size(())]
    if values.shape not in shapes:
        expected = "a number or have shape " + str(tuple(reward_logits.shape)) if rows else "a number"
        raise ValueError(f"{name} must be {expected}, got shape {tuple(values.shape)}")
    if values.dim() and values.device != reward_logits.device:
        raise ValueError(f"{name} is on {values.device}, reward_logits on {reward_logits.device}")
    constants: Tensor = values.detach()
    return constants.to(torch.float64 if reward_logits.dtype == torch.float64 else torch.float32)


def _clipped(propensity: Any, least: float, reward_logits: Tensor) -> Tensor | float:
    if not 0 < least <= 1:
        raise ValueError(f"min_propensity must lie in (0, 1], got {least}")
    propensity = _numbers("propensity", propensity, reward_logits)
    return propensity.clamp(min=least) if isinstance(propensity, Tensor) else max(propensity, least)
