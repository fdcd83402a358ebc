"""Attention within each sequence of a pack, registered with transformers, that needs no package beside torch."""

from __future__ import annotations

import inspect
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

    query: (1, heads, T, width) of T tokens of all sequences; key and value may have fewer heads. sliding_window: how
    many tokens, itself included, a token sees. Returns (1, T, heads, width), and None for the weights.

    Raises:
        ValueError: tokens that are not packed, or something beyond plain attention is asked for.
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
    result = _one_by_one(query, key, value, scaling, sliding_window, cu_seq_lens_q, dropout)
    return result.transpose(1, 2).contiguous(), None  # some families view it


def _by_torch(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, ends: Tensor, longest: int
) -> Tensor:
    """(T, heads, width) by the flash kernels inside torch."""
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


@torch.compiler.disable  # a loop over the data
def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, ends: Tensor, dropout: float
) -> Tensor:
    """(1, heads, T, width), one call a sequence: on a CPU a mask over the whole pack would cost far more."""
    result = []
    for start, end in pairwise(ends.tolist()):
        mask = None
        if window is not None and end - start > window:
            place = torch.arange(end - start, device=query.device)
            distance = place[:, None] - place
            mask = (distance >= 0) & (distance < window)
        q, k, v = (x[:, :, start:end] for x in (query, key, value))
        settings: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": q.shape[1] != k.shape[1]}
        result.append(scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, **settings))
    return torch.cat(result, dim=2)
