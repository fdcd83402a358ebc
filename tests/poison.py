"""Fresh memory full of NaN, for kernel tests: an element that no kernel writes shows.

`poisoned` is a fixture that tests/losses/conftest.py and tests/kernels/conftest.py apply to every test. Compilers and
fake tensors allocate without data: they get their memory as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

ALLOCATORS: tuple[tuple[Any, str], ...] = (
    *((torch, name) for name in ("empty", "empty_like", "empty_strided")),
    *((torch.Tensor, name) for name in ("new_empty", "new_empty_strided")),
)
GARBAGE = 99  # of integers, which know no NaN


def _poison(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        out = allocate(*args, **kwargs)
        if type(out) is not Tensor or torch.compiler.is_compiling() or out.is_meta or not out.numel():
            return out
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            return out
        out.detach().fill_(float("nan") if out.is_floating_point() else GARBAGE)
        return out

    return poisoned


@pytest.fixture(autouse=True)
def poisoned(request: pytest.FixtureRequest) -> Iterator[None]:
    """Applied to a test unless it is marked `unpoisoned`, as those are that trace or compile."""
    if request.node.get_closest_marker("unpoisoned"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for where, name in ALLOCATORS:
            patch.setattr(where, name, _poison(getattr(where, name)))
        yield
