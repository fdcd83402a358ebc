"""The public operations: argument checks, choice of backend, thin autograd below (ops.py).

Method: ImplicitRM, arXiv:2603.23184, section 3, extended to several signals, labels and misclicks. A user prefers the
response with probability g = sigmoid(reward logit) and, independently, is active on signal k with probability
m_k = sigmoid(propensity logit); a signal is recorded when both hold.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from irm_fast import checks, ops

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)


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
    signals = checks.signal_constants(polarity, misclick_rate, n_signals)
    evidence = ops.Evidence(feedback, preference, weight, stratification)
    settings = ops.Settings(*signals, scale, reduction == "none", return_groups, backend)
    loss, groups = ops.implicit_rm(reward_logits, propensity_logits, evidence, settings)
    if divide_by is not None:
        loss = divided(loss, divide_by)
    return (loss, groups) if return_groups else loss


def check_options(
    n: int,
    first: Tensor,
    weight: Tensor | None,
    reduction: str,
    normalizer: float | Tensor | None,
    feedback: Tensor,
    preference: Tensor | None,
    check_values: bool,
) -> Tensor | None:
    """What both losses check of their options; the weight as the kernels read it."""
    check_reduction(n, first.device, reduction, normalizer)
    if weight is not None:
        weight = checks.check_weight(weight, first)
    if check_values:
        checks.check_values(feedback, preference, weight)
    return weight


def check_reduction(n: int, device: torch.device, reduction: str, normalizer: float | Tensor | None) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(f'normalizer replaces N under reduction="mean"; it means nothing with {reduction!r}')
        checks.check_normalizer(normalizer, device)
    elif n == 0 and reduction == "mean":
        raise ValueError('reduction="mean" over no rows (N=0): give a normalizer, or use "sum"')


def mean_over(reduction: str, normalizer: float | Tensor | None) -> tuple[float | None, float | Tensor | None]:
    """What the kernel multiplies by, None for 1/N, and what to divide by afterwards.

    A normalizer on a device stays there, never read. torch.compile would compile anew for every value that it sees
    handed over to the kernel: it gets neither 1/N nor a normalizer.
    """
    if reduction != "mean":
        return 1.0, None
    if isinstance(normalizer, Tensor) or (normalizer is not None and torch.compiler.is_compiling()):
        return 1.0, normalizer
    return None if normalizer is None else 1.0 / normalizer, None


def divided(loss: Tensor, by: float | Tensor) -> Tensor:
    return loss / (by.to(loss.dtype) if isinstance(by, Tensor) else by)


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
    signals = checks.signal_constants(polarity, misclick_rate, n_signals)
    evidence = ops.Evidence(feedback, preference, None, None)
    settings = ops.Settings(*signals, 1.0, False, True, None)
    with torch.no_grad():
        _, groups = ops.implicit_rm(reward_logits, propensity_logits, evidence, settings)
    assert groups is not None
    return groups
