"""Which attention a backbone runs with, and one for packed sequences that needs no package beside torch.

In a pack, sequences stand one after the other in one row of tokens, without padding; where they begin and end is told
by `cu_seq_lens_q` (N + 1,) int32, as flash attention takes it. Each attends to itself alone.
"""

from __future__ import annotations

import inspect
import logging
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLASH = ("flash_attention_4", "flash_attention_3", "flash_attention_2")  # packages, the newest first
PACKED = (*FLASH, "varlen")
ATTENTIONS = ("auto", *PACKED, "sdpa", "eager")
_MAJORS = {
    "flash_attention_4": (9, 10),
    "flash_attention_3": (9,),
    "flash_attention_2": range(8, 13),
}  # of CUDA devices
_REGISTERED = "irm_varlen"  # among the attention functions of transformers
_TAKEN = frozenset() if varlen_attn is None else frozenset(inspect.signature(varlen_attn).parameters)

log = logging.getLogger(__name__)


def set_attention(model: PreTrainedModel, wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    """Make `model` run with the attention that is wanted, and return its name.

    wanted: one of `ATTENTIONS`. "auto" takes the first that can be had of flash attention 4, 3 and 2 (packages),
    "varlen" (flash kernels inside torch on a GPU, one call a sequence on a CPU), "sdpa" and "eager". Those in `PACKED`
    take packed sequences, the others padded batches. device, dtype: where, and in what precision, it will compute.

    Raises:
        ValueError: what is wanted cannot be had, and why.
    """
    from irm_fast.backbone import quiet_transformers

    if wanted not in ATTENTIONS:
        raise ValueError(f"attn: got {wanted!r}; expected one of {', '.join(ATTENTIONS)}")
    reasons: dict[str, str] = {}
    for name in ATTENTIONS[1:] if wanted == "auto" else (wanted,):
        reason = obstacle(name, model, device, dtype)
        if reason is None:
            with quiet_transformers():
                model.set_attn_implementation(_register() if name == "varlen" else name)
            _say(f"attention: {name}{''.join(f'; not {other}: {why}' for other, why in reasons.items())}")
            return name
        reasons[name] = reason
    can = [name for name in ATTENTIONS[1:] if obstacle(name, model, device, dtype) is None]
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise ValueError(f"attn: cannot be had: {why}; expected auto, or one of {', '.join(can)}")


@cache
def _say(text: str) -> None:
    """Log once: scoring chooses anew for every call."""
    log.info(text)


def obstacle(name: str, model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `model` cannot run with an attention, or None if it can; arguments as of `set_attention`."""
    kind, config = type(model).__name__, model.config.get_text_config()
    if name == "eager":
        return None
    if name == "sdpa":
        return None if model._supports_sdpa and not _softcap(config) else f"{kind} has none that is exact"
    if (reason := _not_packable(config)) is not None:
        return f"{kind} {reason}, which packs do not keep apart"
    if name in FLASH:
        if not model._supports_flash_attn:
            return f"{kind} does not support it"
        if not _installed(name):
            return "its package is not installed"
        return _no_flash(config, device, dtype, _MAJORS[name], dropout=name == "flash_attention_2")
    if not (model._supports_attention_backend and model._supports_sdpa) or _softcap(config):
        return f"{kind} computes more than plain attention"
    if device.type == "cpu":
        return None
    if "window_size" not in _TAKEN:
        return "it needs torch.nn.attention.varlen, of torch 2.11 or later"
    return _no_flash(config, device, dtype, range(8, 13), dropout=False)


def _no_flash(config: Any, device: torch.device, dtype: torch.dtype, majors: Any, dropout: bool) -> str | None:
    """What speaks against flash kernels that run on CUDA devices of these major versions."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it computes in bfloat16 only: set precision to bfloat16"
    if torch.version.cuda and torch.cuda.get_device_capability(device)[0] not in majors:
        return f"{torch.cuda.get_device_name(device)} has no kernels"
    if not dropout and getattr(config, "attention_dropout", None):
        return "it knows no dropout, and attention_dropout is set"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return None if width <= 256 and width % 8 == 0 else f"heads of {width} have no kernels"


def _not_packable(config: Any) -> str | None:
    """What in a model would carry something from one sequence of a pack to the next, whatever the attention."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return f"has layers of the kind {', '.join(sorted(kinds))}" if kinds else None


def _softcap(config: Any) -> bool:
    """Whether attention scores are squashed, as in Gemma 2: flash-attn and eager attention alone can do it."""
    return getattr(config, "attn_logit_softcapping", None) is not None


def _installed(name: str) -> bool:
    from transformers.utils import import_utils

    check = getattr(import_utils, f"is_flash_attn_{name[-1]}_available", None)
    return check is not None and bool(check())


@cache
def _register() -> str:
    """Make `varlen_attention` known to transformers; returns its name there.

    No mask function goes with it: transformers then makes no mask at all, and does not look at the position ids for
    packs either, for which it would wait for the device in every forward pass.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_REGISTERED, varlen_attention)
    return _REGISTERED


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
    if others.get("softcap") is not None or others.get("s_aux") is not None:
        raise ValueError("varlen attention knows neither softcap nor attention sinks; choose eager")
    if query.is_cuda:
        assert max_length_q is not None
        query, key, value = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
        return _by_torch(query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q)[None], None
    dropout = dropout if module.training else 0.0
    return _one_by_one(query, key, value, scaling, sliding_window, cu_seq_lens_q, dropout).transpose(1, 2), None


def _by_torch(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, ends: Tensor, longest: int
) -> Tensor:
    """(T, heads, width) by the flash kernels inside torch."""
    groups: Any = {}
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in _TAKEN:
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
