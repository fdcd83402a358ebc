"""`linear_implicit_rm_loss`: reward head, propensity heads and loss in one read of the hidden states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irm_fast import checks, linear_ops
from irm_fast.functional import Reduction, check_options, divided, mean_over
from irm_fast.ops import Evidence, Settings


def linear_implicit_rm_loss(
    hidden: Tensor,
    reward_weight: Tensor,
    feedback: Tensor,
    *,
    reward_bias: Tensor | None = None,
    propensity_weight: Tensor | None = None,
    propensity_bias: Tensor | None = None,
    propensity_logits: Tensor | None = None,
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
    """Linear heads on hidden states, and `implicit_rm_loss` of their logits, in one read of the hidden states.

    The same value as `implicit_rm_loss(hidden @ reward_weight + reward_bias, hidden @ propensity_weight.T +
    propensity_bias, feedback)`, with logits, loss and sums in float32 whatever the dtype of `hidden`. The forward pass
    reads `hidden` once and leaves the gradients of the logits, N (K+1) float32 numbers, and of the weights; backward
    writes the gradient of `hidden`, times the upstream gradient, without a second read. Nothing else grows with N.

    A second read is needed for the weights with `reduction="none"`, whose upstream gradients are not known in the
    forward pass, and on GPUs where the heads outgrow the registers: above 16,384 for next_pow2(M) times next_pow2(H),
    H taken as 2,048 at least, with M = K+1 heads, or 1 when `propensity_logits` are given.

    Args:
        hidden: (N, H) float32, bfloat16 or float16 with any stride between rows, such as a view into packed states;
            neighbours within a row (else it is copied). float64 selects the reference backend.
        reward_weight: (H,) weight of the reward head.
        feedback: (N,), or (N, K) for K signals, at most 16: 1 acted, 0 silent, -1 missing.
        reward_bias: () bias of the reward head.
        propensity_weight, propensity_bias: (K, H) and (K,) propensity heads on the same hidden states; or
        propensity_logits: instead of propensity heads, (K,) constants, or logits shaped like `feedback`.
        preference, polarity, misclick_rate, stratification, weight, reduction, normalizer, return_groups,
        check_values, backend: as in `implicit_rm_loss`. A row of weight 0 contributes nothing, whatever its hidden
            state holds.

    Returns:
        The loss, float32: () or, for "none", (N,); with `return_groups` the pair (loss, groups), groups float32 with
        the shape of `feedback` and 4 at its end. Gradients come in the dtypes of their tensors, rounded once.

    Raises:
        TypeError, ValueError, RuntimeError: as `implicit_rm_loss`; ValueError unless exactly one of
            `propensity_weight` and `propensity_logits` is given.
    """
    checks.check_hidden(hidden, feedback)
    n, n_signals = hidden.shape[0], feedback.shape[1] if feedback.dim() == 2 else 1
    checks.check_heads(hidden, n_signals, reward_weight, reward_bias, propensity_weight, propensity_bias)
    if (propensity_weight is None) == (propensity_logits is None):
        raise ValueError("give either propensity_weight (heads) or propensity_logits (constants or logits)")
    if propensity_logits is not None:
        propensity_logits = checks.check_given_propensity(propensity_logits, hidden, feedback)
    if preference is not None:
        checks.check_codes("preference", preference, hidden.shape[:1], hidden.device)
    if stratification is not None:
        stratification = checks.check_stratification(stratification, hidden[:, 0], feedback)
        stratification = (stratification[0], stratification[1].reshape(n, n_signals))
    weight = check_options(n, hidden, weight, reduction, normalizer, feedback, preference, check_values)

    scale, divide_by = mean_over(reduction, normalizer)
    signals = checks.signal_constants(polarity, misclick_rate, n_signals)
    evidence = Evidence(feedback.reshape(n, n_signals), preference, weight, stratification)
    settings = Settings(*signals, scale, reduction == "none", return_groups, backend)
    heads, bias = _stack_heads(hidden, reward_weight, reward_bias, propensity_weight, propensity_bias)
    if hidden.stride(1) != 1:
        hidden = hidden.contiguous()
    loss, groups = linear_ops.linear_implicit_rm(hidden, heads, bias, propensity_logits, evidence, settings)
    if divide_by is not None:
        loss = divided(loss, divide_by)
    return loss if groups is None or not return_groups else (loss, groups.reshape(*feedback.shape, 4))


def _stack_heads(
    hidden: Tensor,
    reward_weight: Tensor,
    reward_bias: Tensor | None,
    propensity_weight: Tensor | None,
    propensity_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Weights (M, H) and biases (M,) of all heads, the reward's first, as the kernels read them."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    weights = [reward_weight.unsqueeze(0).to(dtype)]
    bias = [hidden.new_zeros(1, dtype=dtype) if reward_bias is None else reward_bias.unsqueeze(0).to(dtype)]
    if propensity_weight is not None:
        n_signals = propensity_weight.shape[0]
        weights.append(propensity_weight.to(dtype))
        zeros = hidden.new_zeros(n_signals, dtype=dtype) if propensity_bias is None else propensity_bias
        bias.append(zeros.to(dtype))
    return torch.cat(weights), torch.cat(bias)
