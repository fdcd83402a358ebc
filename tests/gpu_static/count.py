"""What an eager step launches on a GPU, counted without one: our kernels, and what PyTorch does around them.

python -m tests.gpu_static.count     print the launches of each step as JSON
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROWS, WIDTH, SIGNALS = 256, 64, 2
# Allocations, and what only names a tensor anew beside views.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "promote_types"}


class Launches(TorchDispatchMode):
    """Names of PyTorch operations that launch a kernel, in order; views and allocations launch none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def steps() -> dict[str, Any]:
    """Functions that return the loss of a step, by name; learned tensors are leaves."""
    import irm_fast
    from irm_fast.data.signals import RewardSpec
    from irm_fast.models.heads import Heads

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    feedback = torch.zeros(ROWS, SIGNALS, dtype=torch.int8)
    heads = Heads(torch.nn.Linear(WIDTH, 1, bias=False), RewardSpec("constant", ("a", "b"), (1, 1)))

    def loss(dtype: torch.dtype) -> Any:
        s, t = leaf(ROWS, dtype=dtype), leaf(ROWS, SIGNALS, dtype=dtype)
        return lambda: irm_fast.implicit_rm_loss(s, t, feedback, backend="triton")

    def linear(dtype: torch.dtype) -> Any:
        shapes = {"hidden": (ROWS, WIDTH), "reward_weight": (WIDTH,), "reward_bias": ()}
        shapes |= {"propensity_weight": (SIGNALS, WIDTH), "propensity_bias": (SIGNALS,)}
        learned = {name: leaf(*shape, dtype=dtype) for name, shape in shapes.items()}
        return lambda: irm_fast.linear_implicit_rm_loss(**learned, feedback=feedback, backend="triton")

    hidden = leaf(ROWS, WIDTH)
    return {
        "loss float32": loss(torch.float32),
        "loss bfloat16": loss(torch.bfloat16),
        "linear float32": linear(torch.float32),
        "linear bfloat16": linear(torch.bfloat16),
        "trainer's heads": lambda: heads.loss(
            hidden, feedback, propensity=None, features=None, stratification=None,
            normalizer=torch.tensor(100.0), reduction="mean", backend="triton",
        ),
    }  # fmt: skip


def main() -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    from tests.gpu_static.launches import Launch, launching

    found = {}
    for name, step in steps().items():
        counter = Launches()

        def run(launch: Launch, names: list[str] = counter.names) -> None:
            names.append(launch.kernel.name)

        with launching("sm_90", run):
            step()  # constants of the signals are made once
            counter.names.clear()
            with counter:
                step().backward()
        found[name] = counter.names
    print(json.dumps(found))


if __name__ == "__main__":
    main()
