"""The weighted pointwise loss: what all losses on a single logit a row have in common (see `baselines`)."""

from __future__ import annotations

import torch
from torch import Tensor

from irm_fast import checks, pointwise_ops
from irm_fast.functional import Reduction, check_reduction, divided, mean_over


def pointwise_loss(
    reward_logits: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    *,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Weighted pointwise loss: every row pulls its reward up by one weight and down by the other, in one launch.

    loss_i = positive_weight_i * softplus(-s_i) + negative_weight_i * softplus(s_i), with s the reward logits. Labels
    y give binary cross-entropy with weights y and 1 - y; other weights give what corrects it: inverse propensities, or
    the positive-unlabelled risks, whose unbiased form has weights below zero and so a loss without a lower bound.

    Args:
        reward_logits: (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        positive_weight: (N,) floating-point weights of softplus(-s), of any sign; constants of the loss.
        negative_weight: (N,) weights of softplus(s), likewise. A row whose weights are both 0 contributes nothing,
            whatever its logit holds.
        reduction: "mean" is the sum over N, as in PyTorch; "sum"; "none" gives (N,).
        normalizer: a number or 0-dim tensor that replaces N under "mean": the examples of the whole optimiser step.
        backend: "triton", "cpu" or "reference"; None chooses by device and dtype.

    Returns:
        The loss, float32 (float64 for float64 logits): () or, for "none", (N,). The gradient comes in the dtype of the
        logits, rounded once.

    Weights are read as float32 unless the logits are float64. A logit that is not finite gives NaN, a weight that is
    not finite NaN or infinity. Inputs are never written to, and double backward is not supported.

    Raises:
        TypeError: logits or weights that are not floating point.
        ValueError: shapes or devices that do not fit, weights that require a gradient; "mean" over no rows without a
            normalizer.
        RuntimeError: a backend that cannot be had here; a second differentiation.
    """
    checks.check_rewards(reward_logits)
    positive_weight = _check_side("positive_weight", positive_weight, reward_logits)
    negative_weight = _check_side("negative_weight", negative_weight, reward_logits)
    check_reduction(reward_logits.shape[0], reward_logits.device, reduction, normalizer)
    scale, divide_by = mean_over(reduction, normalizer)
    loss = pointwise_ops.pointwise(reward_logits, positive_weight, negative_weight, scale, reduction == "none", backend)
    return loss if divide_by is None else divided(loss, divide_by)


def _check_side(name: str, weight: Tensor, reward_logits: Tensor) -> Tensor:
    """The weight as the kernels read it: contiguous float32, or float64 for float64 logits."""
    checks.check_logits(name, weight, reward_logits.shape, reward_logits.device)
    if weight.requires_grad:
        raise ValueError(f"{name} must not require a gradient: it is a constant of the loss")
    dtype = torch.float64 if reward_logits.dtype == torch.float64 else torch.float32
    return weight.to(dtype).contiguous()
