"""The public operations: argument checks, choice of backend, thin autograd below (ops.py).

Method: ImplicitRM, arXiv:2603.23184, section 3, extended to several signals, labels and misclicks. A user prefers the
response with probability g = sigmoid(reward logit) and, independently, is active on signal k with probability
m_k = sigmoid(propensity logit); a signal is recorded when both hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from irm_fast.losses import checks
from irm_fast.losses import operator as ops
from irm_fast.losses.dispatch import choose_backend
from irm_fast.losses.operator import (
    Evidence,
    Settings,
    bound_options,
    compute_dtype,
    flatten,
    refuse_double_backward,
    scaled,
    unflatten,
)
from irm_fast.losses.reduction import Reduction, check_options, divided, mean_over
from irm_fast.losses.signal_tables import signal_constants


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
    checks.check_batch(reward_logits, propensity_logits, feedback, preference)
    n = reward_logits.shape[0]
    if stratification is not None:
        stratification = checks.check_stratification(stratification, reward_logits, propensity_logits)
    weight = check_options(n, reward_logits, weight, reduction, normalizer, feedback, preference, check_values)

    scale, divide_by = mean_over(reduction, normalizer)
    n_signals = propensity_logits.shape[1] if propensity_logits.dim() == 2 else 1
    signals = signal_constants(polarity, misclick_rate, n_signals)
    evidence = ops.Evidence(feedback, preference, weight, stratification)
    settings = ops.Settings(*signals, scale, reduction == "none", return_groups, backend)
    loss, groups = implicit_rm(reward_logits, propensity_logits, evidence, settings)
    if divide_by is not None:
        loss = divided(loss, divide_by)
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
    n_signals = propensity_logits.shape[1] if propensity_logits.dim() == 2 else 1
    signals = signal_constants(polarity, misclick_rate, n_signals)
    evidence = ops.Evidence(feedback, preference, None, None)
    settings = ops.Settings(*signals, 1.0, False, True, None)
    with torch.no_grad():
        _, groups = implicit_rm(reward_logits, propensity_logits, evidence, settings)
    assert groups is not None
    return groups


class ImplicitRMLoss(nn.Module):
    """`irm_fast.implicit_rm_loss` with the settings of a log bound once. It has no parameters.

    Args:
        polarity, misclick_rate, reduction, backend: as in `implicit_rm_loss`.

    Call it as `loss_fn(reward_logits, propensity_logits, feedback)` with, per batch, the keywords `preference`,
    `weight`, `stratification`, `normalizer`, `return_groups`, `check_values` of `implicit_rm_loss`, which also lists
    shapes, dtypes and errors.
    """

    def __init__(self, *, polarity=None, misclick_rate=None, reduction: Reduction = "mean", backend: str | None = None):
        super().__init__()
        self.polarity = polarity
        self.misclick_rate = misclick_rate
        self.reduction = reduction
        self.backend = backend

    def forward(self, reward_logits: Tensor, propensity_logits: Tensor, feedback: Tensor, **batch: Any) -> Any:
        return implicit_rm_loss(
            reward_logits,
            propensity_logits,
            feedback,
            polarity=self.polarity,
            misclick_rate=self.misclick_rate,
            reduction=self.reduction,
            backend=self.backend,
            **batch,
        )

    def extra_repr(self) -> str:
        return f"polarity={self.polarity}, misclick_rate={self.misclick_rate}, reduction={self.reduction!r}"


def implicit_rm(
    reward: Tensor, propensity: Tensor, evidence: Evidence, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """Loss and groups."""
    grad_enabled = torch.is_grad_enabled()
    need_grads = (grad_enabled and reward.requires_grad, grad_enabled and propensity.requires_grad)
    if torch.compiler.is_compiling():
        loss, _, _, groups = implicit_rm_op(reward, propensity, *flatten(evidence), *settings, *need_grads)
        return loss, groups.detach()
    if True in need_grads:
        return _ImplicitRM.apply(reward, propensity, evidence, settings, need_grads)  # type: ignore[no-any-return]
    loss, _, _, groups = _implicit_rm_forward(reward, propensity, evidence, settings, need_grads)
    return loss, groups


def _implicit_rm_forward(
    reward: Tensor, propensity: Tensor, evidence: Evidence, settings: Settings, need_grads: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    device, dtype = reward.device, propensity.dtype
    is_double = torch.float64 in (reward.dtype, dtype)
    run = choose_backend(settings.backend, device, is_double).implicit_rm_forward
    options = bound_options(evidence, settings, device, is_double)
    loss, grad_reward, grad_propensity, groups = run(
        reward, propensity, evidence.feedback, need_grads=need_grads, **options
    )
    return loss, grad_reward, grad_propensity, None if groups is None else groups.to(dtype)


class _ImplicitRM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, reward, propensity, evidence, settings, need_grads):
        loss, grad_reward, grad_propensity, groups = _implicit_rm_forward(
            reward, propensity, evidence, settings, need_grads
        )
        ctx.save_for_backward(grad_reward, grad_propensity)
        ctx.dtypes = reward.dtype, propensity.dtype
        if groups is not None:
            ctx.mark_non_differentiable(groups)
        return loss, groups

    @staticmethod
    def backward(ctx, upstream, _):
        return *_gradients(ctx, upstream), None, None, None


def _gradients(ctx, upstream: Tensor) -> list[Tensor | None]:
    """Of both logits, where needed."""
    refuse_double_backward("implicit_rm_loss")
    return [
        scaled(grad, upstream, dtype) if needed else None
        for grad, needed, dtype in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], ctx.dtypes, strict=True)
    ]


@torch.library.custom_op("irm_fast::implicit_rm", mutates_args=())
def implicit_rm_op(
    reward: Tensor,
    propensity: Tensor,
    feedback: Tensor,
    preference: Tensor | None,
    weight: Tensor | None,
    reward_strat: Tensor | None,
    propensity_strat: Tensor | None,
    polarity: list[float],
    misclick_rate: list[float],
    scale: float | None,
    per_row: bool,
    need_groups: bool,
    backend: str | None,
    need_reward_grad: bool,
    need_propensity_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, float32 gradients of both logits, and groups; empty where not needed."""
    evidence = unflatten(feedback, preference, weight, reward_strat, propensity_strat)
    settings = Settings(tuple(polarity), tuple(misclick_rate), scale, per_row, need_groups, backend)
    need_grads = (need_reward_grad, need_propensity_grad)
    loss, *results = _implicit_rm_forward(reward, propensity, evidence, settings, need_grads)
    grad_reward, grad_propensity, groups = (loss.new_empty(0) if x is None else x for x in results)
    return loss, grad_reward, grad_propensity, groups


@implicit_rm_op.register_fake
def _(
    reward, propensity, feedback, preference, weight, reward_strat, propensity_strat, polarity, misclick_rate, scale,
    per_row, need_groups, backend, need_reward_grad, need_propensity_grad,
):  # fmt: skip
    dtype = compute_dtype(reward, propensity)
    empty = reward.new_empty
    return (
        empty(reward.shape if per_row else (), dtype=dtype),
        empty(reward.shape if need_reward_grad else 0, dtype=dtype),
        empty(propensity.shape if need_propensity_grad else 0, dtype=dtype),
        empty((*propensity.shape, 4) if need_groups else 0, dtype=propensity.dtype if need_groups else dtype),
    )


def _setup_context(ctx, inputs, output):
    reward, propensity = inputs[:2]
    ctx.dtypes = reward.dtype, propensity.dtype
    ctx.save_for_backward(output[1], output[2])


def _backward(ctx, upstream, *_):
    return *_gradients(ctx, upstream), *(None,) * 13


implicit_rm_op.register_autograd(_backward, setup_context=_setup_context)
