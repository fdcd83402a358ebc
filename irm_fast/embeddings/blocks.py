"""N rows in blocks, over which sums are taken in a fixed order: by one process, or by several, each of its own rows.

The blocks depend on the shape of the rows alone. Whoever computes what of a block computes the same of it, and the sums
of blocks (float64) are added up in one order. So the result is the same, to the bit, whether the rows are in memory or
in files, however many files there are, and however many processes share the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from irm_fast.models.processes import added_up, from_all, joined, tensor_from

ROWS = 65_536  # of a block; fewer where they are wide
NUMBERS = 2**26  # of a block, at most
SPANS = 64  # neighbouring blocks that one process passes over, at most so many; each has a sum of its own
LARGE = 2**17  # numbers of a sum from which a process keeps one of its own, not one for each span


@dataclass(frozen=True)
class Blocks:
    """The blocks of N rows of width D.

    Attributes:
        rows: The number N of rows.
        size: The number of rows of a block; the last one has fewer.
        distributed: Whether the processes of a torchrun share the blocks. All of them have to ask for the same then.
    """

    rows: int
    size: int
    distributed: bool = False

    @classmethod
    def of(cls, rows: int, width: int, *, distributed: bool = False) -> Blocks:
        """Return the blocks of N rows of width D; rows of a single block are not shared."""
        size = max(1, min(ROWS, NUMBERS // width))
        return cls(rows, size, distributed and rows > size)

    @property
    def is_one(self) -> bool:
        """Whether all rows are in one block."""
        return self.rows <= self.size

    @cached_property
    def _spans(self) -> list[list[slice]]:
        """Neighbouring blocks, those of all processes."""
        blocks = [slice(first, min(first + self.size, self.rows)) for first in range(0, self.rows, self.size)]
        length = -(-len(blocks) // SPANS)
        return [blocks[first : first + length] for first in range(0, len(blocks), length)]

    def _spans_of(self, rank: int, ranks: int) -> list[list[slice]]:
        """Return the spans of one of so many processes."""
        first, end = (len(self._spans) * which // ranks for which in (rank, rank + 1))
        return self._spans[first:end]

    @cached_property
    def _place(self) -> tuple[int, int]:
        """The number of this process, and how many share the blocks."""
        if not self.distributed:
            return 0, 1
        state = joined()
        return state.process_index, state.num_processes

    def range_of(self, rank: int, ranks: int) -> slice:
        """Return the rows of one of so many processes."""
        blocks = [block for span in self._spans_of(rank, ranks) for block in span]
        return slice(blocks[0].start, blocks[-1].stop) if blocks else slice(0, 0)

    def total(self, part: Callable[[slice], Sequence[Tensor]], same: float = 0.0) -> list[Tensor]:
        """Return the sums over the blocks of what a function returns of each, float64 and on the CPU.

        Args:
            part: A function of the rows of a block that returns tensors, of the same shapes for all blocks.
            same: A number that all processes must have, such as a hash of the parameters of `part`.

        Raises:
            RuntimeError: It is another number in another process.
        """
        sums, shapes = list[Tensor](), list[torch.Size]()
        for span in self._spans_of(*self._place):
            found: Tensor | None = None
            for rows in span:
                tensors = part(rows)
                shapes = [tensor.shape for tensor in tensors]
                flat = torch.cat([tensor.detach().flatten().double().cpu() for tensor in tensors])
                found = flat if found is None else found.add_(flat)
            assert found is not None
            if sums and len(found) > LARGE:
                sums[-1].add_(found)
            else:
                sums.append(found)
        if self.distributed:
            everything = from_all((same, shapes, sums))
            if {each for each, _, _ in everything} != {same}:
                raise RuntimeError(
                    "the processes came to different numbers; expected processes on machines of one kind, with the "
                    "same versions, data and settings"
                )
            shapes = next(each for _, each, _ in everything if each)
            sums = [one for _, _, some in everything for one in some]
        total = sums[0].clone()
        for one in sums[1:]:
            total += one
        pieces = total.split([shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def visit(self, see: Callable[[slice], None], sums: Tensor) -> None:
        """Have a function see the rows of all blocks, which adds them to sums; processes add theirs up in the end.

        Args:
            see: A function of the rows of a block that adds something to `sums`.
            sums: Sums, 0 before.
        """
        for span in self._spans_of(*self._place):
            for rows in span:
                see(rows)
        if self.distributed:
            sums.copy_(added_up(sums.cpu()))

    def join(self, part: Callable[[slice], Tensor], device: torch.device, counts: Callable[[slice], int]) -> Tensor:
        """Return what a function returns of all blocks, one after the other; every process gets all of it.

        Args:
            part: A function of the rows of a block that returns a tensor of shape (n, ...).
            device: The device of the result.
            counts: A function that returns the n of rows, of a block or of several neighbouring ones.
        """
        rank, ranks = self._place
        mine = self.range_of(rank, ranks)
        own, done = None, 0
        for rows in [block for span in self._spans_of(rank, ranks) for block in span]:
            found = part(rows)
            if own is None:
                own = found.new_empty(counts(mine), *found.shape[1:], device=device)
            own[done : done + len(found)] = found
            done += len(found)
        if not self.distributed:
            assert own is not None
            return own
        of_rows, dtype = next(each for each in from_all(None if own is None else (own.shape[1:], own.dtype)) if each)
        whole = torch.empty(counts(slice(0, self.rows)), *of_rows, dtype=dtype)
        done = 0
        for other in range(ranks):
            count = counts(self.range_of(other, ranks))
            if count:
                place = whole[done : done + count]
                if other == rank and own is not None:
                    place.copy_(own)
                tensor_from(other, place)
            done += count
        return whole.to(device)
