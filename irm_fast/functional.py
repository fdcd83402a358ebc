"""The public operations: argument checks, choice of backend, one thin autograd.Function.

Method: ImplicitRM, arXiv:2603.23184, section 3, extended to several signals, labels and misclicks. A user prefers the
response with probability g = sigmoid(reward logit) and, independently, is active on signal k with probability
m_k = sigmoid(propensity logit); a signal is recorded when both hold.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from irm_fast import checks
from irm_fast.backends import choose_backend

Reduction = Literal["mean", "sum", "none"]


def implicit_rm_loss(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    preference: Tensor | None = None,
    polarity=None,
    misclick_rate=None,
    stratification: tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    return_groups: bool = False,
    check_values: bool = False,
    backend: str | None = None,
) -> Any:
    """Unbiased reward-model loss on implicit feedback: four-group posterior, loss and gradients in one launch.

    Without `stratification` it is the negative log-likelihood of the log, `-log(g m)` where the user acted and
    `-log(1 - g m)` where not (one signal). With it, the two cross-entropies of the paper against the posterior that the
    given logits imply, which is held constant. With equal logits both have the same gradients.

    Args:
        reward_logits: (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        propensity_logits: (N,), or (N, K) for K signals, at most 16; same dtypes.
        feedback: shape of `propensity_logits`, bool or integer: 1 acted, 0 silent, -1 missing (contributes nothing).
        preference: (N,) explicit labels, bool or integer: 1 preferred, 0 not preferred, -1 unknown.
        polarity: (K,) of +1 (caused by pleasure: click, copy) and -1 (by displeasure: thumbs-down); default all +1.
        misclick_rate: number or (K,) in [0, 1): the chance that an active user acts although r* speaks against it.
        stratification: (reward_logits', propensity_logits') of a separate stratification model, shapes as above.
        weight: (N,) row weights >= 0. A row of weight 0 contributes nothing, whatever it holds.
        reduction: "mean" is sum(weight * loss) / N, as in PyTorch; "sum"; "none" gives weight * loss, (N,).
        normalizer: a number or 0-dim tensor that replaces N under "mean": the examples of the whole optimiser step.
        return_groups: also return the posterior, see `stratify`; it comes from the same launch and carries no gradient.
        check_values: look at the values too and raise ValueError on impossible ones. Waits for the device. The CPU
            and reference backends always look; on a GPU an impossible value otherwise gives NaN.
        backend: "triton", "cpu" or "reference"; None chooses by device and dtype.

    Returns:
        The loss, float32 (float64 for float64 logits): () or, for "none", (N,). With `return_groups` the pair
        (loss, groups). Gradients come in the dtype of their logits, rounded once.

    Evidence that contradicts itself (a click and a thumbs-down where no misclick is allowed) has likelihood zero: its
    loss is +inf and its gradients are NaN. A logit that is not finite gives NaN. Inputs are never written to, and
    double backward is not supported.

    Raises:
        TypeError: logits that are not floating point, feedback or preference that is.
        ValueError: shapes, devices, or values that do not fit; "mean" over no rows without a normalizer.
        RuntimeError: a backend that cannot be had here; a second differentiation.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {get_args(Reduction)}, got {reduction!r}")
    if normalizer is not None and reduction != "mean":
        raise ValueError(f'normalizer replaces N under reduction="mean"; it means nothing with {reduction!r}')
    checks.check_batch(reward_logits, propensity_logits, feedback, preference)
    n = reward_logits.shape[0]
    if n == 0 and reduction == "mean" and normalizer is None:
        raise ValueError('reduction="mean" over no rows (N=0): give a normalizer, or use "sum"')
    if weight is not None:
        weight = checks.check_weight(weight, reward_logits)
    if stratification is not None:
        stratification = checks.check_stratification(stratification, reward_logits, propensity_logits)
    if normalizer is not None:
        checks.check_normalizer(normalizer, reward_logits.device)
    if check_values:
        checks.check_values(feedback, preference, weight)

    scale, divide_by = 1.0, None
    if isinstance(normalizer, Tensor):
        divide_by = normalizer  # stays on its device: never read here
    elif reduction == "mean":
        scale = 1.0 / (n if normalizer is None else normalizer)
    forward = _forward(
        reward_logits,
        propensity_logits,
        feedback,
        polarity,
        misclick_rate,
        backend,
        preference=preference,
        weight=weight,
        stratification=stratification,
        scale=scale,
        per_row=reduction == "none",
        need_groups=return_groups,
    )
    loss, groups = _ImplicitRM.apply(reward_logits, propensity_logits, forward, torch.is_grad_enabled())
    if divide_by is not None:
        loss = loss / divide_by.to(loss.dtype)
    return (loss, groups) if return_groups else loss


def stratify(
    reward_logits: Tensor,
    propensity_logits: Tensor,
    feedback: Tensor,
    *,
    preference: Tensor | None = None,
    polarity=None,
    misclick_rate=None,
) -> Tensor:
    """Posterior over the four latent groups of every row and signal.

    PA: preferred and active, NA: not preferred and active, PP: preferred and passive, NP: not preferred and passive.

    Arguments as in `implicit_rm_loss`. Returns (N, 4), or (N, K, 4) for two-dimensional propensities, in the dtype of
    `propensity_logits`, in the order PA, NA, PP, NP; every four sum to one. No gradient flows through it. Rows whose
    evidence contradicts itself, or whose logits are not finite, are NaN. Raises as `implicit_rm_loss` does.
    Source: arXiv:2603.23184, Table 1 (the labels of NA and PP are interchanged in its equation 6).
    """
    checks.check_batch(reward_logits, propensity_logits, feedback, preference)
    forward = _forward(
        reward_logits, propensity_logits, feedback, polarity, misclick_rate, None,
        preference=preference, weight=None, stratification=None, scale=1.0, per_row=False, need_groups=True,
    )  # fmt: skip
    *_, groups = forward(reward_logits.detach(), propensity_logits.detach(), need_grads=(False, False))
    return groups.to(propensity_logits.dtype)


def _forward(
    reward: Tensor, propensity: Tensor, feedback: Tensor, polarity, misclick_rate, backend, **options
) -> Callable:
    """The backend's forward pass with everything bound but the two logits and what is wanted of their gradients."""
    n_signals = propensity.shape[1] if propensity.dim() == 2 else 1
    is_double = torch.float64 in (reward.dtype, propensity.dtype)
    run = choose_backend(backend, reward.device, is_double)
    signals, has_misclick = checks.signal_table(polarity, misclick_rate, n_signals, reward.device, is_double)
    return partial(run, feedback=feedback, signals=signals, has_misclick=has_misclick, **options)


class _ImplicitRM(torch.autograd.Function):
    """Gradients are computed in the forward pass and scaled, never in place, in backward.

    Backends hand float32 gradients over; they are rounded to the dtype of the logits after the upstream gradient has
    been applied, so that a loss scale can lift small ones above float16's floor.
    """

    @staticmethod
    def forward(ctx, reward, propensity, forward, grad_enabled):
        need_grads = tuple(grad_enabled and needed for needed in ctx.needs_input_grad[:2])
        loss, grad_reward, grad_propensity, groups = forward(reward, propensity, need_grads=need_grads)
        ctx.save_for_backward(grad_reward, grad_propensity)
        ctx.dtypes = reward.dtype, propensity.dtype
        if groups is not None:
            groups = groups.to(propensity.dtype)
            ctx.mark_non_differentiable(groups)
        return loss, groups

    @staticmethod
    def backward(ctx, upstream, _):
        if torch.is_grad_enabled():  # create_graph=True: a second derivative must not vanish in silence
            raise RuntimeError(
                "implicit_rm_loss has closed-form gradients and cannot be differentiated twice (create_graph=True); "
                "irm_fast.reference.implicit_rm_loss can"
            )
        grad_reward, grad_propensity = ctx.saved_tensors
        reward_dtype, propensity_dtype = ctx.dtypes
        if grad_reward is not None:
            grad_reward = (grad_reward * upstream).to(reward_dtype)
        if grad_propensity is not None:
            if upstream.dim() == 1 and grad_propensity.dim() == 2:
                upstream = upstream.unsqueeze(-1)
            grad_propensity = (grad_propensity * upstream).to(propensity_dtype)
        return grad_reward, grad_propensity, None, None
