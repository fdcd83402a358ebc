"""Packed rows: the attention that lets a model take them, and a trial of whether it keeps them apart.

The trial also tells whether the last layer can go on with the last tokens alone, see `last_layer`.

Only a trial tells. A model may lose the ends of the rows on the way to its attention, bring a mask of its own, or mix
tokens outside of attention; its rows then see each other, and neither flags nor errors say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from irm_fast.models.attention import PACKED, set_attention, switch
from irm_fast.models.batches import Collator, stack_rows
from irm_fast.models.last_layer import pooled_last_layer
from irm_fast.models.passes import moved
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.threads import threads_for

_REFUSALS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)  # of a model that is made otherwise


class Trial(NamedTuple):
    """How a model takes packed rows.

    Attributes:
        obstacle: The reason why it takes none, or None if it does.
        pools_early: Whether its last layer gives the same states where it goes on with the last tokens alone.
    """

    obstacle: str | None
    pools_early: bool = False


TRIED: WeakKeyDictionary[ImplicitRewardModel, Trial] = WeakKeyDictionary()


@contextmanager
def packed_attention(
    model: ImplicitRewardModel,
    wanted: str = "auto",
    device: Any = None,
    dtype: torch.dtype = torch.float32,
    *,
    every_token: bool = False,
) -> Iterator[str]:
    """A context in which a model runs with the attention that is wanted; gives the name of that attention.

    Within it `model.packed` tells whether the model takes packed rows, and then no padded ones. Of these the backbone
    gives the states of the last tokens alone if `model.pools_early`, which is so where the model allows it. Outside the
    context the model takes padded rows, as it was loaded. On a CPU the model has within it as many threads as suit it,
    see `threads_for`.

    Args:
        model: The model.
        wanted: One of `models.ATTENTIONS`; see `set_attention`.
        device: The device that the model will compute on. Default: the one that it is on.
        dtype: The precision that it will compute in.
        every_token: Whether the backbone has to give the states of all tokens.

    Raises:
        ValueError: The attention that is wanted is not available.

    Examples:
        >>> with packed_attention(model) as name:  # doctest: +SKIP
        ...     collate = Collator(model.tokenizer.pad_token_id, packed=model.packed)
    """
    before, device = model.classifier.config._attn_implementation, device or model.device
    name = set_attention(model.classifier, wanted, device, dtype, lambda: tried(model).obstacle)
    model.packed = name in PACKED
    early = model.packed and not every_token and model in TRIED and TRIED[model].pools_early
    try:
        with (
            threads_for(model.backbone) if device.type == "cpu" else nullcontext(),
            pooled_last_layer(model) if early else nullcontext(),
        ):
            yield name
    finally:
        model.packed = False
        switch(model.classifier, before)


def tried(model: ImplicitRewardModel) -> Trial:
    """How a model takes packed rows; tried once for each model."""
    if model not in TRIED:
        TRIED[model] = try_packing(model)
    return TRIED[model]


def two_rows(model: ImplicitRewardModel, *, packed: bool, changed: bool = False) -> dict[str, Any]:
    """A batch of two rows, as `ImplicitRewardModel.pool` takes it: short, so that sliding windows would reach across.

    Args:
        model: The model that will take it.
        packed: Whether the rows are packed.
        changed: Whether the first row has other tokens, but for its last: its state then changes by attention alone.
    """
    tokens = (torch.arange(12) * 7 % model.classifier.get_input_embeddings().num_embeddings).tolist()
    first, second = tokens[:9], tokens[9:]
    rows = [{"input_ids": [*first[-2::-1], first[-1]] if changed else first}, {"input_ids": second}]
    batch = Collator(model.tokenizer.pad_token_id, packed=packed)(stack_rows(rows))
    del batch["counts"]
    return moved(batch, model.device)


@torch.no_grad()
def try_packing(model: ImplicitRewardModel) -> Trial:
    """Try packed rows where the model is now.

    The states of packed rows have to be those of padded ones, and those of the last tokens alone the same again.
    """
    before, training = model.classifier.config._attn_implementation, model.training
    device, kind = model.device.type, type(model.classifier).__name__
    rounded = device == "cuda" or model.classifier.dtype in (torch.bfloat16, torch.float16)
    bound = 0.05 if rounded else 1e-4
    model.eval()
    try:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"), _narrow_windows(model.classifier):
            padded = model.pool(**two_rows(model, packed=False))
            switch(model.classifier, "varlen")
            packed = model.pool(**two_rows(model, packed=True))
            off = _off(packed, padded)
            if off <= bound:
                return Trial(None, _try_pooling_early(model, padded, bound))
            return Trial(f"{kind} gives packed rows other states than padded ones (off by {off:.0%})")
    except _REFUSALS as error:
        return Trial(f"{kind} takes no packed rows: {str(error).strip().splitlines()[0]}")
    finally:
        switch(model.classifier, before)
        model.train(training)


def _try_pooling_early(model: ImplicitRewardModel, states: Tensor, bound: float) -> bool:
    """Whether the last layer, going on with the last tokens alone, gives the states (2, H) of `two_rows`."""
    try:
        with pooled_last_layer(model):
            return _off(model.pool(**two_rows(model, packed=True)), states) <= bound
    except _REFUSALS:
        return False


def _off(got: Tensor, want: Tensor) -> float:
    """The norm of the difference of two tensors, as a share of that of the second."""
    return float((got - want).norm() / want.norm())


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
def check_isolation(model: ImplicitRewardModel, call: Callable[..., Any]) -> None:
    """Check that, as training will compute, the second of two packed rows does not depend on the first.

    Args:
        model: The model, within `packed_attention`.
        call: The model as the training loop calls it, perhaps wrapped.

    Raises:
        RuntimeError: The second row depends on the first.
    """

    def states(changed: bool) -> Tensor:
        result: Tensor = call("states", **two_rows(model, packed=True, changed=changed))
        return result

    own, neighbour = (states(True) - states(False)).norm(dim=1).tolist()
    if neighbour > 0.2 * own:  # 0 but for rounding, where kernels depend on what else there is
        raise RuntimeError(
            "rows of a pack can see each other: something in this model mixes them; use --attn sdpa, which pads"
        )
