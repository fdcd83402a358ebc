"""The weighted pointwise loss, which losses on a single logit for each row are made of (see `baselines`)."""

from __future__ import annotations

import torch
from torch import Tensor

from irm_fast.kernels.batch import PointwiseBatch
from irm_fast.losses import batch_checks, checks
from irm_fast.losses.dispatch import choose_backend
from irm_fast.losses.operator import Operation, Reduction, divided, mean_over, scaled_gradients


def pointwise_loss(
    reward_logits: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    *,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Weighted pointwise loss: `positive_weight * softplus(-s) + negative_weight * softplus(s)` for each row.

    Loss and gradient are computed in one launch. Labels y give binary cross-entropy with weights y and 1 - y. Other
    weights correct its bias: inverse propensities, or the positive-unlabelled risks, whose unbiased form has negative
    weights and hence no lower bound.

    Weights are read as float32 unless the logits are float64. A logit that is not finite gives NaN; a weight that is
    not finite gives NaN or infinity. Inputs are never written to. Double backward and `torch.func.vmap` raise.

    Args:
        reward_logits: Logits s, (N,) float32, bfloat16 or float16; float64 selects the reference backend.
        positive_weight: Weights of softplus(-s), of any sign, (N,) float32, bfloat16, float16 or float64; constants.
        negative_weight: Weights of softplus(s), likewise. A row whose weights are both 0 contributes nothing, whatever
            its logit holds.
        reduction: "mean" is the sum divided by N, as in PyTorch; "sum"; "none" gives (N,).
        normalizer: Finite number above 0, or 0-dim tensor on the device or the CPU, that replaces N under "mean":
            usually the number of examples of the whole optimiser step. None: N.
        backend: "triton", "cpu" or "reference"; None chooses by device and dtype.

    Returns:
        The loss in float32 (float64 for float64 logits), of shape () or, for "none", (N,). The gradient has the dtype
        of the logits, rounded once.

    Raises:
        TypeError: Logits or weights are no dense tensors or not floating point, or normalizer is no number or tensor.
        ValueError: Shapes or devices do not fit; reduction, normalizer or backend is invalid; weights or normalizer
            require a gradient; or "mean" is taken over no rows without a normalizer.
        RuntimeError: The backend is not available, or a second derivative or `vmap` was asked for.

    Examples:
        >>> import torch, irm_fast
        >>> label = torch.tensor([1.0, 0.0])
        >>> loss = irm_fast.baselines.pointwise_loss(torch.tensor([2.0, -2.0]), label, 1 - label)
        >>> print(f"{loss.item():.4f}")
        0.1269
    """
    batch_checks.check_rewards(reward_logits)
    positive_weight = _check_side("positive_weight", positive_weight, reward_logits)
    negative_weight = _check_side("negative_weight", negative_weight, reward_logits)
    checks.check_reduction(reward_logits.shape[0], reward_logits.device, reduction, normalizer)
    scale, divide_by = mean_over(reduction, normalizer)
    options = PointwiseBatch(positive_weight, negative_weight, scale, reduction == "none", backend)
    return divided(pointwise(reward_logits, options=options)[0], divide_by)


def _check_side(name: str, weight: Tensor, reward_logits: Tensor) -> Tensor:
    """Return the weight as the kernels read it: contiguous float32, or float64 for float64 logits."""
    checks.check_logits(name, weight, reward_logits.shape, reward_logits.device)
    if weight.requires_grad:
        raise ValueError(f"{name} must not require a gradient: it is a constant of the loss")
    dtype = torch.float64 if reward_logits.dtype == torch.float64 else torch.float32
    return weight.to(dtype).contiguous()


def _run(reward: Tensor, batch: PointwiseBatch, need: tuple[bool]) -> tuple[Tensor | None, ...]:
    """Return the loss, no groups, and the float32 (float64 for float64 logits) gradient of the reward logits."""
    backend = choose_backend(batch.backend, reward.device.type, reward.dtype == torch.float64)
    loss, grad = backend.pointwise_forward(reward, batch, need)
    return loss, None, grad


def _fake(reward: Tensor, batch: PointwiseBatch, need: tuple[bool]) -> tuple[Tensor, ...]:
    """Return tensors of the shapes and dtypes of `_run`, empty where it returns None."""
    dtype = torch.float64 if reward.dtype == torch.float64 else torch.float32
    shapes = (reward.shape if batch.per_row else (), 0, reward.shape if need[0] else 0)
    return tuple(reward.new_empty(shape, dtype=dtype) for shape in shapes)


pointwise = Operation(
    "pointwise",
    loss="pointwise_loss",
    inputs=("reward",),
    options=PointwiseBatch,
    run=_run,
    fake=_fake,
    results=3,
    gradients=scaled_gradients,
)
