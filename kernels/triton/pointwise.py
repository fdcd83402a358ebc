"""The weighted pointwise loss on GPUs: loss and gradient of a batch in one pass.

The C++ twin is kernels/cpu/pointwise.cpp: the same quantities under the same names.
"""

import torch
import triton
import triton.language as tl
from irm_fast.kernels.batch import PointwiseBatch
from irm_fast.kernels.triton.four_groups import not_finite
from irm_fast.kernels.triton.launch import INTERPRETED, on_device_of
from irm_fast.kernels.triton.math import sigmoid_softplus
from irm_fast.kernels.triton.tiles import load_rows, store_rows
from torch import Tensor

BLOCK_N = 8192 if INTERPRETED else 512  # rows, 4 a thread; the interpreter pays per program, not per row
REPEAT = 1 if INTERPRETED else 2  # blocks of a program


@triton.jit(do_not_specialize=["n_rows"])  # a new batch size must not compile anew
def pointwise_fwd_kernel(
    reward_ptr,  # (N,)
    positive_weight_ptr,  # (N,) float32, of softplus(-s)
    negative_weight_ptr,  # (N,) float32, of softplus(s)
    loss_ptr,  # (N,) if PER_ROW else (programs,): one partial sum each
    grad_reward_ptr,  # (N,) or None, which is compiled away
    n_rows,
    scale,
    stride_reward,  # in elements
    BLOCK_N: tl.constexpr,
    REPEAT: tl.constexpr,
    PER_ROW: tl.constexpr,
):
    pid = tl.program_id(0)
    first = pid.to(tl.int64) * (BLOCK_N * REPEAT)
    arrays = (reward_ptr, positive_weight_ptr, negative_weight_ptr, loss_ptr, grad_reward_ptr)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    if first + BLOCK_N * REPEAT <= n_rows:
        for i in tl.static_range(REPEAT):
            row = first + i * BLOCK_N
            b_sum += pointwise_tile(arrays, row, n_rows, scale, stride_reward, BLOCK_N, PER_ROW, FULL=True)
    else:
        for row in tl.range(first, n_rows, BLOCK_N):
            b_sum += pointwise_tile(arrays, row, n_rows, scale, stride_reward, BLOCK_N, PER_ROW, FULL=False)
    if not PER_ROW:
        tl.store(loss_ptr + pid, tl.sum(b_sum))


@triton.jit
def pointwise_tile(
    arrays, row, n_rows, scale, stride_reward, BLOCK_N: tl.constexpr, PER_ROW: tl.constexpr, FULL: tl.constexpr
):
    """Store what is wanted of the rows from `row` on, and return their losses [BLOCK_N], 0 past the end."""
    reward_ptr, positive_weight_ptr, negative_weight_ptr, loss_ptr, grad_reward_ptr = arrays
    b_s = load_rows(reward_ptr, row, n_rows, stride_reward, 0.0, BLOCK_N, FULL).to(tl.float32)
    b_w1 = load_rows(positive_weight_ptr, row, n_rows, 1, 0.0, BLOCK_N, FULL)
    b_w0 = load_rows(negative_weight_ptr, row, n_rows, 1, 0.0, BLOCK_N, FULL)

    plus, minus, softplus, softplus_minus = sigmoid_softplus(b_s)
    b_poison = not_finite(b_s)
    dropped = (b_w1 == 0.0) & (b_w0 == 0.0)  # contributes nothing, whatever the row holds; so do rows past the end
    b_loss = tl.where(dropped, 0.0, (b_w1 * softplus_minus + b_w0 * softplus + b_poison) * scale)
    if grad_reward_ptr is not None:
        b_ds = tl.where(dropped, 0.0, (b_w0 * plus - b_w1 * minus + b_poison) * scale)
        store_rows(grad_reward_ptr, b_ds, row, n_rows, FULL)
    if PER_ROW:
        store_rows(loss_ptr, b_loss, row, n_rows, FULL)
    return b_loss


def pointwise_forward(reward: Tensor, batch: PointwiseBatch, need: tuple[bool]) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient of a batch in one launch, both float32.

    Args:
        reward: (N,) logits s, any stride.
        batch: The weights of softplus(-s) and softplus(s), and everything else that carries no gradient.
        need: Whether the gradient is wanted.

    Returns:
        loss, and the gradient in the logits or None. The sum is taken in two deterministic stages: one partial a
        program, then those.
    """
    n, device = reward.shape[0], reward.device
    n_programs = triton.cdiv(n, BLOCK_N * REPEAT)
    loss = torch.empty(n if batch.per_row else n_programs, device=device, dtype=torch.float32)
    grad_reward = torch.empty(n, device=device, dtype=torch.float32) if need[0] else None
    if n:
        with on_device_of(reward):
            pointwise_fwd_kernel[(n_programs,)](
                reward,
                batch.positive_weight,
                batch.negative_weight,
                loss,
                grad_reward,
                n,
                batch.factor,
                reward.stride(0),
                BLOCK_N=BLOCK_N,
                REPEAT=REPEAT,
                PER_ROW=batch.per_row,
                enable_fp_fusion=True,  # said because the default changes in Triton 3.10
            )
    return (loss if batch.per_row else loss.sum()), grad_reward
