"""The implicit reward-model loss on GPUs: posterior, loss and gradients of a batch in one pass.

irm_fast/reference.py defines what is computed and docs/numerics.md derives the forms used here, which keep float32
accurate in the tails. The C++ twin is kernels/cpu/implicit_rm.cpp: the same quantities under the same names.
"""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from irm_fast.kernels.triton.four_groups import (
    INF,
    add_evidence,
    combine_evidence,
    invalid_code,
    load_codes,
    load_logits,
    not_finite,
)
from irm_fast.kernels.triton.math import sigmoid_difference, sigmoid_softplus
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
BLOCK_N = 1024 if INTERPRETED else 512  # the interpreter pays per program, not per row


@triton.heuristics(
    {
        "HAS_PREFERENCE": lambda args: args["preference_ptr"] is not None,
        "HAS_WEIGHT": lambda args: args["weight_ptr"] is not None,
        "STRATIFIED": lambda args: args["reward_strat_ptr"] is not None,
        "GRAD_REWARD": lambda args: args["grad_reward_ptr"] is not None,
        "GRAD_PROPENSITY": lambda args: args["grad_propensity_ptr"] is not None,
        "GROUPS": lambda args: args["groups_ptr"] is not None,
    }
)
@triton.jit
def implicit_rm_fwd_kernel(
    # data pointers
    reward_ptr,  # (N,)
    propensity_ptr,  # (N, K)
    reward_strat_ptr,  # (N,) or None
    propensity_strat_ptr,  # (N, K) or None
    feedback_ptr,  # (N, K): 1, 0, -1
    preference_ptr,  # (N,) or None: 1, 0, -1
    weight_ptr,  # (N,) float32 or None
    signals_ptr,  # (4, K) float32: polarity, misclick rate e, -log e, log1p(-e)
    loss_ptr,  # (N,) if PER_ROW else (programs,): one partial sum each
    grad_reward_ptr,  # (N,) or None
    grad_propensity_ptr,  # (N, K) or None
    groups_ptr,  # (N, K, 4) or None
    # sizes
    n_rows,
    scale,
    # strides, in elements
    stride_reward,
    stride_propensity_n,
    stride_propensity_k,
    stride_reward_strat,
    stride_propensity_strat_n,
    stride_propensity_strat_k,
    stride_feedback_n,
    stride_feedback_k,
    stride_preference,
    # constants
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_MISCLICK: tl.constexpr,
    PER_ROW: tl.constexpr,
    HAS_PREFERENCE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    STRATIFIED: tl.constexpr,
    GRAD_REWARD: tl.constexpr,
    GRAD_PROPENSITY: tl.constexpr,
    GROUPS: tl.constexpr,
):
    pid = tl.program_id(0)
    o_n = pid.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n_rows

    b_s = load_logits(reward_ptr, o_n, m_n, stride_reward, 0, 0)
    b_poison = not_finite(b_s)  # becomes NaN where a logit is not finite or a value impossible
    b_s_post = b_s
    if STRATIFIED:
        b_s_post = load_logits(reward_strat_ptr, o_n, m_n, stride_reward_strat, 0, 0)
        b_poison += not_finite(b_s_post)
    b_A = tl.zeros([BLOCK_N], tl.float32)  # log P(f | r*=1)
    b_C = tl.zeros([BLOCK_N], tl.float32)  # log P(f | r*=0)
    b_D = tl.zeros([BLOCK_N], tl.float32)  # A - C
    if HAS_PREFERENCE:  # a label is evidence without limit
        b_label = load_codes(preference_ptr, o_n, m_n, stride_preference, 0, 0)
        b_poison += invalid_code(b_label)
        b_A = tl.where(b_label == 0, -INF, b_A)
        b_C = tl.where(b_label == 1, -INF, b_C)
        b_D = b_A - b_C

    # Evidence of all signals. A plain loop: unrolled, 16 signals take a minute to compile and spill registers.
    for k in range(K):
        b_code = load_codes(feedback_ptr, o_n, m_n, stride_feedback_n, k, stride_feedback_k)
        b_poison += invalid_code(b_code)
        b_t = load_logits(propensity_ptr, o_n, m_n, stride_propensity_n, k, stride_propensity_k)
        b_poison += tl.where(b_code == -1, 0.0, not_finite(b_t))
        if STRATIFIED:
            b_t = load_logits(propensity_strat_ptr, o_n, m_n, stride_propensity_strat_n, k, stride_propensity_strat_k)
            b_poison += tl.where(b_code == -1, 0.0, not_finite(b_t))
        A, C, D, _, _ = add_evidence(
            b_t,
            b_code,
            tl.load(signals_ptr + k),
            tl.load(signals_ptr + K + k),
            tl.load(signals_ptr + 2 * K + k),
            tl.load(signals_ptr + 3 * K + k),
            HAS_MISCLICK,
        )
        b_A += A
        b_C += C
        b_D += D

    b_q, b_not_q, b_loss, b_ds, b_impossible = combine_evidence(b_s_post, b_A, b_C, b_D)
    b_q += b_poison
    b_not_q += b_poison
    if STRATIFIED:  # cross-entropies against a posterior that is a constant, first the preference
        g, not_g, softplus, softplus_minus = sigmoid_softplus(b_s)
        b_loss = tl.where(b_impossible, INF, b_q * softplus_minus + b_not_q * softplus)
        b_ds = sigmoid_difference(g, not_g, b_q, b_not_q, (b_s_post - b_s) + b_D)
    b_ds += b_poison

    b_factor = tl.full([BLOCK_N], scale, tl.float32)
    dropped = o_n < 0  # rows of weight 0 contribute nothing, whatever they hold
    if HAS_WEIGHT:
        b_w = tl.load(weight_ptr + o_n, mask=m_n, other=0.0)
        b_factor = tl.where((b_w >= 0) & (b_w < INF), b_w * scale, float("nan"))
        dropped = b_w == 0

    # Outputs of each signal.
    if STRATIFIED or GRAD_PROPENSITY or GROUPS:
        for k in range(K):
            positive = tl.load(signals_ptr + k) > 0
            rate = tl.load(signals_ptr + K + k)
            b_code = load_codes(feedback_ptr, o_n, m_n, stride_feedback_n, k, stride_feedback_k)
            b_t = load_logits(propensity_ptr, o_n, m_n, stride_propensity_n, k, stride_propensity_k)
            b_t_post = b_t
            if STRATIFIED:
                b_t_post = load_logits(
                    propensity_strat_ptr, o_n, m_n, stride_propensity_strat_n, k, stride_propensity_strat_k
                )
            acted, missing = b_code == 1, b_code == -1
            m, not_m, _, _ = sigmoid_softplus(b_t_post)
            m += not_finite(b_t_post)
            not_m += not_finite(b_t_post)
            w, not_w = tl.where(positive, b_q, b_not_q), tl.where(positive, b_not_q, b_q)
            # Given the other side and silence: active (a misclick that did not happen) and passive.
            inverse = 1.0 / (not_m + (1.0 - rate) * m)  # 1 / (1 - e m), no cancellation
            active_other, passive_other = m * (1.0 - rate) * inverse, not_m * inverse
            silent_grad = w * m + not_w * rate * m * passive_other  # m - (PA + NA)
            nothing = 0.0 * w  # 0, or NaN where the row has no posterior
            if STRATIFIED:
                active = tl.where(acted, 1.0, not_w * active_other)  # PA + NA
                passive = tl.where(acted, 0.0, w + not_w * passive_other)
                trained, not_trained, softplus, softplus_minus = sigmoid_softplus(b_t)
                cross_entropy = active * softplus_minus + passive * softplus
                b_loss += tl.where(missing | b_impossible, 0.0, cross_entropy)
                # Two ways to write sigmoid(t) - active: the one whose terms are smaller cancels less.
                shift = sigmoid_difference(trained, not_trained, m, not_m, b_t_post - b_t)
                up, down = trained * passive, not_trained * active
                step = tl.where(tl.abs(shift) + silent_grad < up + down, shift + silent_grad, up - down)
                b_dt = tl.where(acted, -not_trained, step) + nothing
            else:
                b_dt = tl.where(acted, -not_m, silent_grad) + nothing
            if GRAD_PROPENSITY:
                b_dt = tl.where(missing | dropped, 0.0, b_dt * b_factor)
                tl.store(grad_propensity_ptr + o_n * K + k, b_dt, mask=m_n)
            if GROUPS:
                active_own = tl.where(missing, m, tl.where(acted, 1.0, 0.0))
                passive_own = tl.where(missing, not_m, tl.where(acted, 0.0, 1.0))
                active_other = tl.where(missing, m, tl.where(acted, 1.0, active_other))
                passive_other = tl.where(missing, not_m, tl.where(acted, 0.0, passive_other))
                group_ptrs = groups_ptr + (o_n * K + k) * 4
                tl.store(group_ptrs, b_q * tl.where(positive, active_own, active_other), mask=m_n)
                tl.store(group_ptrs + 1, b_not_q * tl.where(positive, active_other, active_own), mask=m_n)
                tl.store(group_ptrs + 2, b_q * tl.where(positive, passive_own, passive_other), mask=m_n)
                tl.store(group_ptrs + 3, b_not_q * tl.where(positive, passive_other, passive_own), mask=m_n)

    b_loss = tl.where(dropped, 0.0, (b_loss + b_poison) * b_factor)
    if GRAD_REWARD:
        b_ds = tl.where(dropped, 0.0, b_ds * b_factor)
        tl.store(grad_reward_ptr + o_n, b_ds, mask=m_n)
    if PER_ROW:
        tl.store(loss_ptr + o_n, b_loss, mask=m_n)
    else:
        tl.store(loss_ptr + pid, tl.sum(tl.where(m_n, b_loss, 0.0)))


def implicit_rm_forward(
    reward: Tensor,
    propensity: Tensor,
    feedback: Tensor,
    *,
    preference: Tensor | None,
    weight: Tensor | None,
    stratification: tuple[Tensor, Tensor] | None,
    signals: Tensor,
    has_misclick: bool,
    scale: float,
    per_row: bool,
    need_grads: tuple[bool, bool],
    need_groups: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss, both gradients and groups of a batch in one launch; all results float32.

    Args:
        reward, propensity, feedback: (N,), then (N,) or (N, K) twice; any strides.
        preference, weight: (N,) or None; the weight is contiguous float32.
        stratification: logits of the stratification model, shaped like reward and propensity, or None.
        signals: (4, K) float32: polarity, misclick rate e, -log e, log1p(-e).
        scale: multiplies loss and gradients.
        per_row: (N,) losses instead of their sum.
        need_grads, need_groups: what to compute of the gradients of reward and propensity, and of the groups.

    Returns:
        loss, reward gradient, propensity gradient (of the propensity's shape), groups (that shape, 4); None where
        not needed. The sum is taken in two deterministic stages: one partial a program, then those.
    """
    n, shape, device = reward.shape[0], propensity.shape, reward.device
    n_programs = triton.cdiv(n, BLOCK_N)

    def empty(*size: int) -> Tensor:
        return torch.empty(size, device=device, dtype=torch.float32)

    loss = empty(n if per_row else n_programs)
    grad_reward = empty(n) if need_grads[0] else None
    grad_propensity = empty(*shape) if need_grads[1] else None
    groups = empty(*shape, 4) if need_groups else None
    reward_strat, propensity_strat = stratification or (None, None)
    if n == 0:
        return (loss if per_row else loss.sum()), grad_reward, grad_propensity, groups
    with _on_device_of(reward):
        implicit_rm_fwd_kernel[(n_programs,)](
            reward,
            propensity,
            reward_strat,
            propensity_strat,
            feedback.view(torch.uint8) if feedback.dtype == torch.bool else feedback,
            preference.view(torch.uint8) if preference is not None and preference.dtype == torch.bool else preference,
            weight,
            signals,
            loss,
            grad_reward,
            grad_propensity,
            groups,
            n,
            scale,
            reward.stride(0),
            *_strides(propensity),
            0 if reward_strat is None else reward_strat.stride(0),
            *_strides(propensity_strat),
            *_strides(feedback),
            0 if preference is None else preference.stride(0),
            K=signals.shape[1],
            BLOCK_N=BLOCK_N,
            HAS_MISCLICK=has_misclick,
            PER_ROW=per_row,
            enable_fp_fusion=True,  # said because the default changes in Triton 3.10
        )
    return (loss if per_row else loss.sum()), grad_reward, grad_propensity, groups


def _on_device_of(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    if x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def _strides(x: Tensor | None) -> tuple[int, int]:
    """Row and signal stride; one signal may come without a dimension of its own."""
    if x is None:
        return 0, 0
    return x.stride(0), x.stride(1) if x.dim() == 2 else 0
