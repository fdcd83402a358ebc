"""The weighted pointwise loss on GPUs: loss and gradient of a batch in one pass.

The C++ twin is kernels/cpu/pointwise.cpp: the same quantities under the same names.
"""

import torch
import triton
import triton.language as tl
from irm_fast.kernels.batch import PointwiseBatch
from irm_fast.kernels.triton.four_groups import load_logits, not_finite
from irm_fast.kernels.triton.launch import INTERPRETED, on_device_of
from irm_fast.kernels.triton.math import sigmoid_softplus
from torch import Tensor

TILE = 8192 if INTERPRETED else 1024  # rows; the interpreter pays per program, not per row


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
    PER_ROW: tl.constexpr,
):
    pid = tl.program_id(0)
    o_n = pid.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n_rows
    b_s = load_logits(reward_ptr, o_n * stride_reward, m_n)
    b_w1 = tl.load(positive_weight_ptr + o_n, mask=m_n, other=0.0)
    b_w0 = tl.load(negative_weight_ptr + o_n, mask=m_n, other=0.0)

    plus, minus, softplus, softplus_minus = sigmoid_softplus(b_s)
    b_poison = not_finite(b_s)
    dropped = (b_w1 == 0.0) & (b_w0 == 0.0)  # contributes nothing, whatever the row holds; so do rows past the end
    b_loss = tl.where(dropped, 0.0, (b_w1 * softplus_minus + b_w0 * softplus + b_poison) * scale)
    if grad_reward_ptr is not None:
        b_ds = tl.where(dropped, 0.0, (b_w0 * plus - b_w1 * minus + b_poison) * scale)
        tl.store(grad_reward_ptr + o_n, b_ds, mask=m_n)
    if PER_ROW:
        tl.store(loss_ptr + o_n, b_loss, mask=m_n)
    else:
        tl.store(loss_ptr + pid, tl.sum(b_loss))


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
    n_programs = triton.cdiv(n, TILE)
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
                BLOCK_N=TILE,
                PER_ROW=batch.per_row,
                enable_fp_fusion=True,  # said because the default changes in Triton 3.10
            )
    return (loss if batch.per_row else loss.sum()), grad_reward
