"""Access to rows and signals by tiles, 16 bytes a thread where the memory allows it.

A tile is FULL where all of its rows exist. It is then read and written without a mask: a mask of unknown alignment
splits every access into single elements. What belongs to rows is a vector [BLOCK_N]; K signals are a tuple of such
vectors, of which one thread holds the entries of a row. Signals are PACKED where they are one (N, K) array without
gaps. Rows are counted in int64, places within a tile in int32.
"""

import triton
import triton.language as tl


@triton.jit
def load(ptrs, offset, end, other, FULL: tl.constexpr):
    """Entries at `ptrs`, which have the number `offset`; `other` from `end` on."""
    return tl.load(ptrs) if FULL else tl.load(ptrs, mask=offset < end, other=other)


@triton.jit
def load_rows(ptr, row, n_rows, stride, other, BLOCK_N: tl.constexpr, FULL: tl.constexpr):
    """Entries of the rows from `row` on, [BLOCK_N]; `other` past the end."""
    o_n = tl.arange(0, BLOCK_N)
    return load(ptr + row * stride + o_n * stride, o_n, n_rows - row, other, FULL)


@triton.jit
def store(ptrs, x, offset, end, FULL: tl.constexpr):
    """Store entries at `ptrs`, which have the number `offset`; none from `end` on."""
    if FULL:
        tl.store(ptrs, x)
    else:
        tl.store(ptrs, x, mask=offset < end)


@triton.jit
def store_rows(ptr, x, row, n_rows, FULL: tl.constexpr):
    """Store the entries of the rows from `row` on, contiguous; none past the end."""
    o_n = tl.arange(0, x.shape[0])
    store(ptr + row + o_n, x, o_n, n_rows - row, FULL)


@triton.jit
def load_signals(
    ptr,
    row,
    n_rows,
    stride_n,
    stride_k,
    other,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PACKED: tl.constexpr,
    FULL: tl.constexpr,
):
    """Entries of K signals of the rows from `row` on: a tuple of [BLOCK_N]; `other` past the end."""
    columns = ()
    if PACKED and (K & (K - 1)) == 0:
        columns = (load_rows(ptr, row * K, n_rows * K, 1, other, BLOCK_N * K, FULL),)
        for level in tl.static_range(4):
            if 2**level < K:
                columns = halve(columns)
    elif PACKED and K == 3:
        columns = load_threes(ptr + row * 3, (n_rows - row) * 3, other, BLOCK_N, FULL)
    else:
        o_n = tl.arange(0, BLOCK_N)
        for k in tl.static_range(K):
            ptrs = ptr + row * K + (o_n * K + k) if PACKED else ptr + (row + o_n) * stride_n + k * stride_k
            columns += (load(ptrs, o_n, n_rows - row, other, FULL),)
    return columns


@triton.jit
def store_signals(ptr, columns, row, n_rows, K: tl.constexpr, FULL: tl.constexpr):
    """Store a tuple of K vectors, the signals of the rows from `row` on, into a packed array."""
    if (K & (K - 1)) == 0:
        for level in tl.static_range(4):
            if 2**level < K:
                columns = interleave(columns)
        store_rows(ptr, columns[0], row * K, n_rows * K, FULL)
    elif K == 3:
        store_threes(ptr + row * 3, columns, (n_rows - row) * 3, FULL)
    else:
        o_n = tl.arange(0, columns[0].shape[0])
        for k in tl.static_range(K):
            store(ptr + row * K + (o_n * K + k), columns[k], o_n, n_rows - row, FULL)


@triton.jit
def load_threes(ptr, end, other, BLOCK_N: tl.constexpr, FULL: tl.constexpr):
    """Entries of 3 signals: the 12 entries of 4 rows are 3 accesses of 4."""
    o = tl.arange(0, BLOCK_N // 4)[:, None] * 12 + tl.arange(0, 4)[None, :]
    entries = ()
    for c in tl.static_range(3):
        chunk = load(ptr + 4 * c + o, 4 * c + o, end, other, FULL)
        entries += halve(halve((tl.reshape(chunk, [BLOCK_N]),)))
    columns = ()
    for k in tl.static_range(3):
        columns += interleave(interleave((entries[k], entries[k + 3], entries[k + 6], entries[k + 9])))
    return columns


@triton.jit
def store_threes(ptr, columns, end, FULL: tl.constexpr):
    """Undo `load_threes`."""
    rows = ()
    for k in tl.static_range(3):
        rows += halve(halve((columns[k],)))
    o = tl.arange(0, columns[0].shape[0] // 4)[:, None] * 12 + tl.arange(0, 4)[None, :]
    for c in tl.static_range(3):
        entries = ()
        for i in tl.static_range(4):
            entries += (rows[(4 * c + i) % 3 * 4 + (4 * c + i) // 3],)
        chunk = tl.reshape(interleave(interleave(entries))[0], [columns[0].shape[0] // 4, 4])
        store(ptr + 4 * c + o, chunk, 4 * c + o, end, FULL)


@triton.jit
def halve(columns):
    """Split each vector into its even and odd entries: twice as many vectors, all of the even ones first."""
    evens, odds = (), ()
    for i in tl.static_range(len(columns)):
        even, odd = tl.split(tl.reshape(columns[i], [columns[i].shape[0] // 2, 2]))
        evens += (even,)
        odds += (odd,)
    return evens + odds


@triton.jit
def interleave(columns):
    """Undo `halve`."""
    whole = ()
    for i in tl.static_range(len(columns) // 2):
        whole += (tl.interleave(columns[i], columns[i + len(columns) // 2]),)
    return whole
