"""The standardised embeddings of N rows, wherever they lie: in memory, or in shards that are passed over in blocks.

The steps of a fit read them by what this class offers: something of every row, sums over the rows, a loss that can be
differentiated, and a few rows by number. Rows of one block are held in memory, and a step computes with all at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from irm_fast.embeddings.blocks import Blocks
from irm_fast.embeddings.parts import Scaler
from irm_fast.embeddings.shards import Shards

WIDENED = 4096  # rows in float64 at once
Rows: TypeAlias = "slice | Tensor"  # a block, or the numbers (int64) of some of its rows


@dataclass(frozen=True, eq=False)
class Standardised:
    """Standardised embeddings (float32) of shape (N, D).

    Attributes:
        blocks: The blocks of the rows.
        width: Their width D.
        device: Where to compute.
        held: All rows, of shape (N, D), on the device; None where they are read from `raw`.
        raw: The embeddings before they were standardised; None where they are held.
        scaler: Standardises what is read; None where the rows are held.
        column: A further column (float32) of shape (N,), the last one; None without.
    """

    blocks: Blocks
    width: int
    device: torch.device
    held: Tensor | None = None
    raw: Shards | None = None
    scaler: Scaler | None = None
    column: Tensor | None = None

    @classmethod
    def of(cls, raw: Shards, scaler: Scaler, *, hold: bool, distributed: bool = False) -> Standardised:
        """Return the standardised rows of embeddings.

        Args:
            raw: The embeddings.
            scaler: Standardises them, on the device where to compute.
            hold: Whether to keep all of them in memory, which rows of a single block always are.
            distributed: As of `Blocks`.
        """
        (rows, width), device = raw.shape, scaler.mean.device
        blocks = Blocks.of(rows, width, distributed=distributed and not hold)
        if not (hold or blocks.is_one):
            return cls(blocks, width, device, raw=raw, scaler=scaler)
        held = torch.empty(rows, width, device=device)
        for first in range(0, rows, blocks.size):
            block = slice(first, min(first + blocks.size, rows))
            scaler.into(held[block], raw.read(block.start, block.stop).to(device))
        return cls(blocks, width, device, held=held)

    def __len__(self) -> int:
        return self.blocks.rows

    @cached_property
    def _buffer(self) -> Tensor:
        """The rows of the block that is being looked at."""
        assert self.raw is not None
        return torch.empty(self.blocks.size, self.raw.shape[1], device=self.device)

    def __matmul__(self, weight: Tensor) -> Tensor:
        """Return the products of the rows and weights (D,) or (D, k), of shape (N,) or (N, k)."""
        return self.map(lambda _, some: some @ weight)

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros (float32) of a shape, on the device."""
        return torch.zeros(shape, device=self.device)

    def beside(self, column: Tensor) -> Standardised:
        """Return the embeddings with a further column of shape (N,)."""
        if self.held is not None and self.blocks.is_one:
            return replace(self, width=self.width + 1, held=torch.cat([self.held, column[:, None]], 1))
        assert self.column is None
        return replace(self, width=self.width + 1, column=column)

    def map(self, compute: Callable[[Rows, Tensor], Tensor], rows: Tensor | None = None) -> Tensor:
        """Return what a function makes of the rows, of shape (N, ...), or of some of them.

        Args:
            compute: A function of rows and their embeddings (n, D), which it does not keep, that returns a tensor of
                shape (n, ...).
            rows: The numbers (int64) of some rows, in increasing order. None means all, which are slices then.
        """
        if self.blocks.is_one:
            return compute(*self._some(slice(0, len(self)), rows))
        return self.blocks.join(
            lambda block: compute(*self._some(block, rows)), self.device, lambda block: _count(block, rows)
        )

    def total(
        self, compute: Callable[[Rows, Tensor], Sequence[Tensor]], rows: Tensor | None = None, same: float = 0.0
    ) -> list[Tensor]:
        """Return sums (float64, on the CPU) over the blocks.

        Args:
            compute: A function of rows and their embeddings (n, D) that returns sums over these rows.
            rows: As of `map`.
            same: As of `Blocks.total`.
        """
        return self.blocks.total(lambda block: compute(*self._some(block, rows)), same)

    def visit(self, see: Callable[[Rows, Tensor], None], sums: Tensor) -> None:
        """Have a function see all rows, which adds them to sums; several processes add theirs up in the end.

        Args:
            see: A function of rows and their embeddings (n, D) that adds something to `sums`.
            sums: Sums (float32), 0 before.
        """
        self.blocks.visit(lambda block: see(*self._some(block, None)), sums)

    def loss(
        self, compute: Callable[[Rows, Tensor], Tensor], parameters: Sequence[Tensor], rows: Tensor | None = None
    ) -> Tensor:
        """Return the sum over the blocks of a loss, which has gradients by the parameters.

        Args:
            compute: A function of rows and their embeddings (n, D) that returns what they add to the loss, of shape ().
            parameters: The leaf tensors that it reads.
            rows: As of `map`.

        Returns:
            The loss, of shape (): as `compute` returned it if all rows are in one block, else float64.

        Raises:
            RuntimeError: The parameters are others in another process.
        """
        if self.blocks.is_one:
            return compute(*self._some(slice(0, len(self)), rows))
        found: Tensor = _Summed.apply(self, compute, rows, *parameters)
        return found

    def at(self, rows: Tensor) -> Tensor:
        """Return the embeddings (n, D) of some rows by their numbers (int64), in any order."""
        if self.held is not None:
            found = self.held.index_select(0, rows)
        else:
            assert self.raw is not None and self.scaler is not None
            found = self.raw.at(rows.cpu().numpy()).to(self.device)
            self.scaler.into(found, found)
        return found if self.column is None else torch.cat([found, self.column.index_select(0, rows)[:, None]], 1)

    def _some(self, block: slice, rows: Tensor | None) -> tuple[Rows, Tensor]:
        """Return the rows of a block, or some of them, with their embeddings."""
        if rows is not None:
            some = rows[_span(block, rows)]
            return some, self.at(some)
        if self.held is not None:
            found = self.held[block]
        else:
            assert self.raw is not None and self.scaler is not None
            found = self.raw.read(block.start, block.stop).to(self.device)
            found = self.scaler.into(self._buffer[: len(found)], found)
        return block, found if self.column is None else torch.cat([found, self.column[block, None]], 1)


def as_standardised(x: Tensor | Standardised) -> Standardised:
    """Return embeddings as the steps of a fit read them; a tensor of shape (N, D) is standardised already."""
    if isinstance(x, Standardised):
        return x
    return Standardised(Blocks.of(*x.shape), x.shape[1], x.device, held=x)


class Moments(NamedTuple):
    """Means and standard deviations (float64) of the columns of embeddings, each of shape (D,)."""

    mean: np.ndarray
    deviation: np.ndarray


def moments_of(raw: Shards, *, distributed: bool = False) -> Moments:
    """Return the moments of embeddings, from one pass for the means and one for the deviations.

    Args:
        raw: The embeddings.
        distributed: As of `Blocks`.

    Raises:
        ValueError: An entry is not finite.
    """
    blocks = Blocks.of(*raw.shape, distributed=distributed)
    if blocks.is_one:
        rows = _finite(raw, slice(0, len(raw))).numpy()
        return Moments(rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64))
    (total,) = blocks.total(lambda rows: [_finite(raw, rows).sum(0, dtype=torch.float64)])
    mean = total / len(raw)

    def squares(rows: slice) -> list[Tensor]:
        parts = raw.read(rows.start, rows.stop).split(WIDENED)
        return [torch.stack([(part.double() - mean).square_().sum(0) for part in parts]).sum(0)]

    deviation = (blocks.total(squares)[0] / len(raw)).sqrt()
    return Moments(mean.numpy(), deviation.numpy())


def check_finite(raw: Shards) -> None:
    """Raise ValueError if embeddings hold NaN or an infinite number."""
    blocks = Blocks.of(*raw.shape)
    for first in range(0, len(raw), blocks.size):
        _finite(raw, slice(first, min(first + blocks.size, len(raw))))


def _finite(raw: Shards, rows: slice) -> Tensor:
    """Return rows of embeddings, or raise ValueError if they hold NaN or an infinite number."""
    found = raw.read(rows.start, rows.stop)
    if not torch.isfinite(found.sum(0, dtype=torch.float64)).all():
        row = rows.start + int((~torch.isfinite(found)).any(1).nonzero()[0])
        raise ValueError(f"X: {raw.where(row)} holds NaN or a number too large for float32; expected finite numbers")
    return found


class _Summed(torch.autograd.Function):
    """The sum of a loss over blocks, whose gradients are computed in the same pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Standardised,
        compute: Callable[[Rows, Tensor], Tensor],
        rows: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        """Return the sum, and keep its gradients."""

        wanted = [parameter for parameter in parameters if parameter.requires_grad]

        def part(block: slice) -> Sequence[Tensor]:
            if not _count(block, rows):
                return [torch.zeros(()), *map(torch.zeros_like, wanted)]
            with torch.enable_grad():
                value = compute(*x._some(block, rows))
                return [value, *(torch.autograd.grad(value, wanted) if wanted else ())]

        same = zlib.crc32(b"".join(parameter.detach().cpu().numpy().tobytes() for parameter in parameters))
        value, *gradients = x.blocks.total(part, same)
        found = iter(gradients)
        ctx.gradients = [next(found).to(each) if each.requires_grad else None for each in parameters]
        return value.to(x.device, torch.float32 if x.device.type == "mps" else torch.float64)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of the parameters."""
        return None, None, None, *(each if each is None else each * upstream.to(each) for each in ctx.gradients)


def _span(block: slice, rows: Tensor) -> slice:
    """Return which of some row numbers lie in a block."""
    first, end = torch.searchsorted(rows, torch.tensor([block.start, block.stop], device=rows.device)).tolist()
    return slice(first, end)


def _count(block: slice, rows: Tensor | None) -> int:
    """Return how many of some rows, or of all, lie in a block."""
    found = block if rows is None else _span(block, rows)
    return int(found.stop - found.start)
