"""The attention that a backbone runs with: the fastest that its device, precision and kind allow.

In a pack, sequences stand one after the other in one row of tokens, without padding; `cu_seq_lens_q` (N + 1,) int32
tells where they begin and end, as flash attention takes it. Each attends to itself alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from irm_fast.models import ATTENTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLASH = ("flash_attention_4", "flash_attention_3", "flash_attention_2")  # packages, the newest first
PACKED = (*FLASH, "varlen")
# Compute capabilities, the first number, of the devices that they are made for.
_MAJORS = {"flash_attention_4": (9, 10), "flash_attention_3": (9,), "flash_attention_2": range(8, 13)}
_REGISTERED = "irm_varlen"  # among the attention functions of transformers

log = logging.getLogger(__name__)


def set_attention(
    model: PreTrainedModel,
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
    unpackable: Callable[[], str | None],
) -> str:
    """Make a model run with the attention that is wanted, and return the name of that attention.

    Args:
        model: The backbone with its classifier.
        wanted: One of `models.ATTENTIONS`. "auto" takes the first that is available of flash attention 4 and 3
            (packages), "varlen" (flash kernels inside torch on a GPU, grouped calls on a CPU), flash attention 2, whose
            kernels are those of "varlen" and which waits for the device in every pass, "sdpa" and "eager". Those in
            `PACKED` take packed sequences, the others padded batches.
        device: The device that the model will compute on.
        dtype: The precision that it will compute in.
        unpackable: A function that gives the reason why this very model takes no packs, or None if it does. Called
            only where everything else allows packs.

    Raises:
        ValueError: The attention that is wanted is not available, and why.
    """
    if wanted not in ATTENTIONS:
        raise ValueError(f"attn: got {wanted!r}; expected one of {', '.join(ATTENTIONS)}")
    reasons: dict[str, str] = {}
    for name in ATTENTIONS[1:] if wanted == "auto" else (wanted,):
        reason = obstacle(name, model, device, dtype)
        # Only flash-attn can do softcap: there is nothing to try it with before the device is there.
        if reason is None and name in PACKED and not _softcap(model.config.get_text_config()):
            reason = unpackable()
        if reason is None:
            switch(model, name)
            _tell(f"attention: {name}{''.join(f'; not {other}: {why}' for other, why in reasons.items())}")
            return name
        reasons[name] = reason
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise ValueError(f"attn: not available: {why}; expected auto, or another")


def switch(model: PreTrainedModel, name: str) -> None:
    """Make a model run with an attention.

    Args:
        model: The model.
        name: The name of the attention in `models.ATTENTIONS` or in transformers.

    Raises:
        ValueError: The model took another one.
    """
    from irm_fast.models.foreign_files import quiet_transformers

    own = _register() if name == "varlen" else name
    with quiet_transformers():
        model.set_attn_implementation(own)
    if model.config._attn_implementation != own:  # transformers may take another one from its hub instead
        raise ValueError(f"attn: got {name!r}, and {type(model).__name__} took {model.config._attn_implementation!r}")


@cache
def _tell(text: str) -> None:
    """Log a text once: scoring chooses the attention anew for every call."""
    log.debug(text)


def obstacle(name: str, model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why a model cannot run with an attention, or None if it can; arguments as of `set_attention`."""
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
        compatible = getattr(model, "_compatible_flash_implementations", None)
        if compatible and name not in compatible:
            return f"{kind} has its own kernels, {', '.join(compatible)}"
        if not _installed(name):
            return "its package is not installed"
        if name == "flash_attention_4" and head_width(config) not in (64, 96, 128):
            return f"heads of {head_width(config)} have no kernels"
        return _no_flash(config, device, dtype, _MAJORS[name], takes_dropout=name == "flash_attention_2")
    if not (model._supports_attention_backend and model._supports_sdpa) or _softcap(config):
        return f"{kind} computes more than plain attention"
    if device.type == "cpu":
        return None
    from irm_fast.models.varlen import TAKEN

    if "window_size" not in TAKEN:
        return "it needs torch.nn.attention.varlen, of torch 2.11 or later"
    return _no_flash(config, device, dtype, range(8, 13), takes_dropout=False)


def _no_flash(
    config: Any, device: torch.device, dtype: torch.dtype, majors: Container[int], *, takes_dropout: bool
) -> str | None:
    """The reason why a model cannot run with flash kernels, or None if it can.

    Args:
        config: The text config of the model.
        device: The device that it will compute on.
        dtype: The precision that it will compute in.
        majors: The CUDA devices that have the kernels, by the first number of their compute capability.
        takes_dropout: Whether the kernels can drop out.
    """
    if device.type != "cuda":
        return f"it needs a CUDA device, and this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it computes in bfloat16 only: set precision to bfloat16"
    if torch.version.cuda and torch.cuda.get_device_capability(device)[0] not in majors:
        return f"{torch.cuda.get_device_name(device)} has no kernels"
    if not takes_dropout and getattr(config, "attention_dropout", None):
        return "it knows no dropout, and attention_dropout is set"
    width = head_width(config)
    return None if width <= 256 and width % 8 == 0 else f"heads of {width} have no kernels"


def head_width(config: Any) -> int:
    """The width of one attention head, from a text config of transformers."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _not_packable(config: Any) -> str | None:
    """The part of a model that would carry something from one sequence of a pack to the next; None if there is none."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return f"has layers of the kind {', '.join(sorted(kinds))}" if kinds else None


def _softcap(config: Any) -> bool:
    """Tell whether attention scores are squashed, as in Gemma 2: flash-attn and eager attention alone can do it."""
    return getattr(config, "attn_logit_softcapping", None) is not None


def _installed(name: str) -> bool:
    from transformers.utils import import_utils

    check = getattr(import_utils, f"is_flash_attn_{name[-1]}_available", None)
    return check is not None and bool(check())


@cache
def _register() -> str:
    """Make `varlen_attention` known to transformers, and return its name there.

    No mask function goes with it: transformers then makes no mask at all, and does not look at the position ids for
    packs either, for which it would wait for the device in every forward pass.
    """
    from transformers import AttentionInterface

    from irm_fast.models.varlen import varlen_attention

    AttentionInterface.register(_REGISTERED, varlen_attention)
    return _REGISTERED
