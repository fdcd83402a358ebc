"""Packed rows: the attention that lets a model take them, and whether it keeps them apart, found by trying.

Neither flags nor errors tell: models hand the ends of the rows down to their attention, or lose them on the way; bring
masks of their own; mix tokens outside of attention. Where they lose them, rows see each other without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from irm_fast.models.attention import PACKED, set_attention, switch
from irm_fast.models.batches import Collator, stack_rows
from irm_fast.models.reward_model import ImplicitRewardModel

_TRIED: WeakKeyDictionary[ImplicitRewardModel, str | None] = WeakKeyDictionary()  # why a model takes no packed rows


@contextmanager
def packed_attention(
    model: ImplicitRewardModel, wanted: str = "auto", device: Any = None, dtype: torch.dtype = torch.float32
) -> Iterator[str]:
    """A context in which the backbone runs with an attention of `set_attention`, packed where it can be; its name.

    `model.packed` tells whether it takes packed rows, and no padded ones. Outside, it takes padded rows, as it was
    loaded.

    Args:
        model: The model.
        wanted: One of `models.ATTENTIONS`.
        device: The device that it will compute on; None: where it is.
        dtype: The precision that it will compute in.

    Raises:
        ValueError: The attention that is wanted is not available.
    """
    before = model.classifier.config._attn_implementation
    name = set_attention(model.classifier, wanted, device or model.device, dtype, lambda: unpackable(model))
    model.packed = name in PACKED
    try:
        yield name
    finally:
        model.packed = False
        switch(model.classifier, before)


def unpackable(model: ImplicitRewardModel) -> str | None:
    """Why rows cannot be packed for this model, or None if they can; tried once."""
    if model not in _TRIED:
        _TRIED[model] = why_not_packed(model)
    return _TRIED[model]


def two_rows(model: ImplicitRewardModel, *, packed: bool, changed: bool = False) -> dict[str, Any]:
    """A batch of two rows, as `ImplicitRewardModel.pool` takes it: short, so that sliding windows would reach across.

    changed: with other tokens in the first row, but for its last: its state then changes by attention alone.
    """
    tokens = (torch.arange(12) * 7 % model.classifier.get_input_embeddings().num_embeddings).tolist()
    first, second = tokens[:9], tokens[9:]
    rows = [{"input_ids": [*first[-2::-1], first[-1]] if changed else first}, {"input_ids": second}]
    batch = Collator(model.tokenizer.pad_token_id, packed=packed)(stack_rows(rows))
    del batch["counts"]
    return send_to_device(batch, model.device)


@torch.no_grad()
def why_not_packed(model: ImplicitRewardModel) -> str | None:
    """What speaks against packs for this model, where it is now, or None: packed rows must come out as padded ones."""
    before, training = model.classifier.config._attn_implementation, model.training
    device = model.device.type
    model.eval()
    try:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"), _narrow_windows(model.classifier):
            padded = model.pool(**two_rows(model, packed=False))
            switch(model.classifier, "varlen")
            packed = model.pool(**two_rows(model, packed=True))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        return f"{type(model.classifier).__name__} takes no packed rows: {str(error).strip().splitlines()[0]}"
    finally:
        switch(model.classifier, before)
        model.train(training)
    off = float((packed - padded).norm() / padded.norm())
    if off <= (0.05 if device == "cuda" else 1e-4):
        return None
    return f"{type(model.classifier).__name__} gives packed rows other states than padded ones (off by {off:.0%})"


@contextmanager
def _narrow_windows(classifier: Any) -> Iterator[None]:
    """Sliding windows of three tokens, so that short rows show who heeds them: some models do by their mask alone."""
    holders = [
        holder
        for holder in (classifier.config.get_text_config(), *classifier.modules())
        if isinstance(getattr(holder, "sliding_window", None), int)
    ]
    before = [holder.sliding_window for holder in holders]
    try:
        for holder in holders:
            holder.sliding_window = 3
        yield
    finally:
        for holder, window in zip(holders, before, strict=True):
            holder.sliding_window = window


@torch.no_grad()
def check_isolation(model: ImplicitRewardModel, call: Callable[..., Any], precision: Callable[[], Any]) -> None:
    """Raise RuntimeError if, as training will compute, the second of two packed rows depends on the first.

    call: `model` as the loop calls it.  precision: gives the context of a training pass.
    """

    def states(changed: bool) -> Tensor:
        with precision():
            return call(**two_rows(model, packed=True, changed=changed), pooled=True)

    own, neighbour = (states(True) - states(False)).norm(dim=1).tolist()
    if neighbour > 0.2 * own:  # 0 but for rounding, where kernels depend on what else there is
        raise RuntimeError(
            "rows of a pack can see each other: something in this model mixes them; use --attn sdpa, which pads"
        )
