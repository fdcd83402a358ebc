"""Steps of the losses, as users take them: made for a number of rows, run by any backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import irm_fast
from irm_fast.losses.pointwise import pointwise_loss

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
Results = dict[str, Tensor]
EVERYTHING = ("wide codes", "labels", "weight", "stratification", "displeasure", "misclicks", "rows", "groups")


class Inputs(NamedTuple):
    """Arguments of a step: tensors that get a gradient, by name, and the others."""

    learned: dict[str, Tensor]
    fixed: dict[str, Any]

    def grown(self, rows: int) -> Inputs:
        """Zeros of as many rows instead of one; parameters of heads stay as they are."""

        def grow(name: str, x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(grow(name, y) for y in x)
            if not isinstance(x, Tensor) or (name.endswith(("_weight", "_bias", "_logits")) and name in self.learned):
                return x
            return torch.zeros(rows, *x.shape[1:], dtype=x.dtype)

        return Inputs(*({name: grow(name, x) for name, x in part.items()} for part in self))

    def doubled(self) -> Inputs:
        """The same numbers in float64, which the reference takes."""

        def widen(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(map(widen, x))
            return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

        return Inputs({k: widen(x) for k, x in self.learned.items()}, {k: widen(x) for k, x in self.fixed.items()})


@dataclass(frozen=True)
class Case:
    """A loss of K signals.

    Attributes:
        k: The number of signals.
        dtype: Of the logits or hidden states.
        options: What is on, of `EVERYTHING`.
        spread: The standard deviation of the logits.
    """

    k: int = 1
    dtype: torch.dtype = F32
    options: tuple[str, ...] = ()
    spread: float = 3.0

    def inputs(self, rows: int, seed: int = 0) -> Inputs:
        """Random arguments."""
        draw = torch.Generator().manual_seed(seed)
        logits = self._logits(draw, rows), self._logits(draw, rows, self.k)
        return Inputs(dict(zip(("reward", "propensity"), logits, strict=True)), self._fixed(draw, rows))

    def step(self, inputs: Inputs, backend: str) -> Results:
        """Loss, gradients, and groups if they are wanted."""
        learned, fixed = _leaves(inputs.learned), inputs.fixed
        return _results(
            irm_fast.implicit_rm_loss(learned["reward"], learned["propensity"], backend=backend, **fixed), learned
        )

    def _logits(self, draw: torch.Generator, *shape: int) -> Tensor:
        return (torch.randn(*shape, generator=draw) * self.spread).to(self.dtype)

    def _fixed(self, draw: torch.Generator, rows: int) -> dict[str, Any]:
        feedback = torch.randint(-1, 2, (rows, self.k), generator=draw, dtype=torch.int8)
        values: dict[str, dict[str, Any]] = {
            "wide codes": {"feedback": feedback.long()},
            "labels": {"preference": torch.randint(-1, 2, (rows,), generator=draw, dtype=torch.int8)},
            "weight": {"weight": torch.randint(0, 3, (rows,), generator=draw).float()},
            "stratification": {"stratification": (self._logits(draw, rows), self._logits(draw, rows, self.k))},
            "displeasure": {"polarity": [(-1) ** i for i in range(self.k)]},
            "misclicks": {"misclick_rate": [0.05 + 0.1 * i / self.k for i in range(self.k)]},
            "rows": {"reduction": "none"},
            "groups": {"return_groups": True},
        }
        if "displeasure" in self.options and "misclicks" not in self.options:
            feedback[:, 1::2].clamp_(max=0)  # no row contradicts itself
        fixed: dict[str, Any] = {"feedback": feedback}
        for option in self.options:
            fixed |= values[option]
        return fixed


@dataclass(frozen=True)
class LinearCase(Case):
    """A linear loss on hidden states of a width; with propensity heads, or with given logits."""

    width: int = 1024
    heads: bool = True

    def inputs(self, rows: int, seed: int = 0) -> Inputs:
        draw = torch.Generator().manual_seed(seed)
        learned = {
            "hidden": torch.randn(rows, self.width, generator=draw).to(self.dtype),
            "reward_weight": torch.randn(self.width, generator=draw) / self.width**0.5,
            "reward_bias": torch.randn((), generator=draw),
        }
        if self.heads:
            learned["propensity_weight"] = torch.randn(self.k, self.width, generator=draw) / self.width**0.5
            learned["propensity_bias"] = torch.randn(self.k, generator=draw)
        else:
            learned["propensity_logits"] = torch.randn(self.k, generator=draw)
        return Inputs(learned, self._fixed(draw, rows))

    def step(self, inputs: Inputs, backend: str) -> Results:
        learned = _leaves(inputs.learned)
        return _results(irm_fast.linear_implicit_rm_loss(**learned, backend=backend, **inputs.fixed), learned)


@dataclass(frozen=True)
class PointwiseCase(Case):
    """A weighted pointwise loss."""

    def inputs(self, rows: int, seed: int = 0) -> Inputs:
        draw = torch.Generator().manual_seed(seed)
        weights = {f"{side}_weight": torch.randn(rows, generator=draw) for side in ("positive", "negative")}
        fixed = {**weights, "reduction": "none" if "rows" in self.options else "mean"}
        return Inputs({"reward": self._logits(draw, rows)}, fixed)

    def step(self, inputs: Inputs, backend: str) -> Results:
        learned = _leaves(inputs.learned)
        return _results(pointwise_loss(learned["reward"], backend=backend, **inputs.fixed), learned)


def _leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().requires_grad_() for name, x in tensors.items()}


def _results(returned: Tensor | tuple[Tensor, Tensor], learned: dict[str, Tensor]) -> Results:
    loss, *groups = returned if isinstance(returned, tuple) else (returned,)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), device=loss.device).to(loss.dtype).reshape(loss.shape)
    gradients: Sequence[Tensor] = torch.autograd.grad(loss, list(learned.values()), upstream)
    results = {"loss": loss.detach()} | {f"d {name}": x for name, x in zip(learned, gradients, strict=True)}
    return results | ({"groups": groups[0]} if groups else {})


CASES: dict[str, Case] = {
    "loss K=1 float32": Case(1, F32),
    "loss K=1 bfloat16": Case(1, BF16),
    "loss K=1 float16": Case(1, F16),
    "loss K=2 float32": Case(2, F32),
    "loss K=2 bfloat16": Case(2, BF16),
    "loss K=3 float32": Case(3, F32),
    "loss K=4 float32": Case(4, F32),
    "loss K=4 bfloat16": Case(4, BF16),
    "loss K=16 float16": Case(16, F16),
    "loss K=2 float32, displeasure": Case(2, F32, ("displeasure",)),
    "loss K=3 float32, weight, rows": Case(3, F32, ("weight", "rows")),
    "loss K=1 bfloat16, everything": Case(1, BF16, EVERYTHING),
    "loss K=3 float16, everything": Case(3, F16, EVERYTHING),
    "loss K=16 float32, everything": Case(16, F32, EVERYTHING),
    "linear K=1 H=1024 bfloat16": LinearCase(1, BF16, width=1024),
    "linear K=1 H=1000 bfloat16, unaligned": LinearCase(1, BF16, width=1000),
    "linear K=1 H=4096 bfloat16": LinearCase(1, BF16, width=4096),
    "linear K=1 H=4096 float32": LinearCase(1, F32, width=4096),
    "linear K=1 H=8192 bfloat16": LinearCase(1, BF16, width=8192),
    "linear K=2 H=4096 bfloat16": LinearCase(2, BF16, width=4096),
    "linear K=4 H=4096 bfloat16": LinearCase(4, BF16, width=4096),
    "linear K=3 H=1000 float32, everything": LinearCase(3, F32, EVERYTHING, width=1000),
    "linear K=3 H=4096 bfloat16, everything": LinearCase(3, BF16, EVERYTHING, width=4096),
    "linear K=1 H=16384 bfloat16": LinearCase(1, BF16, width=16384),
    "linear K=16 H=1024 float16": LinearCase(16, F16, width=1024),
    "linear K=2 H=1024 float32, given propensities": LinearCase(2, F32, width=1024, heads=False),
    "linear K=16 H=1024 float32, given propensities": LinearCase(16, F32, width=1024, heads=False),
    "linear K=1 H=2560 bfloat16": LinearCase(1, BF16, width=2560),
    "linear K=3 H=3000 bfloat16, unaligned": LinearCase(3, BF16, width=3000),
    "linear K=1 H=4096 float16": LinearCase(1, F16, width=4096),
    "pointwise float32": PointwiseCase(1, F32),
    "pointwise bfloat16": PointwiseCase(1, BF16),
    "pointwise float16, rows": PointwiseCase(1, F16, ("rows",)),
}
