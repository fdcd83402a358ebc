"""Attention within each sequence of a pack, registered with transformers, that needs no package beside torch."""

from __future__ import annotations

import inspect
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

# Looked up here and not in the functions below, which torch.compile traces.
TAKEN = frozenset() if varlen_attn is None else frozenset(inspect.signature(varlen_attn).parameters)

_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some models add to attention, s_aux being sinks


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a pack, by the interface of transformers' attention functions.

    Args:
        module: The attention layer that calls.
        query: (1, heads, T, width) for the T tokens of all N sequences.
        key: Like `query`, perhaps of fewer heads.
        value: Like `key`.
        attention_mask: None: a pack needs no mask.
        scaling: The factor of the scores.
        dropout: The probability of dropout in training.
        sliding_window: The number of tokens, itself included, that a token sees.
        cu_seq_lens_q: The ends of the sequences, (N + 1,) int32, beginning with 0.
        max_length_q: The length of the longest sequence.
        is_causal: Anything but False.
        others: Other keywords of transformers; those that go beyond plain attention are refused.

    Returns:
        (1, T, heads, width), and None for the weights.

    Raises:
        ValueError: The tokens are not packed, or something beyond plain attention is asked for.
    """
    if cu_seq_lens_q is None or attention_mask is not None:
        raise ValueError("varlen attention takes packed sequences: cu_seq_lens_q, and no attention mask")
    asked = [name for name in _UNKNOWN if others.get(name) is not None]
    if asked or not getattr(module, "is_causal", True) or is_causal is False:
        raise ValueError(f"varlen attention is plain and causal, without {', '.join(asked) or 'both directions'}")
    dropout = dropout if module.training else 0.0
    if query.is_cuda:
        assert max_length_q is not None
        if dropout:
            raise ValueError("the flash kernels inside torch know no dropout; set it to 0, or choose sdpa")
        query, key, value = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
        return _by_torch(query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q)[None], None
    result = _by_length(query, key, value, scaling, sliding_window, cu_seq_lens_q, dropout)
    return result.transpose(1, 2).contiguous(), None  # some families view it


def _by_torch(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, ends: Tensor, longest: int
) -> Tensor:
    """Attention (T, heads, width) by the flash kernels inside torch."""
    groups: Any = {}
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in TAKEN:
            groups = {"enable_gqa": True}
        else:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    window_size = (-1 if window is None else window - 1, 0)
    result: Any = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=window_size, **groups
    )
    return result


@torch.compiler.disable  # loops over the data
def _by_length(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, ends: Tensor, dropout: float
) -> Tensor:
    """Attention (1, heads, T, width), by one call for all sequences of about one length.

    A mask over the pack would cost far more. Shorter sequences are padded by the tokens that follow them, whatever
    these are: being later, no token attends to them.
    """
    groups, places, restore = _groups(tuple(ends.tolist()))
    heads = [x.shape[1] for x in (query, key, value)]
    widths = [x.shape[1] * x.shape[3] for x in (query, key, value)]
    rows = torch.cat([x[0].transpose(0, 1).flatten(1) for x in (query, key, value)], dim=1)  # (T, all heads)
    settings: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": heads[0] != heads[1]}
    results = []
    for (count, length), part in zip(
        groups, rows.index_select(0, places).split([n * m for n, m in groups]), strict=True
    ):
        q, k, v = (
            x.view(count, length, n, -1).transpose(1, 2) for x, n in zip(part.split(widths, 1), heads, strict=True)
        )
        mask = None if window is None or length <= window else _window_mask(length, window)
        result = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, **settings)
        results.append(result.transpose(1, 2).flatten(0, 1))  # (count * length, heads, width)
    return torch.cat(results).index_select(0, restore).transpose(0, 1)[None]


def _window_mask(length: int, window: int) -> Tensor:
    """A causal mask (length, length) in which each token sees `window` tokens, itself included."""
    place = torch.arange(length)
    distance = place[:, None] - place
    return (distance >= 0) & (distance < window)


@lru_cache(maxsize=4)  # for all layers of a pass
def _groups(ends: tuple[int, ...]) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """Groups of sequences of about one length.

    Args:
        ends: The ends of the sequences in the pack, beginning with 0.

    Returns:
        The number of sequences of each group and their common length, padded; the places in the pack of the tokens of
        all groups, padding included; and, for each token of the pack, its place among these.
    """
    groups: list[list[tuple[int, int]]] = []
    for start, end in sorted(pairwise(ends), key=lambda span: span[1] - span[0]):
        shortest = groups[-1][0][1] - groups[-1][0][0] if groups else 0
        if groups and end - start <= 1.25 * shortest + 8:
            groups[-1].append((start, end))
        else:
            groups.append([(start, end)])
    sizes, indices, own = [], [], []
    for group in groups:
        starts, stops = torch.tensor(group).T
        index = starts[:, None] + torch.arange(int((stops - starts).max()))
        sizes.append((len(group), index.shape[1]))
        indices.append(index.clamp(max=ends[-1] - 1).flatten())
        own.append((index < stops[:, None]).flatten())
    places, is_own = torch.cat(indices), torch.cat(own).nonzero().squeeze(1)
    return sizes, places, is_own[places[is_own].argsort()]
