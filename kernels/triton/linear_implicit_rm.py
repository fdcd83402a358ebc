"""Heads and implicit reward-model loss on GPUs, in one read of the hidden states.

A program keeps the heads and its share of their gradient in registers and walks over tiles of rows: logits, loss and
logit gradients of a tile, and its part of the weight gradient, come from one load. Heads too large for registers are
read in pieces, and the weight gradient then takes a second read. kernels/reference/definition.py defines what is
computed, `four_groups` has the mathematics of a tile.
"""

import torch
import triton
import triton.language as tl
from irm_fast.kernels.batch import Batch
from irm_fast.kernels.triton.four_groups import four_groups_tile, load_codes, load_logits
from irm_fast.kernels.triton.heads import (
    add_columns,
    add_rows,
    dot_logits,
    load_heads,
    load_hidden,
    load_parts,
    load_pieces,
    store_heads,
    widen,
)
from irm_fast.kernels.triton.implicit_rm import is_one_sided
from irm_fast.kernels.triton.launch import as_codes, device_limits, on_device_of, strides
from irm_fast.kernels.triton.linear_gradients import linear_hidden_grad, linear_total, linear_weight_grad
from irm_fast.kernels.triton.linear_tiles import forward_tile
from irm_fast.kernels.triton.one_sided import one_sided_rows
from torch import Tensor

__all__ = ["linear_hidden_grad", "linear_implicit_rm_forward", "linear_weight_grad"]


@triton.jit(do_not_specialize=["n_rows"])  # a new batch size must not compile anew
def linear_implicit_rm_fwd_kernel(
    # data pointers; an option that is None is compiled away
    hidden_ptr,  # (N, H)
    heads_ptr,  # (M, H) float32
    bias_ptr,  # (M,) float32
    propensity_ptr,  # None if M = K+1, else (N, K) logits
    reward_strat_ptr,  # (N,) or None
    propensity_strat_ptr,  # (N, K) or None
    feedback_ptr,  # (N, K): 1, 0, -1
    preference_ptr,  # (N,) or None: 1, 0, -1
    weight_ptr,  # (N,) float32 or None
    signals_ptr,  # (4, K) float32: polarity, misclick rate e, -log e, log1p(-e)
    loss_ptr,  # (N,) if PER_ROW else (programs,): one partial sum each
    grad_logits_ptr,  # (N, K+1) or None
    partials_ptr,  # (programs, LENGTH) or None: partial sums of the gradients of the heads (M, H), then of the logits
    groups_ptr,  # (N, K, 4) or None
    # sizes
    n_rows,
    scale,
    # strides, in elements
    stride_hidden,
    stride_propensity_n,
    stride_propensity_k,
    stride_reward_strat,
    stride_propensity_strat_n,
    stride_propensity_strat_k,
    stride_feedback_n,
    stride_feedback_k,
    stride_preference,
    # constants
    ONE_READ: tl.constexpr,
    LENGTH: tl.constexpr,
    H: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    HAS_MISCLICK: tl.constexpr,
    PER_ROW: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,  # 0: no tensor cores; 4, 8 or 16: rows for the three parts of M heads
    PIECES: tl.constexpr,
):
    SPLIT: tl.constexpr = 4 if BLOCK_H >= 256 else 1  # columns in one sum; 8 are fewer instructions, more registers
    pid = tl.program_id(0)
    o_m = tl.arange(0, BLOCK_M)[None, :]
    o_k = tl.arange(0, BLOCK_K)[None, :].to(tl.int64) - 1  # column 0 is the reward: no signal
    b_bias = tl.load(bias_ptr + o_m, mask=o_m < M, other=0.0).to(tl.float32)
    b_sum = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    if PARTS > 0:
        b_heads = load_parts(heads_ptr, H, M, BLOCK_H, PARTS, PIECES)
    elif ONE_READ:
        b_heads = load_heads(heads_ptr, 0, H, M, BLOCK_H, BLOCK_M)
    if partials_ptr is not None:
        b_grad_bias = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        b_grad_heads = tl.zeros([1, BLOCK_M, BLOCK_H], tl.float32)

    first_row, step = pid.to(tl.int64) * BLOCK_N, tl.num_programs(0).to(tl.int64) * BLOCK_N
    for row in tl.range(first_row, n_rows, step, num_stages=STAGES if ONE_READ else 1):
        o_n = row + tl.arange(0, BLOCK_N)[:, None]
        m_n = o_n < n_rows
        if PARTS > 0:
            rows = tl.minimum(n_rows - row, BLOCK_N).to(tl.int32)
            b_hidden = load_pieces(hidden_ptr + row * stride_hidden, rows, stride_hidden, H, BLOCK_H, BLOCK_N, PIECES)
            b_logits = dot_logits(b_hidden, b_heads, M, BLOCK_M, PARTS)
            b_hidden = widen(tl.reshape(b_hidden, [BLOCK_N, 1, BLOCK_H]))
        elif ONE_READ:
            b_hidden = load_hidden(hidden_ptr, o_n * stride_hidden, m_n, 0, H, BLOCK_H)
            b_products = tl.zeros([BLOCK_N, BLOCK_M, BLOCK_H // SPLIT], tl.float32)
            b_logits = tl.sum(add_columns(b_products, b_hidden, b_heads), 2)
        else:
            b_products = tl.zeros([BLOCK_N, BLOCK_M, BLOCK_H], tl.float32)
            for first in tl.range(0, H, BLOCK_H, num_stages=STAGES):
                b_hidden = load_hidden(hidden_ptr, o_n * stride_hidden, m_n, first, H, BLOCK_H)
                b_products += b_hidden * load_heads(heads_ptr, first, H, M, BLOCK_H, BLOCK_M)
            b_logits = tl.sum(b_products, 2)
        # The sum over one element frees the loss from the layout of hidden, in which every thread would hold, and
        # compute, every row of the tile.
        b_logits = tl.sum((b_logits + b_bias)[None, :, :], 0)  # [BLOCK_N, BLOCK_M]

        if ONE_SIDED:
            b_loss, b_grad, dropped = one_sided_logits(
                b_logits,
                o_m,
                row,
                n_rows,
                o_k,
                propensity_ptr,
                feedback_ptr,
                weight_ptr,
                loss_ptr,
                scale,
                stride_propensity_n,
                stride_propensity_k,
                stride_feedback_n,
                stride_feedback_k,
                K,
                PER_ROW,
            )
        else:
            if propensity_ptr is None:
                b_s = tl.sum(tl.where(o_m == 0, b_logits, 0.0), 1, keep_dims=True)
                b_t = b_logits
            else:
                b_s = b_logits
                o_nk = o_n * stride_propensity_n + o_k * stride_propensity_k
                b_t = load_logits(propensity_ptr, o_nk, m_n & (o_k >= 0) & (o_k < K))
            b_loss, b_ds, b_dt, dropped = four_groups_tile(
                b_s,
                b_t,
                o_n,
                m_n,
                o_k,
                reward_strat_ptr,
                propensity_strat_ptr,
                feedback_ptr,
                preference_ptr,
                weight_ptr,
                signals_ptr,
                loss_ptr,
                groups_ptr,
                scale,
                stride_reward_strat,
                stride_propensity_strat_n,
                stride_propensity_strat_k,
                stride_feedback_n,
                stride_feedback_k,
                stride_preference,
                K,
                HAS_MISCLICK,
                PER_ROW,
            )
            b_grad = tl.where(o_k < 0, b_ds, b_dt)  # [BLOCK_N, BLOCK_K]
        b_sum += tl.where(o_k < 0, b_loss, 0.0)
        if grad_logits_ptr is not None:
            tl.store(grad_logits_ptr + o_n * (K + 1) + o_k + 1, b_grad, mask=m_n & (o_k < K))
        if partials_ptr is not None:
            b_grad_bias += tl.where(m_n, b_grad, 0.0)
            if weight_ptr is not None:  # what a dropped row holds must not be multiplied by its gradient of 0
                b_hidden = tl.where(dropped[:, :, None], 0.0, b_hidden)
            b_head_grad = b_grad
            if propensity_ptr is not None:
                b_head_grad = tl.sum(tl.where(o_k < 0, b_grad, 0.0), 1, keep_dims=True)
            b_grad_heads = add_rows(b_grad_heads, b_head_grad[:, :, None], b_hidden)
            b_grad_heads = tl.where(o_m[:, :, None] < M, b_grad_heads, 0.0)  # what is no head costs nothing

    if partials_ptr is not None:
        partials_ptr += pid.to(tl.int64) * LENGTH
        store_heads(partials_ptr, b_grad_heads, 0, H, M, BLOCK_H, BLOCK_M)
        o_bias = tl.arange(0, BLOCK_K)
        tl.store(partials_ptr + M * H + o_bias, tl.sum(b_grad_bias, 0), mask=o_bias <= K)
    if not PER_ROW:
        tl.store(loss_ptr + pid, tl.sum(b_sum))


@triton.jit
def one_sided_logits(
    b_logits,  # [BLOCK_N, BLOCK_M]
    o_m,  # [1, BLOCK_M]
    row,  # the first
    n_rows,
    o_k,  # [1, BLOCK_K], the signals, -1 for the reward
    propensity_ptr,
    feedback_ptr,
    weight_ptr,
    loss_ptr,
    scale,
    stride_propensity_n,
    stride_propensity_k,
    stride_feedback_n,
    stride_feedback_k,
    K: tl.constexpr,
    PER_ROW: tl.constexpr,
):
    """`one_sided_rows` of logits that lie in columns: loss [BLOCK_N, 1], gradients [BLOCK_N, BLOCK_K], dropped rows."""
    o_r = row + tl.arange(0, b_logits.shape[0])
    m_r = o_r < n_rows
    b_factor = tl.zeros_like(tl.sum(b_logits, 1)) + scale
    b_s = tl.sum(tl.where(o_m == 0, b_logits, 0.0), 1)
    dropped = (o_r < 0)[:, None]
    if weight_ptr is not None:  # rows of weight 0 contribute nothing, whatever they hold
        b_w = tl.load(weight_ptr + o_r, mask=m_r, other=0.0)
        b_factor = tl.where((b_w >= 0) & (b_w < float("inf")), b_w * scale, float("nan"))
        b_s = tl.where(b_w == 0, 0.0, b_s)
        dropped = (b_w == 0)[:, None]
    b_t, b_code = (), ()
    for k in tl.static_range(K):
        if propensity_ptr is None:
            t = tl.sum(tl.where(o_m == k + 1, b_logits, 0.0), 1)
        else:
            t = load_logits(propensity_ptr, o_r * stride_propensity_n + k * stride_propensity_k, m_r)
        code = load_codes(feedback_ptr, o_r * stride_feedback_n + k * stride_feedback_k, m_r)
        if weight_ptr is not None:
            code = tl.where(b_w == 0, -1, code)
        b_t += (t,)
        b_code += (code,)
    b_loss, b_ds, b_q, b_m, b_poison = one_sided_rows(b_s, b_t, b_code, K)
    b_factor += b_poison
    b_loss *= b_factor
    if PER_ROW:
        tl.store(loss_ptr + o_r, b_loss, mask=m_r)
    b_grad, b_silent = tl.where(o_k < 0, (b_ds * b_factor)[:, None], 0.0), b_q * b_factor
    for k in tl.static_range(K):
        grad = b_m[k] * tl.where(b_code[k] == 1, -b_factor, b_silent)
        b_grad = tl.where(o_k == k, tl.where(b_code[k] == -1, 0.0, grad)[:, None], b_grad)
    return b_loss[:, None], b_grad, dropped


def linear_implicit_rm_forward(
    hidden: Tensor, heads: Tensor, bias: Tensor, propensity: Tensor | None, batch: Batch, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss, gradients of the logits and of the heads, and groups of a batch; all results float32.

    Args:
        hidden: (N, H), last stride 1.
        heads: (M, H) contiguous, read as float32: the reward head, then K propensity heads or none.
        bias: (M,) contiguous, read as float32.
        propensity: (N, K) logits where there are no propensity heads, any strides; else None.
        batch: Everything that carries no gradient; feedback is (N, K).
        need: Whether the gradients of the logits and of the parameters are wanted.

    Returns:
        loss, gradient of the K+1 logits (N, K+1), of the parameters (M H + K+1,), groups (N, K, 4); None where not
        needed. The gradient of the parameters is that of the heads, then the sums of the gradients of the logits over
        the rows. Sums are taken in two deterministic stages: one partial a program, then those.
    """
    (n, width), (n_heads, _), n_signals, device = hidden.shape, heads.shape, len(batch.polarity), hidden.device
    processors, shared = device_limits(hidden)
    feedback, preference, weight = batch.feedback, batch.preference, batch.weight
    reward_strat, propensity_strat = batch.reward_strat, batch.propensity_strat
    has_options = any(x is not None for x in (preference, weight, reward_strat)) or batch.has_misclick
    has_options = has_options or batch.per_row or batch.need_groups or feedback.element_size() == 8
    tile = forward_tile(hidden, n_heads, n_signals, has_options, shared)
    n_programs = min(triton.cdiv(n, tile.BLOCK_N), tile.programs * processors)
    second_read = need[1] and not tile.ONE_READ

    def empty(*size: int) -> Tensor:
        return torch.empty(size, device=device, dtype=torch.float32)

    loss = empty(n if batch.per_row else n_programs)
    grad_logits = empty(n, n_signals + 1) if need[0] or second_read else None
    length = n_heads * width + n_signals + 1
    partials = empty(n_programs, triton.cdiv(length, 4) * 4) if need[1] and tile.ONE_READ else None  # 16 bytes
    groups = empty(n, n_signals, 4) if batch.need_groups else None
    if n:
        with on_device_of(hidden):
            linear_implicit_rm_fwd_kernel[(n_programs,)](
                hidden,
                heads,
                bias,
                propensity,
                reward_strat,
                propensity_strat,
                as_codes(feedback),
                as_codes(preference),
                weight,
                batch.signal_table(device),
                loss,
                grad_logits,
                partials,
                groups,
                n,
                batch.factor,
                hidden.stride(0),
                *strides(propensity),
                0 if reward_strat is None else reward_strat.stride(0),
                *strides(propensity_strat),
                *strides(feedback),
                0 if preference is None else preference.stride(0),
                ONE_READ=tile.ONE_READ,
                LENGTH=triton.cdiv(length, 4) * 4,
                H=width,
                M=n_heads,
                K=n_signals,
                BLOCK_N=tile.BLOCK_N,
                BLOCK_H=tile.BLOCK_H,
                BLOCK_M=tile.BLOCK_M,
                BLOCK_K=tile.BLOCK_K,
                ONE_SIDED=n_signals <= 4 and is_one_sided(batch),
                HAS_MISCLICK=batch.has_misclick,
                PER_ROW=batch.per_row,
                STAGES=tile.STAGES,
                PARTS=tile.PARTS,
                PIECES=tile.num_warps,
                num_warps=tile.num_warps,
                enable_fp_fusion=True,  # said because the default changes in Triton 3.10
            )
    grad_parameters = None
    if partials is not None:
        grad_parameters, total = linear_total(partials, None if batch.per_row else loss, length)
        loss = loss if total is None else total
    elif not batch.per_row:
        loss = loss.sum()
    if second_read:
        grad_heads = linear_weight_grad(hidden, grad_logits, weight, n_heads)
        grad_parameters = torch.cat([grad_heads.flatten(), grad_logits.sum(0)])
    return loss, grad_logits if need[0] else None, grad_parameters, groups
