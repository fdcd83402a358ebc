"""Device functions on tiles of hidden states and heads: loads, stores, sums of products.

The tiles have three dimensions from the load on, [BLOCK_N, 1, BLOCK_H] and [1, BLOCK_M, BLOCK_H]: a dimension that is
added later costs a change of layout, through shared memory.
"""

import triton
import triton.language as tl
from irm_fast.kernels.triton import launch

INTERPRETED = tl.constexpr(launch.INTERPRETED)
DOT_DTYPE = tl.constexpr(tl.float32 if launch.INTERPRETED else tl.bfloat16)  # the interpreter has no dot of bfloat16


@triton.jit
def load_hidden(hidden_ptr, o_rows, m_n, first, H: tl.constexpr, BLOCK_H: tl.constexpr):
    o_h = first + tl.arange(0, BLOCK_H)[None, None, :]
    b_hidden = tl.load(hidden_ptr + o_rows[:, :, None] + o_h, mask=m_n[:, :, None] & (o_h < H), other=0.0)
    return b_hidden.to(tl.float32)


@triton.jit
def load_heads(heads_ptr, first, H: tl.constexpr, M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr):
    o_h = first + tl.arange(0, BLOCK_H)[None, None, :]
    o_m = tl.arange(0, BLOCK_M)[None, :, None]
    return tl.load(heads_ptr + o_m * H + o_h, mask=(o_m < M) & (o_h < H), other=0.0).to(tl.float32)


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


# Tensor cores multiply 16 rows of one matrix by 8 columns of another. The rows are the parts of the heads: a float32
# number is the sum of three bfloat16 ones, so that nothing is lost. A warp takes a piece of H. Where the parts of all
# heads are 8 or 4, they would leave rows empty: the piece is folded, and each fold has rows of its own.


@triton.jit
def load_parts(
    heads_ptr, H: tl.constexpr, M: tl.constexpr, BLOCK_H: tl.constexpr, PARTS: tl.constexpr, PIECES: tl.constexpr
):
    """Heads in bfloat16 parts, [PIECES, 16, BLOCK_H / PIECES / folds]; row m + M i of a fold is part i of head m."""
    FOLDS: tl.constexpr = 16 // PARTS
    COLUMNS: tl.constexpr = BLOCK_H // PIECES // FOLDS
    o_row = tl.arange(0, 16)[None, :, None]
    o_p, fold = o_row % PARTS, o_row // PARTS
    o_h = (tl.arange(0, PIECES)[:, None, None] * FOLDS + fold) * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]
    b_heads = tl.load(heads_ptr + o_p % M * H + o_h, mask=(o_p < 3 * M) & (o_h < H), other=0.0).to(tl.float32)
    b_heads -= tl.where(o_p < M, 0.0, b_heads.to(tl.bfloat16).to(tl.float32))  # what the first part leaves
    b_heads -= tl.where(o_p < 2 * M, 0.0, b_heads.to(tl.bfloat16).to(tl.float32))
    return b_heads.to(tl.bfloat16).to(DOT_DTYPE)


@triton.jit
def load_pieces(
    hidden_ptr, m_n, stride, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr
):
    """Hidden states as they are, [BLOCK_N, PIECES, BLOCK_H / PIECES]."""
    COLUMNS: tl.constexpr = BLOCK_H // PIECES
    o_h = tl.arange(0, PIECES)[None, :, None] * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]
    o_n = tl.arange(0, BLOCK_N)[:, None, None]
    return tl.load(hidden_ptr + o_n * stride + o_h, mask=(o_n < m_n) & (o_h < H), other=0.0)


@triton.jit
def widen(b_hidden):
    """bfloat16 to float32 in one instruction an entry, where the compiler takes three for two."""
    if INTERPRETED:
        b_wide = b_hidden.to(tl.float32)
    else:
        b_wide = tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [b_hidden], tl.float32, is_pure=True, pack=2
        )
    return b_wide


@triton.jit
def dot_logits(b_hidden, b_parts, M: tl.constexpr, BLOCK_M: tl.constexpr, PARTS: tl.constexpr):
    """hidden @ heads.T, [BLOCK_N, BLOCK_M]."""
    FOLDS: tl.constexpr = 16 // PARTS
    N: tl.constexpr = b_hidden.shape[0]
    PIECES: tl.constexpr = b_parts.shape[0]
    COLUMNS: tl.constexpr = b_parts.shape[2]
    b_columns = tl.permute(tl.reshape(b_hidden, [N, PIECES, FOLDS, COLUMNS]), [1, 3, 2, 0])
    b_sums = tl.dot(b_parts, tl.reshape(b_columns, [PIECES, COLUMNS, FOLDS * N]).to(DOT_DTYPE))
    if FOLDS > 1:
        b_sums = tl.reshape(b_sums, [PIECES, FOLDS, PARTS, FOLDS, N])
        fold = tl.arange(0, FOLDS)
        own = fold[None, :, None, None, None] == fold[None, None, None, :, None]
        b_sums = tl.sum(tl.sum(tl.where(own, b_sums, 0.0), 3), 1)
    own = tl.arange(0, PARTS)[None, :, None] % M == tl.arange(0, BLOCK_M)[:, None, None]
    return tl.trans(tl.sum(tl.where(own, tl.sum(b_sums, 0), 0.0), 1))
