"""How the forward kernel of the linear loss is launched: which of its three forms, and how large a tile."""

from typing import NamedTuple

import torch
import triton
from irm_fast.kernels.triton.launch import INTERPRETED, has_tensor_cores
from torch import Tensor

ONE_READ_LIMIT = 16384  # entries of the heads, padded to powers of two, that registers hold beside their gradient


class Tile(NamedTuple):
    """How linear_implicit_rm_fwd_kernel is launched."""

    ONE_READ: bool
    BLOCK_N: int
    BLOCK_H: int
    BLOCK_M: int
    BLOCK_K: int
    STAGES: int
    PARTS: int
    num_warps: int
    programs: int  # on a processor


def forward_tile(hidden: Tensor, n_heads: int, n_signals: int, has_options: bool, shared: int) -> Tile:
    """The first of the three forms that fits a processor: tensor cores, one read, two reads."""
    arguments = hidden, n_heads, n_signals, has_options, shared
    return tensor_core_tile(*arguments) or one_read_tile(*arguments) or two_reads_tile(*arguments)


def is_aligned(hidden: Tensor) -> bool:
    return hidden.stride(0) % 16 == 0 and hidden.data_ptr() % 16 == 0


def tensor_core_tile(hidden: Tensor, n_heads: int, n_signals: int, has_options: bool, shared: int) -> Tile | None:
    """Heads in three bfloat16 parts in shared memory beside two tiles, one computed and one on its way."""
    parts = triton.next_power_of_2(3 * n_heads)
    if parts > 16 or hidden.dtype != torch.bfloat16 or not is_aligned(hidden) or not has_tensor_cores():
        return None
    block_h = max(triton.next_power_of_2(hidden.shape[1]), 256)
    num_warps = max(1, min(8, block_h // 256))
    programs = 8 // num_warps
    room = (shared // programs - 4096) // (2 * block_h) - parts  # rows of hidden states
    block_n = min(4096 * num_warps // block_h, 1 << max(0, room // 2).bit_length() >> 1)
    if block_n < 4:
        return None
    block_m, block_k = triton.next_power_of_2(n_heads), triton.next_power_of_2(n_signals + 1)
    block_n *= 8 if INTERPRETED else 1  # the interpreter pays per program
    return Tile(True, block_n, block_h, block_m, block_k, 3, parts, num_warps, programs)


def one_read_tile(hidden: Tensor, n_heads: int, n_signals: int, has_options: bool, shared: int) -> Tile | None:
    """A tile that fills a processor: 8 warps with up to 255 registers a thread, in one program or several.

    A thread holds a piece of the heads, its gradient and `states` hidden states, as many as registers last for: with
    more of them, or wider heads, they spill (tests/gpu_static). Options of the loss take some of
    their own, and so do narrow loads where rows are not aligned to 16 elements. A thread reads 8 neighbours at once,
    so that narrow hidden states take fewer threads. While a tile is computed the next ones are on their way into
    shared memory, whose size bounds the number of stages.
    """
    itemsize = hidden.element_size()
    block_m, block_k = triton.next_power_of_2(n_heads), triton.next_power_of_2(n_signals + 1)
    block_h = triton.next_power_of_2(hidden.shape[1])
    head_entries = block_m * max(block_h, 2048)
    if head_entries > ONE_READ_LIMIT:
        return None
    num_warps = max(1, min(8, block_h // 256))
    crowded = has_options and (block_m > 2 or 2 * head_entries > ONE_READ_LIMIT)
    states = min(128, 512 // block_m) * 2 // max(2, itemsize) // (2 if crowded else 1)
    states //= 1 if is_aligned(hidden) else 2
    block_n = min(states * 32 * num_warps // block_h, 128 * num_warps // block_k)
    block_n = max(1, block_n) * (8 if INTERPRETED else 1)
    programs = 8 // num_warps
    stages = n_stages(shared // programs, block_n * block_h * itemsize)
    return Tile(True, block_n, block_h, block_m, block_k, stages, 0, num_warps, programs)


def two_reads_tile(hidden: Tensor, n_heads: int, n_signals: int, has_options: bool, shared: int) -> Tile:
    """A piece of the heads for 8 rows; a thread holds 64 sums of products. From 16 heads on, for fewer rows."""
    block_m, block_k = triton.next_power_of_2(n_heads), triton.next_power_of_2(n_signals + 1)
    block_h = min(triton.next_power_of_2(hidden.shape[1]), max(256, 2048 // block_m))
    block_n = max(1, min(16384 // (block_m * block_h), 1024 // block_k)) * (8 if INTERPRETED else 1)
    stages = n_stages(shared, block_n * block_h * hidden.element_size() + block_m * block_h * 4)
    return Tile(False, block_n, block_h, block_m, block_k, stages, 0, 8, 1)


def n_stages(shared: int, staged: int) -> int:
    return 1 + max(0, min(2, (shared - 8192) // staged))  # the rest is for exchange between threads
