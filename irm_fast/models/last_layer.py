"""The last layer of a backbone on packed rows: behind its attention, only the last token of each row is computed.

The states of these tokens are all that is read, and what follows attention in a layer takes tokens one by one. So the
layer is given the states of the last tokens, and its attention alone those of all. This is done by hooks that hold
nothing of a pass: what one of them has to know comes with the arguments, also where a layer is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

from torch import Tensor, nn

from irm_fast.models.reward_model import ImplicitRewardModel

_NAME = "irm_fast_every_token"  # among the keywords that a layer hands on to its attention


class _EveryToken(NamedTuple):
    """What goes into the layer.

    Attributes:
        states: The states (1, T, H) of all tokens.
        ends: The places of the N last tokens of a row, (N,) int32.
    """

    states: Tensor
    ends: Tensor


@contextmanager
def pooled_last_layer(model: ImplicitRewardModel) -> Iterator[None]:
    """A context in which the backbone gives, of packed rows, the states (1, N, H) of the N last tokens alone.

    Args:
        model: A model that takes packed rows, and for which this was tried: see `packed.try_packing`.

    Raises:
        IndexError: The model does not say what its layers are.
        AttributeError: The last layer has no attention by the name that most families give it.
    """
    layer: Any = model.layers()[-1]
    attention = layer.self_attn
    handles = [
        layer.register_forward_pre_hook(_give_last_tokens, with_kwargs=True),
        # A method and no closure: deep copies take the norm of their own layer.
        attention.register_forward_pre_hook(MethodType(_give_every_token, layer), with_kwargs=True),
        attention.register_forward_hook(_keep_last_tokens, with_kwargs=True),
    ]
    model.pools_early = True
    try:
        yield
    finally:
        model.pools_early = False
        for handle in handles:
            handle.remove()


def parameters_behind_attention(model: ImplicitRewardModel) -> list[nn.Parameter]:
    """The parameters of the last layer that take no part in its attention."""
    layer: Any = model.layers()[-1]
    of_attention = {id(parameter) for parameter in layer.self_attn.parameters()}
    return [parameter for parameter in layer.parameters() if id(parameter) not in of_attention]


def _give_last_tokens(layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Put the states of the last tokens in the place of all, before the layer."""
    states, *others = args
    ends = kwargs["cu_seq_lens_q"][1:] - 1
    return (states.index_select(1, ends), *others), {**kwargs, _NAME: _EveryToken(states, ends)}


def _give_every_token(layer: Any, attention: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Put the states of all tokens, normalised as the layer does it, in the place of the last, before the attention."""
    states = kwargs[_NAME].states
    norm = getattr(layer, "input_layernorm", None)
    return args, {**kwargs, "hidden_states": states if norm is None else norm(states)}


def _keep_last_tokens(attention: nn.Module, args: Any, kwargs: Any, output: Any) -> tuple[Any, ...]:
    """Take the last tokens out of what the attention gives."""
    states, *others = output
    return (states.index_select(1, kwargs[_NAME].ends), *others)
