"""Counts the memory traffic of a packed training step of Qwen3 shapes, operation by operation, without a GPU.

    python -m benchmarks.step_traffic [0.6B]

Tensors are fake: they have shapes and types and no memory. Every operation counts what it reads and writes once, also
each of Liger's kernels, of which the pointers that it loads from and stores to are read off its source. Products and
attention are left out: what remains is elementwise traffic, which a fused step has little of. One and two layers are
traced; a layer is their difference.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForSequenceClassification

from benchmarks.bench_training import SHAPES, config_of
from irm_fast.data.signals import RewardSpec
from irm_fast.models.attention import switch
from irm_fast.models.computation import computing
from irm_fast.models.liger import liger_kernels
from irm_fast.models.reward_model import ImplicitRewardModel

TOKENS = 16_384
_VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze"}
_VIEWS |= {"as_strided", "split", "alias", "detach", "reshape", "unbind", "split_with_sizes", "lift_fresh"}
_VIEWS |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_PRODUCTS = {"mm", "addmm", "bmm"}


class Traffic(NamedTuple):
    """The elementwise traffic of a step.

    Attributes:
        gigabytes: What is read and written, by operation, in 10^9 bytes.
        wide: The number of float32 tensors of at least tokens times width numbers that a layer makes.
    """

    gigabytes: Counter[str]
    wide: int

    @property
    def total(self) -> float:
        return sum(self.gigabytes.values())


class _Count(TorchDispatchMode):
    """Counts bytes by operation, and wide float32 tensors."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.limit, self.bytes, self.wide = wide, Counter[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        space, name = func._schema.name.split("::")
        if space == "prim" or name in _VIEWS or name in _PRODUCTS or "attn" in name or "attention" in name:
            return result
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self.add(name, read + made, made)
        return result

    def add(self, name: str, moved: list[Tensor], made: list[Tensor]) -> None:
        self.bytes[name] += sum(min(x.untyped_storage().nbytes(), x.numel() * x.element_size()) for x in moved)
        self.wide += sum(x.dtype == torch.float32 and x.numel() >= self.limit for x in made)

    def launch(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Count a launch of a Triton kernel in its place."""
        source = inspect.getsource(kernel.fn)
        given = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
        bases = dict(re.findall(r"(\w+) = (\w+) \+ ", source))  # pointers within the arguments
        loaded, stored = (
            [given[name] for name in sorted({bases.get(name, name) for name in names}) if name in given]
            for names in (re.findall(rf"tl\.{call}\(\s*(\w+)", source) for call in ("load", "store"))
        )
        assert loaded and stored, kernel
        moved = [x for x in loaded + stored if isinstance(x, Tensor)]
        self.add(kernel.fn.__name__, moved, [x for x in stored if isinstance(x, Tensor)])


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **others: Any) -> tuple[Tensor, None]:
    """Attention as `varlen_attention` computes it on a GPU."""
    from irm_fast.models import varlen

    ends, longest = others["cu_seq_lens_q"], others["max_length_q"]
    query, key, value = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    return varlen._by_torch(query, key, value, others.get("scaling"), None, ends, longest)[None], None


def _fused(classifier: Any, count: _Count) -> AbstractContextManager:
    """A context in which the model computes with Liger's kernels, whose launches are counted."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def run(kernel: Any, *args: Any, **kwargs: Any) -> None:
        count.launch(kernel, *args, **kwargs)

    stack = ExitStack()
    for kind in (InterpretedFunction, JITFunction):
        stack.enter_context(patch.object(kind, "run", run))
    stack.enter_context(liger_kernels(classifier))
    return stack


def step_traffic(shape: str = "0.6B", how: str = "bfloat16", tokens: int = TOKENS) -> Traffic:
    """The elementwise traffic of the forward and backward pass of a backbone over a full pack.

    Args:
        shape: One of `SHAPES`.
        how: "bfloat16": as `computing` does, operation by operation; "liger": with Liger's kernels too; "autocast":
            with float32 weights under autocast, for comparison.
        tokens: The tokens of the pack.
    """
    layers = SHAPES[shape][0]
    one, two = (_trace(shape, how, tokens, count) for count in (1, 2))
    names = one.bytes.keys() | two.bytes.keys()
    whole = {name: one.bytes[name] + (layers - 1) * (two.bytes[name] - one.bytes[name]) for name in names}
    return Traffic(Counter({name: count / 1e9 for name, count in whole.items()}), two.wide - one.wide)


def _trace(shape: str, how: str, tokens: int, layers: int) -> _Count:
    """The count of a step of a model of so many layers."""
    config = config_of(shape, vocab_size=151_936, num_hidden_layers=layers)
    count = _Count(tokens * config.hidden_size)
    tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=2, pad_token="<pad>")
    ends = torch.tensor([0, *np.cumsum(_lengths(tokens))], dtype=torch.int32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        model = ImplicitRewardModel(classifier, tokenizer, RewardSpec("constant", ("copy",), (1,), (0.0,))).train()
        switch(classifier, "varlen")
        ids, place = torch.zeros(1, tokens, dtype=torch.long), torch.zeros(1, tokens, dtype=torch.long)
        batch = {"input_ids": ids, "position_ids": place, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        batch |= {"max_length_q": 4096, "max_length_k": 4096}
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast")
        with (
            _replaced_attention(),
            _fused(classifier, count) if how == "liger" else nullcontext(),
            computing(model, None if how == "autocast" else torch.bfloat16),
            count,
        ):
            with autocast:
                total = model.pool(**batch).sum()
            total.backward()
    return count


@contextmanager
def _replaced_attention() -> Iterator[None]:
    """A context in which varlen attention is that of GPUs, also on fake tensors of a CPU."""
    from transformers import AttentionInterface

    from irm_fast.models.attention import _REGISTERED
    from irm_fast.models.varlen import varlen_attention

    AttentionInterface.register(_REGISTERED, _attention)
    try:
        yield
    finally:
        AttentionInterface.register(_REGISTERED, varlen_attention)


def _lengths(tokens: int) -> list[int]:
    """Lengths of rows that fill a pack: log-normal, median 350, at most 4,096."""
    rng, lengths = np.random.default_rng(0), list[int]()
    while sum(lengths) < tokens:
        length = int(np.clip(np.exp(rng.normal(np.log(350), 0.885)), 4, 4096))
        lengths.append(min(length, tokens - sum(lengths)))
    return lengths


def main(shape: str = "0.6B") -> None:
    for how in ("autocast", "bfloat16", "liger"):
        traffic = step_traffic(shape, how)
        print(f"{shape}, {how}: {traffic.total:.0f} GB; wide float32 tensors of a layer: {traffic.wide}")
        for name, gigabytes in traffic.gigabytes.most_common(8):
            print(f"    {name:<32} {gigabytes:7.1f} GB")


if __name__ == "__main__":
    main(*sys.argv[1:])
