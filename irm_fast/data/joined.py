"""Sequences that stand for lists, such as several one after the other: nothing is copied."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeVar, overload

T = TypeVar("T")


class ListLike(Sequence[T]):
    """A sequence that is equal to a list of the same values, and as little a key as one."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Joined(ListLike[T]):
    """The values of several sequences, in their order. A slice reads slices of them.

    Args:
        parts: The sequences.

    Examples:
        >>> joined = Joined(["ab", "cde"])
        >>> len(joined), joined[3], joined[1:4], list(joined)
        (5, 'd', ['b', 'c', 'd'], ['a', 'b', 'c', 'd', 'e'])
    """

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self.parts: list[Sequence[T]] = list(parts)
        self._starts = [0, *accumulate(map(len, self.parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        if isinstance(places, int):
            number = bisect.bisect_right(self._starts, places) - 1
            return self.parts[number][places - self._starts[number]]
        if places.step != 1:
            return [self[place] for place in places]
        found: list[T] = []
        for part, start in zip(self.parts, self._starts, strict=False):
            first, last = max(places.start - start, 0), min(places.stop - start, len(part))
            if first < last:
                found += part[first:last]
        return found

    def __iter__(self) -> Iterator[T]:
        for part in self.parts:
            yield from part
