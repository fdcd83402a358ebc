"""Device functions on tiles of hidden states and heads: loads, stores, sums of products.

The tiles have three dimensions from the load on, [BLOCK_N, 1, BLOCK_H] and [1, BLOCK_M, BLOCK_H]: a dimension that is
added later costs a change of layout, through shared memory.
"""

import triton
import triton.language as tl


@triton.jit
def load_hidden(hidden_ptr, o_rows, m_n, first, H: tl.constexpr, BLOCK_H: tl.constexpr):
    o_h = first + tl.arange(0, BLOCK_H)[None, None, :]
    b_hidden = tl.load(hidden_ptr + o_rows[:, :, None] + o_h, mask=m_n[:, :, None] & (o_h < H), other=0.0)
    return b_hidden.to(tl.float32)


@triton.jit
def load_heads(heads_ptr, first, H: tl.constexpr, M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr):
    o_h = first + tl.arange(0, BLOCK_H)[None, None, :]
    o_m = tl.arange(0, BLOCK_M)[None, :, None]
    return tl.load(heads_ptr + o_m * H + o_h, mask=(o_m < M) & (o_h < H), other=0.0)


@triton.jit
def store_heads(ptr, b_heads, first, H: tl.constexpr, M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr):
    o_h = first + tl.arange(0, BLOCK_H)[None, None, :]
    o_m = tl.arange(0, BLOCK_M)[None, :, None]
    tl.store(ptr + o_m * H + o_h, b_heads, mask=(o_m < M) & (o_h < H))


# tl.sum of a product adds pairs, then pairs of pairs, and so fuses only half of the multiplications with an addition.
# Halving the tile until one addend is left fuses all of them, and needs fewer registers. The halves are a matter of
# naming registers where a thread holds all rows, or 8 neighbouring columns.


@triton.jit
def add_rows(sums, x, y):
    """sums + x * y summed over rows: [1, M, H] + [N, M, 1] * [N, 1, H]."""
    if x.shape[0] == 1:
        return x * y + sums
    elif y.shape[2] < 256:  # threads hold different rows
        return sums + tl.sum(x * y, 0, keep_dims=True)
    else:
        x0, x1 = tl.split(tl.permute(tl.reshape(x, [x.shape[0] // 2, 2, x.shape[1], x.shape[2]]), [0, 2, 3, 1]))
        y0, y1 = tl.split(tl.permute(tl.reshape(y, [y.shape[0] // 2, 2, y.shape[1], y.shape[2]]), [0, 2, 3, 1]))
        return add_rows(add_rows(sums, x0, y0), x1, y1)


@triton.jit
def add_columns(sums, x, y):
    """sums + x * y, neighbouring columns summed until there are as many as in sums."""
    if x.shape[2] == sums.shape[2]:
        return x * y + sums
    else:
        x0, x1 = tl.split(tl.reshape(x, [x.shape[0], x.shape[1], x.shape[2] // 2, 2]))
        y0, y1 = tl.split(tl.reshape(y, [y.shape[0], y.shape[1], y.shape[2] // 2, 2]))
        return add_columns(add_columns(sums, x0, y0), x1, y1)
