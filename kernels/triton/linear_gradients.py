"""What the forward kernel of the linear loss leaves: totals of its sums, and gradients of hidden and of wide heads.

The gradients follow from those of the logits. The gradient of hidden is an outer product with the heads and reads no
hidden states, so it is written in the backward pass, when the upstream gradient is known: one write, no second pass.
"""

import torch
import triton
import triton.language as tl
from irm_fast.kernels.triton.heads import add_rows, load_hidden, store_heads
from irm_fast.kernels.triton.launch import INTERPRETED, device_limits, on_device_of
from torch import Tensor


@triton.jit(do_not_specialize=["n_rows", "n_split"])
def linear_weight_grad_kernel(
    hidden_ptr,  # (N, H)
    grad_logits_ptr,  # (N, K+1)
    weight_ptr,  # (N,) float32 or None
    grad_heads_ptr,  # (splits, M, H): one partial sum each
    n_rows,
    n_split,  # rows of a split
    stride_hidden,
    stride_grad_logits,
    H: tl.constexpr,
    M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """grad_logits[:, :M].T @ hidden, for a piece of H and a split of the rows."""
    split = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK_H
    o_m = tl.arange(0, BLOCK_M)[None, :]
    last = tl.minimum((split + 1) * n_split, n_rows)
    b_grad_heads = tl.zeros([1, BLOCK_M, BLOCK_H], tl.float32)
    for begin in tl.range(split * n_split, last, BLOCK_N, num_stages=STAGES):
        o_n = begin + tl.arange(0, BLOCK_N)[:, None]
        m_n = o_n < last
        b_grad = tl.load(grad_logits_ptr + o_n * stride_grad_logits + o_m, mask=m_n & (o_m < M), other=0.0)
        b_hidden = load_hidden(hidden_ptr, o_n * stride_hidden, m_n, first, H, BLOCK_H)
        if weight_ptr is not None:
            b_w = tl.load(weight_ptr + o_n, mask=m_n, other=0.0)
            b_hidden = tl.where((b_w == 0)[:, :, None], 0.0, b_hidden)
        b_grad_heads = add_rows(b_grad_heads, b_grad[:, :, None], b_hidden)
    store_heads(grad_heads_ptr + split * M * H, b_grad_heads, first, H, M, BLOCK_H, BLOCK_M)


@triton.jit(do_not_specialize=["n_rows"])
def linear_hidden_grad_kernel(
    grad_logits_ptr,  # (N, K+1)
    upstream_ptr,  # () or (N,) float32
    heads_ptr,  # (M, H)
    grad_hidden_ptr,  # (N, H)
    n_rows,
    stride_grad_logits,
    stride_upstream,
    H: tl.constexpr,
    M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """(grad_logits[:, :M] * upstream) @ heads, for a tile of rows and a piece of H."""
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    m_n, m_h = o_n < n_rows, o_h < H
    b_upstream = tl.load(upstream_ptr + o_n * stride_upstream, mask=m_n, other=0.0)
    b_grad_hidden = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
    for m in range(M):
        b_grad = tl.load(grad_logits_ptr + o_n * stride_grad_logits + m, mask=m_n, other=0.0) * b_upstream
        b_grad_hidden += b_grad * tl.load(heads_ptr + m * H + o_h, mask=m_h, other=0.0).to(tl.float32)
    ptrs = grad_hidden_ptr + o_n * H + o_h
    tl.store(ptrs, b_grad_hidden.to(grad_hidden_ptr.dtype.element_ty), mask=m_n & m_h)


@triton.jit(do_not_specialize=["n_partials"])
def linear_total_kernel(
    partials_ptr,  # (n_partials, STRIDE)
    losses_ptr,  # (n_partials,)
    totals_ptr,  # (LENGTH,)
    loss_ptr,  # ()
    n_partials,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The second stage of all sums, in a fixed order."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    o_n = tl.arange(0, BLOCK_N)[:, None]
    b_total = tl.zeros([BLOCK_N, BLOCK], tl.float32)
    for first in range(0, n_partials, BLOCK_N):
        mask = (first + o_n < n_partials) & (o < STRIDE)  # a multiple of 4, so that 16 bytes are read at once
        b_total += tl.load(partials_ptr + (first + o_n).to(tl.int64) * STRIDE + o, mask=mask, other=0.0)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(totals_ptr + o, tl.sum(b_total, 0), mask=o < LENGTH)
    if losses_ptr is not None and tl.program_id(0) == 0:
        b_loss = tl.zeros([BLOCK], tl.float32)
        for first in range(0, n_partials, BLOCK):
            o = first + tl.arange(0, BLOCK)
            b_loss += tl.load(losses_ptr + o, mask=o < n_partials, other=0.0)
        tl.store(loss_ptr, tl.sum(b_loss))


def linear_weight_grad(hidden: Tensor, grad_logits: Tensor, weight: Tensor | None, n_heads: int) -> Tensor:
    """grad_logits[:, :n_heads].T @ hidden, (M, H) float32; rows of weight 0 are left out, whatever they hold."""
    n, width = hidden.shape
    block_m = triton.next_power_of_2(n_heads)
    # A thread holds the sums of 8 columns, or of 4 where that would be more than 128 sums.
    block_h = min(1024 if block_m <= 16 else 512, triton.next_power_of_2(width))
    pieces = triton.cdiv(width, block_h)
    n_processors, _ = device_limits(hidden)
    splits = max(1, min(triton.cdiv(n, 256), 8 * n_processors // pieces))  # partial sums: a bounded number
    partial = torch.empty(splits, n_heads, width, device=hidden.device, dtype=torch.float32)
    with on_device_of(hidden):
        linear_weight_grad_kernel[(pieces, splits)](
            hidden,
            grad_logits,
            weight,
            partial,
            n,
            triton.cdiv(n, splits),
            hidden.stride(0),
            grad_logits.stride(0),
            H=width,
            M=n_heads,
            BLOCK_N=max(1, 32 // block_m) * (16 if INTERPRETED else 1),
            BLOCK_H=block_h,
            BLOCK_M=block_m,
            STAGES=3,
            num_warps=max(1, min(4, block_h // (256 if block_m <= 16 else 128))),
            enable_fp_fusion=True,
        )
    return partial.sum(0)


def linear_hidden_grad(grad_logits: Tensor, upstream: Tensor, heads: Tensor, dtype: torch.dtype) -> Tensor:
    """(grad_logits[:, :M] * upstream) @ heads, (N, H) in `dtype`: float32 sums, rounded once.

    Args:
        grad_logits: (N, K+1) float32, its first M columns those of the heads.
        upstream: () or (N,) float32.
        heads: (M, H) contiguous, read as float32.
    """
    n, (n_heads, width) = grad_logits.shape[0], heads.shape
    stored = torch.float32 if INTERPRETED else dtype  # the interpreter cuts bfloat16 off where GPUs round
    grad_hidden = torch.empty(n, width, device=heads.device, dtype=stored)
    if n == 0:
        return grad_hidden.to(dtype)
    block_h = min(1024, triton.next_power_of_2(width))
    block_n = (65536 if INTERPRETED else 8192) // block_h
    with on_device_of(heads):
        linear_hidden_grad_kernel[(triton.cdiv(n, block_n), triton.cdiv(width, block_h))](
            grad_logits,
            upstream,
            heads,
            grad_hidden,
            n,
            grad_logits.stride(0),
            upstream.stride(0) if upstream.dim() else 0,
            H=width,
            M=n_heads,
            BLOCK_N=block_n,
            BLOCK_H=block_h,
            enable_fp_fusion=True,
        )
    return grad_hidden.to(dtype)


def linear_total(partials: Tensor, losses: Tensor | None, length: int) -> tuple[Tensor, Tensor | None]:
    """Sums over the programs of the forward kernel, in one launch: of `length` columns, and of the losses, if any."""
    n_partials, stride = partials.shape
    totals = torch.empty(length, device=partials.device, dtype=torch.float32)
    loss = None if losses is None else torch.empty((), device=partials.device, dtype=torch.float32)
    block = 4096 if INTERPRETED else 128
    with on_device_of(partials):
        linear_total_kernel[(triton.cdiv(length, block),)](
            partials,
            losses,
            totals,
            loss,
            n_partials,
            LENGTH=length,
            STRIDE=stride,
            BLOCK_N=8,
            BLOCK=block,
            enable_fp_fusion=True,
        )
    return totals, loss
