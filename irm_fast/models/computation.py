"""How a backbone computes while it is trained: in what precision, compiled or not, activations kept or computed again.

The parameters of the model stay what the optimiser updates and checkpoints hold, in float32: the masters. A unit of the
backbone, which is a layer or all that is in no layer, computes with copies of its parameters in bfloat16, made when its
forward pass begins; their gradients flow back into the masters. So nothing but the computation knows of the precision.
FSDP2 brings the same mechanism with it, for sharded weights: there the copies are what it gathers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from irm_fast.models import Recompute
from irm_fast.models.reward_model import ImplicitRewardModel

_NAME = "_irm_fast_unit"
_PRODUCTS = ("mm", "addmm", "bmm")


class _Unit(NamedTuple):
    """How a unit computes.

    Attributes:
        forward: Its own forward pass, which takes the module first.
        owners: The modules whose own parameters are cast for the forward pass.
        dtype: What they are cast to, or None.
        recompute: What is computed again in the backward pass, the casts of its parameters among it.
    """

    forward: Callable[..., Any]
    owners: tuple[nn.Module, ...]
    dtype: torch.dtype | None
    recompute: Recompute = "none"


@contextmanager
def computing(
    model: ImplicitRewardModel,
    dtype: torch.dtype | None = None,
    *,
    recompute: Recompute = "none",
    compiled: bool = False,
) -> Iterator[None]:
    """A context in which the backbone of a model computes in another way; its parameters stay what they are.

    The heads compute in float32 as ever.

    Args:
        model: The model.
        dtype: What the float32 parameters of the backbone are cast to where they are used. None, and float32: they are
            used as they are, which is right under FSDP too: see `distributed.shard`.
        recompute: The activations that are computed again in the backward pass: "none"; "full", all but those at the
            start of each layer; "selective", all but those that products and attention give.
        compiled: Whether each layer runs through torch.compile, which compiles one for all that are alike.

    Raises:
        ValueError: Activations are to be computed again, and the model does not say what its layers are.
    """
    dtype = None if dtype == torch.float32 else dtype
    layers, embeddings = model.layers(), model.get_input_embeddings()
    if (recompute != "none" or compiled) and not layers:
        raise ValueError(
            f"gradient_checkpointing, compile: {type(model.classifier).__name__} names no layers (_no_split_modules); "
            "expected a model that does; set gradient_checkpointing to none and compile to false"
        )
    within = {id(module) for part in (*layers, embeddings) for module in part.modules()}
    rest = tuple(module for module in model.backbone.modules() if id(module) not in within)
    if compiled and recompute == "selective":
        recompute = "none"  # what is compiled computes again what is cheap, of itself
    units = {}
    for layer in layers:
        own = torch.compile(type(layer).forward) if compiled else type(layer).forward
        units[layer] = _Unit(own, tuple(layer.modules()), dtype, recompute)
    units[embeddings] = _Unit(_looked_up, (), dtype)
    units[model.backbone] = _Unit(type(model.backbone).forward, rest, dtype)
    for module, unit in units.items():
        setattr(module, _NAME, unit)
        module.forward = MethodType(_forward, module)  # a method and no closure: deep copies call themselves
    try:
        yield
    finally:
        for module in units:
            delattr(module, _NAME)
            del module.forward


def _computed_again(recompute: Recompute, own: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A forward pass of whose activations those that are wanted are computed again in the backward pass."""
    if recompute == "none" or not (module.training and torch.is_grad_enabled()):
        return own(module, *args, **kwargs)
    if recompute == "full":
        return checkpoint(own, module, *args, use_reentrant=False, **kwargs)
    return checkpoint(own, module, *args, use_reentrant=False, context_fn=_keep_the_dear, **kwargs)


def _keep_the_dear() -> Any:
    return create_selective_checkpoint_contexts(_is_dear)


def _is_dear(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """The policy of selective checkpointing for an operator."""
    name = operator.name().split("::")[-1].split(".")[0].strip("_")
    dear = name in _PRODUCTS or any(part in name for part in ("attn", "attention"))
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward pass of a module that is a unit, in the place of its own."""
    unit: _Unit = getattr(module, _NAME)
    return _computed_again(unit.recompute, _cast_forward, module, *args, **kwargs)


def _cast_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward pass of a unit in its precision."""
    unit: _Unit = getattr(module, _NAME)
    with _parameters_cast(unit):
        return unit.forward(module, *args, **kwargs)


def _looked_up(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward pass of embeddings, cast afterwards: the whole table would be more to cast."""
    unit: _Unit = getattr(module, _NAME)
    states = type(module).forward(module, *args, **kwargs)
    return states if unit.dtype is None else states.to(unit.dtype)


@contextmanager
def _parameters_cast(unit: _Unit) -> Iterator[None]:
    """A context in which copies in another precision stand in the place of a unit's float32 parameters."""
    masters = [
        (owner._parameters, name, parameter)
        for owner in (unit.owners if unit.dtype is not None else ())
        for name, parameter in owner._parameters.items()
        if parameter is not None and parameter.dtype == torch.float32
    ]
    try:
        for place, name, parameter in masters:
            place[name] = parameter.to(unit.dtype)  # type: ignore[assignment]
        yield
    finally:
        for place, name, parameter in masters:
            place[name] = parameter
