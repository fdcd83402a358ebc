"""Liger's kernels for the norms, rotary embeddings and gated layers of a backbone, where they can be had."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from irm_fast.common.extras import missing


def liger_obstacle(classifier: Any, device: torch.device) -> str | None:
    """The reason why a model cannot compute with Liger's kernels on a device, or None if it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and this is {device.type}"
    if obstacle := missing("liger_kernel"):
        return f"it {obstacle}"
    if _patch_of(classifier) is None:
        return f"it has no kernels for models of the type {classifier.config.model_type}"
    return None


@contextmanager
def liger_kernels(classifier: Any) -> Iterator[None]:
    """A context in which a model computes with Liger's kernels.

    Liger also puts its functions into transformers' module of the model, where all models of the family find them:
    these are put back at the end, too.

    Args:
        classifier: A model for which `liger_obstacle` found none.
    """
    patch: Any = _patch_of(classifier)
    places: list[Any] = [sys.modules[kind.__module__] for kind in _kinds(classifier)]
    places += list(classifier.modules())
    before = [dict(vars(place)) for place in places]
    wanted = {name: False for name in ("cross_entropy", "fused_linear_cross_entropy")}  # losses of other models
    patch(model=classifier, **{name: wanted[name] for name in inspect.signature(patch).parameters.keys() & wanted})
    changed = [
        (place, name, old)
        for place, old in zip(places, before, strict=True)
        for name, value in vars(place).items()
        if name not in old or old[name] is not value
    ]
    try:
        yield
    finally:
        for place, name, old in changed:
            if name in old:
                vars(place)[name] = old[name]
            else:
                vars(place).pop(name, None)


def _patch_of(classifier: Any) -> Any:
    """Liger's function that patches models of this kind, or None."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return MODEL_TYPE_TO_APPLY_LIGER_FN.get(classifier.config.get_text_config().model_type)


def _kinds(classifier: nn.Module) -> set[type]:
    """The classes of transformers that a model is made of, one for each module that defines them."""
    kinds = {type(module).__module__: type(module) for module in classifier.modules()}
    return {kind for name, kind in kinds.items() if name.startswith("transformers.")}
