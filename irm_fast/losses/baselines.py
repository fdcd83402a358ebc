"""Losses from the literature on implicit feedback, to compare with `irm_fast.implicit_rm_loss`.

Notation: s reward logit; `l1 = softplus(-s)` and `l0 = softplus(s)` the losses of a label of 1 and of 0; f feedback (1
acted, 0 silent, -1 not recorded); r* preference, with g = P(r* = 1), which is sigmoid(s) in the model; m propensity
P(f = 1 | r* = 1); pi class prior P(r* = 1) over all rows.

All but ReCRec turn the feedback into weights on l1 and l0, which are constants of the loss, and call `pointwise_loss`,
nnPU and SAR-EM twice. Each takes one signal: several have to be combined first, for example into "any acted". Rows that
are not recorded or have weight 0 contribute nothing, whatever else they hold. Numbers are checked, values of tensors by
`recrec_loss` alone.

`irm_fast.nuisances` estimates pi, m and imputed preferences from a log without clean labels, and names the assumption
of each estimate. CONTRIBUTING.md says how to add a baseline.

Examples:
    >>> import torch
    >>> from irm_fast import baselines
    >>> reward_logits = torch.tensor([2.0, -1.0, 0.5, 0.0])
    >>> propensity_logits = torch.zeros(4)  # a propensity of one half
    >>> feedback = torch.tensor([1, 0, 0, -1])  # the last one was not recorded
    >>> def show(loss):
    ...     print(f"{loss.item():.3f}")
    >>> show(baselines.naive_loss(reward_logits, feedback))
    0.354
    >>> show(baselines.ips_loss(reward_logits, 0.5, feedback))
    -0.146
    >>> show(baselines.upu_loss(reward_logits, feedback, class_prior=0.5))
    0.104
    >>> show(baselines.nnpu_loss(reward_logits, feedback, class_prior=0.5))
    0.104
    >>> show(baselines.doubly_robust_loss(reward_logits, 0.5, feedback, imputed_preference=0.5))
    0.166
    >>> show(baselines.sar_em_loss(reward_logits, propensity_logits, feedback))
    0.614
    >>> show(baselines.recrec_loss(reward_logits, propensity_logits, feedback))
    1.190
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import logsigmoid

from irm_fast.losses import batch_checks, checks
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
    """Binary cross-entropy that takes actions as labels: `f l1 + (1 - f) l0`.

    `l1 = softplus(-s)` and `l0 = softplus(s)` are the losses of a label of 1 and of 0. The loss is unbiased for
    P(f = 1), not for the preference: it learns the product of preference and propensity. It needs no estimates.

    Args:
        reward_logits: Logits s, (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        feedback: Feedback f, (N,): 1 acted, 0 silent, -1 or NaN not recorded; other values give NaN.
        weight: Row weights >= 0, (N,) real or bool; None: all 1. Rows of weight 0 contribute nothing.
        **options: `reduction`, `normalizer` and `backend`, as in `irm_fast.implicit_rm_loss`.

    Returns:
        The loss in float32 (float64 for float64 logits), of shape (), or (N,) for `reduction="none"`.

    Raises:
        TypeError: An argument is no dense tensor or of a wrong dtype, or `normalizer` is no number or tensor.
        ValueError: A shape, device or option is invalid, N = 0 for a plain mean, or `weight` requires a gradient.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.
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

    `l1 = softplus(-s)` and `l0 = softplus(s)` are the losses of a label of 1 and of 0. The loss is unbiased for the
    fully labelled loss if m is right. Its variance grows as 1/m: clipping m trades variance for bias.

    Args:
        reward_logits: Logits s, (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        propensity: m = P(acts | preferred) in (0, 1], not a logit: a number, or (N,) as tensor or NumPy array;
            constant. Given by an experiment, or estimated: Rel-MF takes the popularity of the item,
            `nuisances.popularity_propensity`, whose largest value is set to 1. It is right up to a factor at best, and
            so are the preference probabilities.
        feedback: Feedback f, (N,): 1 acted, 0 silent, -1 or NaN not recorded; other values give NaN.
        min_propensity: The limit in (0, 1] at which smaller propensities are clipped.
        weight: Row weights >= 0, (N,) real or bool; None: all 1. Rows of weight 0 contribute nothing.
        **options: `reduction`, `normalizer` and `backend`, as in `irm_fast.implicit_rm_loss`.

    Returns:
        The loss in float32 (float64 for float64 logits), of shape (), or (N,) for `reduction="none"`.

    Raises:
        TypeError: An argument is no dense tensor or of a wrong dtype, or `normalizer` is no number or tensor.
        ValueError: A shape, device, option or number is invalid, N = 0 for a plain mean, or `weight` requires grad.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.
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
    """Unbiased positive-unlabelled risk, uPU: `pi mean_P(l1 - l0) + mean_U l0` (du Plessis et al., ICML 2015).

    `l1 = softplus(-s)` and `l0 = softplus(s)` are the losses of a label of 1 and of 0. P are the rows that acted; U are
    all recorded rows, since in a log the acting rows were drawn from the same users. The loss is unbiased if all
    preferred rows have the same propensity (selected completely at random, SCAR); then it equals `ips_loss` with the
    constant propensity `action_rate / pi`. It has no lower bound, so flexible models overfit it.

    Args:
        reward_logits: Logits s, (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        feedback: Feedback f, (N,): 1 acted, 0 silent, -1 or NaN not recorded; other values give NaN.
        class_prior: pi = P(preferred), a number in (0, 1] or a 0-dim tensor; given, or from `nuisances.class_prior`.
        action_rate: Share of the recorded rows of the whole log that acted, a number in (0, 1] or a 0-dim tensor. None:
            the weighted share in this batch, as in the formula, which is biased where batches hold few actions.
        weight: Row weights >= 0, (N,) real or bool; None: all 1. Rows of weight 0 contribute nothing.
        **options: `reduction`, `normalizer` and `backend`, as in `irm_fast.implicit_rm_loss`.

    Returns:
        The loss in float32 (float64 for float64 logits), of shape (), or (N,) for `reduction="none"`.

    Raises:
        TypeError: An argument is no dense tensor or of a wrong dtype, or `normalizer` is no number or tensor.
        ValueError: A shape, device, option or number is invalid, N = 0 for a plain mean, or `weight` requires grad.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.
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
    """Non-negative positive-unlabelled risk, nnPU: `pi mean_P l1 + max(0, mean_U l0 - pi mean_P l0)`.

    Symbols and assumption as in `upu_loss`. The bracket, the second argument of max, estimates the risk on the rows
    that are not preferred, which cannot be negative. Where the bracket of the batch, a weighted mean over its recorded
    rows, falls below `-beta`, the gradient is that of `-gamma` times the bracket, which undoes some of the overfitting;
    elsewhere it is that of the formula without max. No value is read on the host. Source: Kiryo et al., NIPS 2017.

    Args:
        reward_logits: Logits s, (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        feedback: Feedback f, (N,): 1 acted, 0 silent, -1 or NaN not recorded; other values give NaN.
        class_prior: pi = P(preferred), a number in (0, 1] or a 0-dim tensor.
        action_rate: Share of the recorded rows of the whole log that acted, as in `upu_loss`; None: that of this batch.
        beta: How far below 0 the bracket may fall before its gradient is reversed, at least 0.
        gamma: Factor of the reversed gradient, in [0, 1]; 0: no gradient.
        weight: Row weights >= 0, (N,) real or bool; None: all 1. Rows of weight 0 contribute nothing.
        normalizer: Number or 0-dim tensor above 0 that the sum over rows is divided by; None: N. The rule is of a whole
            batch, so there is no `reduction`.
        backend: "triton", "cpu" or "reference"; None chooses by device and dtype.

    Returns:
        The loss, () float32 (float64 for float64 logits).

    Raises:
        TypeError: An argument is no dense tensor or of a wrong dtype, or `normalizer` is no number or tensor.
        ValueError: A shape, device, option or number is invalid, N = 0 for a plain mean, or `weight` requires grad.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.
    """
    positive, recorded = _positives(reward_logits, feedback, class_prior, action_rate, weight)
    if not checks.as_float("beta", beta) >= 0:
        raise ValueError(f"beta must be 0 or more, got {beta}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
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

    `l1 = softplus(-s)` and `l0 = softplus(s)` are the losses of a label of 1 and of 0. The form is that of Wang et al.
    (ICML 2019) for ratings, with actions in the place of observed ratings. An action shows preferred rows only, so with
    right m and g = P(preferred) the expectation is `g l1 + (1 - g) l(s, r)`: unlike for explicit feedback, it is the
    fully labelled loss only where r is 0 in rows that are not preferred.

    Args:
        reward_logits: Logits s, (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        propensity: m = P(acts | preferred) in (0, 1], see `ips_loss`: number, or (N,) tensor or NumPy array; constant.
        feedback: Feedback f, (N,): 1 acted, 0 silent, -1 or NaN not recorded; other values give NaN.
        imputed_preference: r in [0, 1], a number, or (N,) as tensor or NumPy array; constant. From another model of the
            log, `nuisances.imputed_preference`.
        min_propensity: The limit in (0, 1] at which smaller propensities are clipped.
        weight: Row weights >= 0, (N,) real or bool; None: all 1. Rows of weight 0 contribute nothing.
        **options: `reduction`, `normalizer` and `backend`, as in `irm_fast.implicit_rm_loss`.

    Returns:
        The loss in float32 (float64 for float64 logits), of shape (), or (N,) for `reduction="none"`.

    Raises:
        TypeError: An argument is no dense tensor or of a wrong dtype, or `normalizer` is no number or tensor.
        ValueError: A shape, device, option or number is invalid, N = 0 for a plain mean, or `weight` requires grad.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.
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
    """Inverse propensities with label noise, CausalRM (arXiv:2603.18736): `o (f L1 + (1 - f) L0) / m`.

    o is whether the user's reaction was observed, m = P(o = 1), and f the reaction, which differs from the preference
    r* with the known rates h10 and h01: `L1 = ((1 - h10) l1 - h01 l0) / D`, `L0 = ((1 - h01) l0 - h10 l1) / D`,
    `D = 1 - h10 - h01`, with `l1 = softplus(-s)` and `l0 = softplus(s)`. Unbiased for the fully labelled loss if m and
    the rates are right. A log of actions does not say who looked: without a recorded o this loss cannot be used.

    Args:
        reward_logits: Logits s, (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        propensity: m = P(observed) in (0, 1], a number, or (N,) as tensor or NumPy array; constant.
        feedback: Reaction f, (N,): 1 positive, 0 negative, -1 or NaN not recorded; else NaN where observed.
        observed: o, (N,): 1 observed; any other value means not observed.
        flip_rates: (h10, h01) = P(f = 1 | r* = 0, observed), P(f = 0 | r* = 1, observed), both at least 0, with a sum
            below 1; from a small sample with clean labels, or from rows whose preference is certain.
        min_propensity: The limit in (0, 1] at which smaller propensities are clipped.
        weight: Row weights >= 0, (N,) real or bool; None: all 1. Rows of weight 0 contribute nothing.
        **options: `reduction`, `normalizer` and `backend`, as in `irm_fast.implicit_rm_loss`.

    Returns:
        The loss in float32 (float64 for float64 logits), of shape (), or (N,) for `reduction="none"`.

    Raises:
        TypeError: An argument is no dense tensor or of a wrong dtype, or `normalizer` is no number or tensor.
        ValueError: A shape, device, option, number or flip rate is invalid, N = 0 for a plain mean, or `weight`
            requires a gradient.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.
    """
    h10, h01 = flip_rates
    if not (h10 >= 0 and h01 >= 0 and h10 + h01 < 1):
        raise ValueError(f"flip_rates must be two rates with a sum below 1, got {flip_rates}")
    f, recorded = _feedback(reward_logits, feedback, weight)
    observed = checks.check_codes("observed", observed, reward_logits.shape, reward_logits.device)
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
    """Expectation maximisation for labels selected at random, SAR-EM: `CE(q, s) + q BCE(m, f)`.

    g = sigmoid(s), m = sigmoid(t), and q = P(r* = 1 | f) is the posterior of the preference, a constant: 1 where the
    user acted, g (1 - m) / (1 - g m) elsewhere. CE and BCE are binary cross-entropies, CE with a logit. The propensity
    is learned from the rows that are likely preferred. Source: Bekker et al., ECML PKDD 2019.

    Args:
        reward_logits: Logits s, (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        propensity_logits: Logits t of P(acts | preferred), (N,), or a constant, () or (1,); same dtypes; trained
            together with the rewards.
        feedback: Feedback f, (N,): 1 acted, 0 silent, -1 or NaN not recorded; other values give NaN.
        stratification: (reward_logits', propensity_logits') that q comes from, (N,) each, constant; None: the current.
        weight: Row weights >= 0, (N,) real or bool; None: all 1. Rows of weight 0 contribute nothing.
        **options: `reduction`, `normalizer` and `backend`, as in `irm_fast.implicit_rm_loss`.

    Returns:
        The loss in float32 (float64 for float64 logits), of shape (), or (N,) for `reduction="none"`.

    Raises:
        TypeError: An argument is no dense tensor or of a wrong dtype, or `normalizer` is no number or tensor.
        ValueError: A shape, device or option is invalid, N = 0 for a plain mean, `stratification` is no pair, or
            `weight` requires a gradient.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.
    """
    f, recorded = _feedback(reward_logits, feedback, weight)
    propensity_logits = _propensity_of_rows(propensity_logits, reward_logits)
    posterior = reward_logits.detach(), propensity_logits.detach()
    if stratification is not None:
        posterior = batch_checks.check_stratification(stratification, reward_logits, propensity_logits)
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

    g = sigmoid(s), m = sigmoid(t); q and p are the posterior probabilities that the row is preferred and that the user
    is active, constants; CE and BCE are binary cross-entropies, CE with a logit. The last term fits the product m g to
    the actions. ReCRec-I has a propensity logit for each item, ReCRec-F one that depends freely on the response: the
    caller computes the logits, and trains them with this loss.

    Args:
        reward_logits: Logits s, (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        propensity_logits: Logits t of P(acts | preferred), (N,), or a constant, () or (1,), same dtypes.
        feedback: Feedback f, (N,): 1 acted, 0 silent, -1 or NaN not recorded. Other values raise on the CPU
            and reference backends and give NaN on a GPU.
        stratification: (reward_logits', propensity_logits') that the posteriors and the constant m come from, both
            (N,); None: the current ones.
        weight: Row weights >= 0, (N,) real or bool; None: all 1. Rows of weight 0 contribute nothing.
        reduction: "mean" (over N), "sum" or "none", as in `irm_fast.implicit_rm_loss`.
        normalizer: Number above 0 or 0-dim tensor that replaces N under "mean"; None: N.
        backend: "triton", "cpu" or "reference"; None chooses by device and dtype.

    Returns:
        The loss in float32 (float64 for float64 logits), of shape (), or (N,) for `reduction="none"`.

    Raises:
        TypeError: An argument is no dense tensor or of a wrong dtype, or `normalizer` is no number or tensor.
        ValueError: A shape, device or option is invalid, N = 0 for a plain mean, `stratification` is no pair, `weight`
            requires a gradient, or, on the CPU and reference backends, a value of `feedback` or `weight` is impossible.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.
    """
    recorded = _feedback(reward_logits, feedback, weight)[1]
    propensity_logits = _propensity_of_rows(propensity_logits, reward_logits)
    lagged = (reward_logits.detach(), propensity_logits.detach()) if stratification is None else stratification
    options: dict[str, Any] = {"reduction": reduction, "normalizer": normalizer, "backend": backend}
    pair: Tensor = implicit_rm_loss(
        reward_logits, propensity_logits, feedback, stratification=lagged, weight=recorded, **options
    )
    product: Tensor = implicit_rm_loss(reward_logits, lagged[1].detach(), feedback, weight=recorded, **options)
    return pair + product


def _propensity_of_rows(propensity_logits: Tensor, reward_logits: Tensor) -> Tensor:
    """Return propensity logits of one signal, or a constant one, as (N,)."""
    checks.check_logits("propensity_logits", propensity_logits, None, reward_logits.device)
    return batch_checks.logits_of_rows("propensity_logits", propensity_logits, reward_logits.shape)


def _feedback(reward_logits: Tensor, feedback: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return whether each row acted and whether it is recorded, both times its weight: (N,) float32, or float64."""
    batch_checks.check_rewards(reward_logits)
    feedback = checks.check_codes("feedback", feedback, reward_logits.shape, reward_logits.device)
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
    """Call `pointwise_loss` with the weights, replaced by 0 where a row does not count, whatever they are there."""
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
    """Return `pi f / rate` and whether each row is recorded, both times the weight."""
    f, recorded = _feedback(reward_logits, feedback, weight)
    prior = _numbers("class_prior", class_prior, reward_logits, rows=False)
    given = f.sum() / recorded.sum() if action_rate is None else action_rate
    rate = _numbers("action_rate", given, reward_logits, rows=False)
    return torch.where(f == 0, 0.0, f * prior / rate), recorded  # a batch without actions has no mean over them


def _numbers(
    name: str, values: Any, reward_logits: Tensor, *, least: float | None = None, rows: bool = True
) -> Tensor | float:
    """Return constants in the precision of weights; a number has to lie in (0, 1] or be equal to `least`."""
    if isinstance(values, (int, float, np.number)):
        if not (0 < values <= 1 or values == least):  # NaN fails too
            raise ValueError(f"{name} must be a probability, got {values}")
        return float(values)
    if not isinstance(values, Tensor):
        values = torch.as_tensor(values, device=reward_logits.device)
    checks.check_tensor(name, values)
    shapes = [torch.Size(()), reward_logits.shape] if rows else [torch.Size(())]
    if values.shape not in shapes:
        expected = "a number or have shape " + str(tuple(reward_logits.shape)) if rows else "a number"
        raise ValueError(f"{name} must be {expected}, got shape {tuple(values.shape)}")
    if values.dim() and values.device != reward_logits.device:
        raise ValueError(f"{name} is on {values.device}, reward_logits on {reward_logits.device}")
    constants: Tensor = values.detach()
    return constants.to(torch.float64 if reward_logits.dtype == torch.float64 else torch.float32)


def _clipped(propensity: Any, least: float, reward_logits: Tensor) -> Tensor | float:
    """Return the propensity, checked, with values below `least` replaced by it."""
    if not 0 < least <= 1:
        raise ValueError(f"min_propensity must lie in (0, 1], got {least}")
    propensity = _numbers("propensity", propensity, reward_logits)
    return propensity.clamp(min=least) if isinstance(propensity, Tensor) else max(propensity, least)
