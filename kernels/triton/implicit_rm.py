"""The implicit reward-model loss on GPUs: posterior, loss and gradients of a batch in one pass.

kernels/reference/definition.py defines what is computed. The mathematics of a tile is in `four_groups`; here are the
kernel around it and its launch, as kernels/cpu/implicit_rm.cpp is around implicit_rm_block.cpp.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from irm_fast.kernels.batch import Batch
from irm_fast.kernels.triton.four_groups import four_groups_tile, load_logits, widen
from irm_fast.kernels.triton.launch import INTERPRETED, as_codes, on_device_of, strides
from irm_fast.kernels.triton.one_sided import one_sided_rows
from irm_fast.kernels.triton.tiles import load_rows, load_signals, store_rows, store_signals
from torch import Tensor


@triton.jit  # for numbers of rows that 16 divides, and others: a mask of unknown alignment splits every access
def implicit_rm_kernel(
    # data pointers; what is None is compiled away
    reward_ptr,  # (N,)
    propensity_ptr,  # (N, K)
    reward_strat_ptr,  # (N,) or None
    propensity_strat_ptr,  # (N, K) or None
    feedback_ptr,  # (N, K): 1, 0, -1
    preference_ptr,  # (N,) or None: 1, 0, -1
    weight_ptr,  # (N,) float32 or None
    signals_ptr,  # (4, K) float32: polarity, misclick rate e, -log e, log1p(-e)
    upstream_ptr,  # () or, if UPSTREAM_PER_ROW, (N,) float32, or None: multiplies the gradients
    loss_ptr,  # (N,) if PER_ROW, else (programs,), one partial sum each; or None
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
    stride_upstream,
    # constants
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_MISCLICK: tl.constexpr,
    PACKED: tl.constexpr,
    PER_ROW: tl.constexpr,
    UPSTREAM_PER_ROW: tl.constexpr,
):
    """Any batch."""
    pid = tl.program_id(0)
    if PACKED:
        stride_propensity_n, stride_feedback_n = K, K
    row = pid.to(tl.int64) * BLOCK_N
    o_n = row + tl.arange(0, BLOCK_N)[:, None]
    o_k = tl.arange(0, BLOCK_K)[None, :].to(tl.int64)
    m_n = o_n < n_rows
    m_nk = m_n & (o_k < K)
    b_s = load_logits(reward_ptr, o_n * stride_reward, m_n)
    b_t = load_logits(propensity_ptr, o_n * stride_propensity_n + o_k * stride_propensity_k, m_nk)

    b_loss, b_ds, b_dt, _ = four_groups_tile(
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
    if upstream_ptr is not None:
        if UPSTREAM_PER_ROW:
            b_upstream = tl.load(upstream_ptr + o_n * stride_upstream, mask=m_n, other=0.0)
        else:
            b_upstream = tl.load(upstream_ptr)
        b_ds *= b_upstream
        b_dt *= b_upstream
    if grad_reward_ptr is not None:
        tl.store(grad_reward_ptr + o_n, b_ds, mask=m_n)
    if grad_propensity_ptr is not None:
        tl.store(grad_propensity_ptr + o_n * K + o_k, b_dt, mask=m_nk)
    if loss_ptr is not None and not PER_ROW:
        tl.store(loss_ptr + pid, tl.sum(b_loss))


@triton.jit(do_not_specialize=["n_rows"])  # a new batch size must not compile anew
def one_sided_kernel(
    reward_ptr,  # (N,)
    propensity_ptr,  # (N, K)
    feedback_ptr,  # (N, K): 1, 0, -1
    weight_ptr,  # (N,) float32 or None
    upstream_ptr,  # () or, if UPSTREAM_PER_ROW, (N,) float32, or None: multiplies the gradients
    loss_ptr,  # (N,) if PER_ROW, else (programs,), one partial sum each; or None
    grad_reward_ptr,  # (N,) or None
    grad_propensity_ptr,  # (N, K) or None
    n_rows,
    scale,
    stride_reward,
    stride_propensity_n,
    stride_propensity_k,
    stride_feedback_n,
    stride_feedback_k,
    stride_upstream,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    REPEAT: tl.constexpr,
    PACKED: tl.constexpr,
    PER_ROW: tl.constexpr,
    UPSTREAM_PER_ROW: tl.constexpr,
):
    """A batch in which every signal speaks for r*=1, and nothing else speaks."""
    pid = tl.program_id(0)
    first = pid.to(tl.int64) * (BLOCK_N * REPEAT)
    inputs = (reward_ptr, propensity_ptr, feedback_ptr, weight_ptr)
    outputs = (loss_ptr, grad_reward_ptr, grad_propensity_ptr)
    strides = (stride_reward, stride_propensity_n, stride_propensity_k, stride_feedback_n, stride_feedback_k)
    upstream = (upstream_ptr, stride_upstream)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    if first + BLOCK_N * REPEAT <= n_rows:
        for i in tl.static_range(REPEAT):
            row = first + i * BLOCK_N
            b_sum += one_sided_tile(
                inputs,
                strides,
                upstream,
                outputs,
                row,
                n_rows,
                scale,
                K,
                BLOCK_N,
                PACKED,
                PER_ROW,
                UPSTREAM_PER_ROW,
                True,
            )
    else:
        for row in tl.range(first, n_rows, BLOCK_N):
            b_sum += one_sided_tile(
                inputs,
                strides,
                upstream,
                outputs,
                row,
                n_rows,
                scale,
                K,
                BLOCK_N,
                PACKED,
                PER_ROW,
                UPSTREAM_PER_ROW,
                False,
            )
    if loss_ptr is not None and not PER_ROW:
        tl.store(loss_ptr + pid, tl.sum(b_sum))


@triton.jit
def one_sided_tile(
    inputs,
    strides,
    upstream,
    outputs,
    row,
    n_rows,
    scale,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PACKED: tl.constexpr,
    PER_ROW: tl.constexpr,
    UPSTREAM_PER_ROW: tl.constexpr,
    FULL: tl.constexpr,
):
    """Store what is wanted of the rows from `row` on, and return their losses [BLOCK_N], 0 past the end."""
    reward_ptr, propensity_ptr, feedback_ptr, weight_ptr = inputs
    loss_ptr, grad_reward_ptr, grad_propensity_ptr = outputs
    upstream_ptr, stride_upstream = upstream
    stride_s, stride_t_n, stride_t_k, stride_f_n, stride_f_k = strides
    b_s = load_rows(reward_ptr, row, n_rows, stride_s, 0.0, BLOCK_N, FULL).to(tl.float32)
    logits = load_signals(propensity_ptr, row, n_rows, stride_t_n, stride_t_k, 0.0, K, BLOCK_N, PACKED, FULL)
    codes = load_signals(feedback_ptr, row, n_rows, stride_f_n, stride_f_k, -1, K, BLOCK_N, PACKED, FULL)
    b_factor = tl.zeros_like(b_s) + scale
    if weight_ptr is not None:  # rows of weight 0 contribute nothing, whatever they hold
        b_w = load_rows(weight_ptr, row, n_rows, 1, 0.0, BLOCK_N, FULL)
        b_factor = tl.where((b_w >= 0) & (b_w < float("inf")), b_w * scale, float("nan"))
        b_s = tl.where(b_w == 0, 0.0, b_s)
    b_t, b_code = (), ()
    for k in tl.static_range(K):
        code = widen(codes[k])
        if weight_ptr is not None:
            code = tl.where(b_w == 0, -1, code)
        b_t += (logits[k].to(tl.float32),)
        b_code += (code,)
    b_loss, b_ds, b_q, b_m, b_poison = one_sided_rows(b_s, b_t, b_code, K)
    b_factor += b_poison
    b_loss *= b_factor
    if loss_ptr is not None and PER_ROW:
        store_rows(loss_ptr, b_loss, row, n_rows, FULL)
    if upstream_ptr is not None:
        if UPSTREAM_PER_ROW:
            b_factor *= load_rows(upstream_ptr, row, n_rows, stride_upstream, 0.0, BLOCK_N, FULL)
        else:
            b_factor *= tl.load(upstream_ptr)
    if grad_reward_ptr is not None:
        store_rows(grad_reward_ptr, b_ds * b_factor, row, n_rows, FULL)
    if grad_propensity_ptr is not None:
        b_dt, b_silent = (), b_q * b_factor
        for k in tl.static_range(K):
            grad = b_m[k] * tl.where(b_code[k] == 1, -b_factor, b_silent)
            b_dt += (tl.where(b_code[k] == -1, 0.0, grad),)
        store_signals(grad_propensity_ptr, b_dt, row, n_rows, K, FULL)
    return b_loss


def implicit_rm_forward(
    reward: Tensor, propensity: Tensor, batch: Batch, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Loss, both gradients and groups of a batch in one launch; all results float32.

    Args:
        reward: (N,) logits, any stride.
        propensity: (N,) or (N, K) logits, any strides.
        batch: Everything that carries no gradient; feedback is shaped like the propensity.
        need: Whether the gradients of reward and propensity are wanted.

    Returns:
        loss, reward gradient, propensity gradient (of the propensity's shape), groups (that shape, 4); None where
        not needed. The sum is taken in two deterministic stages: one partial a program, then those.
    """
    n, shape = reward.shape[0], propensity.shape
    tile = _tile(batch, 4 if True in need or batch.per_row else max(reward.element_size(), propensity.element_size()))

    def empty(*size: int) -> Tensor:
        return torch.empty(size, device=reward.device, dtype=torch.float32)

    loss = empty(n if batch.per_row else triton.cdiv(n, tile.rows))
    grad_reward = empty(n) if need[0] else None
    grad_propensity = empty(*shape) if need[1] else None
    groups = empty(*shape, 4) if batch.need_groups else None
    _launch(reward, propensity, batch, None, (loss, grad_reward, grad_propensity, groups), tile)
    return (loss if batch.per_row else loss.sum()), grad_reward, grad_propensity, groups


def implicit_rm_gradients(
    reward: Tensor, propensity: Tensor, batch: Batch, upstream: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients of a batch, times the upstream gradient, in one launch, in the dtypes of the logits.

    Args:
        reward: (N,) logits, any stride.
        propensity: (N,) or (N, K) logits, any strides.
        batch: As in the forward pass.
        upstream: () or (N,) float32.
        need: Whether the gradients of reward and propensity are wanted.

    Returns:
        reward gradient, propensity gradient, rounded once; None where not needed.
    """
    tile = _tile(batch, max(reward.element_size(), propensity.element_size()))

    def empty(x: Tensor) -> Tensor:
        # The interpreter cuts bfloat16 off where GPUs round.
        return torch.empty(x.shape, device=x.device, dtype=torch.float32 if INTERPRETED else x.dtype)

    grads = [empty(x) if needed else None for x, needed in zip((reward, propensity), need, strict=True)]
    _launch(reward, propensity, batch, upstream, (None, *grads, None), tile)
    grad_reward, grad_propensity = grads
    return (
        None if grad_reward is None else grad_reward.to(reward.dtype),
        None if grad_propensity is None else grad_propensity.to(propensity.dtype),
    )


class Tile(NamedTuple):
    """The rows of a tile, and the tiles of a program."""

    BLOCK_N: int
    REPEAT: int

    @property
    def rows(self) -> int:
        """Rows of a program."""
        return self.BLOCK_N * self.REPEAT


def is_one_sided(batch: Batch) -> bool:
    """Whether every signal speaks for r*=1, and nothing else speaks: `one_sided_rows` then computes the row."""
    only_signals = batch.preference is None and batch.reward_strat is None
    return only_signals and min(batch.polarity) > 0 and not batch.has_misclick and not batch.need_groups


def _tile(batch: Batch, itemsize: int) -> Tile:
    """A tile in which each of 128 threads reads and writes 16 bytes of entries of `itemsize` bytes, or a whole row.

    A program of several tiles adds up its losses once. The interpreter pays per program, not per row.
    """
    n_signals = len(batch.polarity)
    block_k = triton.next_power_of_2(n_signals)
    if INTERPRETED:
        return Tile(8192 // block_k, 1)
    if not is_one_sided(batch):
        return Tile(512 // block_k, 1)
    itemsize = itemsize if batch.weight is None else 4
    block_n = 512 if n_signals == 3 else max(128, 2048 // itemsize // block_k)  # of 3 signals, 4 rows a thread
    return Tile(block_n, min(4, 1024 // block_n))


def _launch(
    reward: Tensor,
    propensity: Tensor,
    batch: Batch,
    upstream: Tensor | None,
    outputs: tuple[Tensor | None, ...],
    tile: Tile,
) -> None:
    """Compute the outputs (loss, reward gradient, propensity gradient, groups) that are given, in one launch."""
    n, n_signals, device = reward.shape[0], len(batch.polarity), reward.device
    if n == 0:
        return
    feedback, preference = as_codes(batch.feedback), as_codes(batch.preference)
    reward_strat, propensity_strat = batch.reward_strat, batch.propensity_strat
    stride_upstream = upstream.stride(0) if upstream is not None and upstream.dim() else 0
    constants = {
        "K": n_signals,
        "BLOCK_N": tile.BLOCK_N,
        "PER_ROW": batch.per_row,
        "PACKED": propensity.is_contiguous() and feedback.is_contiguous(),
        "UPSTREAM_PER_ROW": stride_upstream != 0,
        "enable_fp_fusion": True,  # said because the default changes in Triton 3.10
    }
    grid = (triton.cdiv(n, tile.rows),)
    with on_device_of(reward):
        if is_one_sided(batch):
            one_sided_kernel[grid](
                reward,
                propensity,
                feedback,
                batch.weight,
                upstream,
                *outputs[:3],
                n,
                batch.factor,
                reward.stride(0),
                *strides(propensity),
                *strides(feedback),
                stride_upstream,
                REPEAT=tile.REPEAT,
                **constants,
            )
        else:
            implicit_rm_kernel[grid](
                reward,
                propensity,
                reward_strat,
                propensity_strat,
                feedback,
                preference,
                batch.weight,
                batch.signal_table(device),
                upstream,
                *outputs,
                n,
                batch.factor,
                reward.stride(0),
                *strides(propensity),
                0 if reward_strat is None else reward_strat.stride(0),
                *strides(propensity_strat),
                *strides(feedback),
                0 if preference is None else preference.stride(0),
                stride_upstream,
                BLOCK_K=triton.next_power_of_2(n_signals),
                HAS_MISCLICK=batch.has_misclick,
                **constants,
            )
