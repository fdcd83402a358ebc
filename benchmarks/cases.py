"""What is measured: one operation at one size, who computes it, and the bytes that nobody can avoid moving."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Case(ABC):
    """One operation at one size: n rows, k signals, and the width of the hidden states where there are some."""

    n: int
    k: int = 1
    hidden: int = 0
    dtype: torch.dtype = torch.float32

    operation: ClassVar[str]
    modes: ClassVar[dict[str, tuple[str, ...]]]  # mode -> what a provider hands back there, in this order

    def __str__(self) -> str:
        width = f" H={self.hidden}" if self.hidden else ""
        return f"N={self.n}{width} K={self.k} {str(self.dtype).removeprefix('torch.')}"

    @property
    def tolerance(self) -> float:
        """Largest ||got - want|| / ||want|| of a result; bfloat16 keeps 8 bits."""
        return {torch.float32: 1e-4, torch.bfloat16: 2e-2}[self.dtype]

    @abstractmethod
    def make_inputs(self, seed: int) -> Any:
        """One set of inputs. Providers share it."""

    @abstractmethod
    def truth(self, inputs: Any) -> dict[str, Tensor]:
        """Every result by name, from the float64 reference and autograd."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """Everybody who computes it, with `ours` first."""

    def traffic(self, mode: str) -> tuple[int, int]:
        """Bytes that have to be read and written."""
        return count_bytes(self, mode)

    def floors(self, n_sets: int) -> list[tuple[Entry, list[Any]]]:
        """What no provider can be faster than, each with its buffers."""
        return floors(self, n_sets)


@dataclass(frozen=True)
class Entry:
    """What one provider runs. Where it competes in several modes, the last one says what it hands back."""

    provider: str
    modes: tuple[str, ...]
    run: Callable[[Any], Any]  # takes one set of inputs


def four_group_loss(s: Tensor, t: Tensor, feedback: Tensor) -> Tensor:
    """-log(g e^A + (1-g) e^C) as one would write it in PyTorch.

    For s (N,), t and feedback (N, K) without missing entries, misclicks, labels or weights: `ours`, which takes all of
    these, gets none either.
    """
    s, t, acted = s.float(), t.float(), feedback == 1
    preferred = logsigmoid(s) + torch.where(acted, logsigmoid(t), logsigmoid(-t)).sum(-1)
    other = torch.where(acted.any(-1), -torch.inf, logsigmoid(-s))
    return -torch.logaddexp(preferred, other).mean()


def forward(loss_fn: Callable[..., Tensor]) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A run of a loss without gradients."""

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (loss_fn(*inputs),)

    return run


def step(loss_fn: Callable[..., Tensor], leaves: int) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A run of a loss and its gradients in the first so many inputs."""

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        loss = loss_fn(*inputs)
        return loss, *torch.autograd.grad(loss, inputs[:leaves])

    return run


def draw_feedback(s: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """int8 (N, K), drawn from the model: someone who prefers the response (one draw a row) and is active, acts."""
    preferred = torch.rand(s.shape, generator=generator, device=s.device) < s.float().sigmoid()
    active = torch.rand(t.shape, generator=generator, device=t.device) < t.float().sigmoid()
    return (preferred[:, None] & active).to(torch.int8)


def count_bytes(case: Case, mode: str) -> tuple[int, int]:
    """Bytes that have to be read and written once in this mode, whoever computes it.

    Read: hidden states and parameters of the heads, or the logits; int8 feedback. Written: a gradient for each of these
    but the feedback; none in "forward", and not that of the hidden states where they are frozen. Of an "epoch" only
    what is read counts: the heads stay in the cache. A copy of b bytes counts as 2 b: b read, b written.
    """
    states = case.n * (case.hidden or case.k + 1) * case.dtype.itemsize
    parameters = (case.k + 1) * (case.hidden + 1) * case.dtype.itemsize if case.hidden else 0
    read = states + parameters + case.n * case.k
    written = {"forward": 0, "epoch": 0, "frozen": parameters}.get(mode, states + parameters)
    return read, written


def floor_names(mode: str) -> tuple[str, ...]:
    """The floors of a mode, the one that percentages refer to first."""
    if mode == "train":
        return ("matmul",)
    return ("read",) if mode in ("forward", "frozen", "epoch") else ("copy", "clone")


def floors(case: Case, n_sets: int) -> list[tuple[Entry, list[Any]]]:
    """Entries that move the bytes of each mode and do nothing else, each with its own buffers to rotate over.

    "copy" goes into memory that is there, "clone" into memory allocated on the spot, as a new gradient is. Where little
    is written the floor is "read", a sum.
    """
    modes_of: dict[tuple[int, tuple[str, ...]], tuple[str, ...]] = {}
    for mode in case.modes:
        traffic = sum(case.traffic(mode)), floor_names(mode)
        modes_of[traffic] = (*modes_of.get(traffic, ()), mode)
    result: list[tuple[Entry, list[Any]]] = []
    for (n_bytes, names), modes in modes_of.items():
        # Real numbers: pages never written to are all one page of zeros, and reading that costs nothing.
        elements = max(1, n_bytes // (4 if "read" in names else 8))
        sources = [torch.rand(elements, device=DEVICE) for _ in range(n_sets)]
        if "read" in names:
            result.append((Entry("read", modes, lambda source: source.sum()), sources))
        else:
            target = torch.ones_like(sources[0])  # one: an allocator hands the same memory out again, too
            pairs = [(target, source) for source in sources]
            result.append((Entry("copy", modes, lambda pair: pair[0].copy_(pair[1])), pairs))
            result.append((Entry("clone", modes, lambda source: source.clone()), sources))
    return result


def contestants(cases: Iterable[Case]) -> list[Any]:
    """Parameters (case, mode, provider) of a test: everything that is measured, floors included."""
    result = []
    for case in cases:
        entries = case.entries()
        for mode in case.modes:
            providers = [entry.provider for entry in entries if mode in entry.modes]
            for who in (*providers, *floor_names(mode)):
                name = f"{case}-{mode}-{who}".replace(" ", "_").replace("=", "")  # pytest -k takes no "="
                result.append(pytest.param(case, mode, who, id=name))
    return result
