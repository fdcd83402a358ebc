"""The choice of the rows that meet in a forward pass: packs of a length budget, or padded batches of similar length.

A step of the optimiser is one pack for each process and micro-batch. In packed form rows are drawn at random until the
step is full, and dealt longest first, each to the pack with the fewest tokens so far. So packs of one step are equally
long and no process waits, while every step stays a random sample of the log: filling packs with the longest rows first
would put few long rows into some steps and many short ones into others, and weigh the long ones up.

Pairs of rows, whose difference is learned from, stay in one pack; every step has its share of them.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch.utils.data import Sampler

Step = list[list[int]]  # a pack for each process and micro-batch, some of them perhaps empty
_WINDOW = 8  # steps of equally many rows, which are sorted by length where they are padded


class PackSampler(Sampler[list[int]]):
    """The packs of an epoch: in every step those of micro-batch 0 for each process, then of micro-batch 1, and so on.

    The order depends on the arguments and the epoch alone. Every epoch has the same number of steps, and every step the
    same number of packs: `transformers.Trainer` counts on it. An empty pack means a process has nothing to do in that
    pass; each row comes once. Rows of pairs stand last in their pack, the two of a pair next to each other.

    Args:
        lengths: The number of tokens of each row, (N,).
        pairs: The number of pairs, which are the last `2 * pairs` rows.
        rows: The mean number of rows of a pack. None: no limit.
        tokens: The number of tokens of a pack at most, padding included. None: no limit.
        processes: The number of processes that share a step.
        micro_batches: The number of micro-batches of a step, for each process.
        seed: The seed of the order.
        epochs: The number of epochs that will be asked for.
        padded: Whether packs are padded to their longest row. The packs of a step then have rows of similar length
            each. Without `tokens` so have whole steps: all have as many rows, and none weighs more for it.

    Attributes:
        lengths: As given.

    Raises:
        ValueError: Neither `rows` nor `tokens` is given, or a row or pair is longer than `tokens`.

    Examples:
        >>> sampler = PackSampler([5, 9, 7, 3], tokens=12)
        >>> sorted(row for pack in sampler for row in pack)
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        pairs: int = 0,
        rows: int | None = None,
        tokens: int | None = None,
        processes: int = 1,
        micro_batches: int = 1,
        seed: int = 0,
        epochs: int = 1,
        padded: bool = False,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        # What is dealt as one, single rows and then pairs: the number of its rows, its tokens with their padding.
        self.single = len(self.lengths) - 2 * pairs
        self.sizes = np.repeat(np.array([1, 2], np.int8), [self.single, pairs])
        sides = self.lengths[self.single :].reshape(-1, 2)
        area = 2 * sides.max(axis=1, initial=0) if padded else sides.sum(axis=1)
        self.areas = np.append(self.lengths[: self.single], area) if pairs else self.lengths
        check_budget(self.areas, rows, tokens, "row or pair" if pairs else "row")
        self.rows, self.tokens, self.seed, self.padded = rows, tokens, seed, padded
        self.processes, self.packs = processes, processes * micro_batches
        self.epoch = 0
        self._planned: tuple[int, _Plan] | None = None  # the epoch that was asked for last
        # With a budget of tokens one order may need a step more than another.
        self.steps = max(len(self._plan(epoch)) for epoch in reversed(range(epochs if tokens else 1)))

    @property
    def plan(self) -> dict[str, Any]:
        """A summary of the order of rows, by which a resumed run tells whether its order is the same."""
        order, sign = zlib.crc32(b"["), b""
        plan = self._plan(0)
        for step in map(plan.__getitem__, range(len(plan))):  # all of them, as one text, would be large
            order = zlib.crc32(sign + repr([self._rows_of(pack) for pack in step]).encode(), order)
            sign = b", "
        return {
            "processes": self.processes,
            "rows": "padded" if self.padded else "packed",
            "steps": self.steps,
            "order": zlib.crc32(b"]", order),
        }

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose packs the next iteration gives, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.packs

    def __iter__(self) -> Iterator[list[int]]:
        plan = self._plan(self.epoch)
        halved: dict[int, list[Step]] = {}  # steps that are parted, so that there are enough
        counts = plan.counts()
        for _ in range(self.steps - len(plan)):
            fullest = int(np.argmax(counts))
            parts = halved.get(fullest, [plan[fullest]])
            largest = max(range(len(parts)), key=lambda part: sum(map(len, parts[part])))
            parts[largest : largest + 1] = _halves(parts[largest])
            halved[fullest] = parts
            counts[fullest] = max(sum(map(len, part)) for part in parts)
        for number in range(len(plan)):
            for step in halved.get(number) or [plan[number]]:
                # Packs that run at the same time are those closest in length.
                yield from map(self._rows_of, sorted(step, key=lambda pack: -self.areas[pack].sum()))

    def _rows_of(self, pack: list[int]) -> list[int]:
        """The rows of what was dealt to a pack, pairs last."""
        if self.single == len(self.lengths):
            return pack
        pairs = [2 * i - self.single for i in pack if i >= self.single]
        return [i for i in pack if i < self.single] + [row for first in pairs for row in (first, first + 1)]

    def _plan(self, epoch: int) -> _Plan:
        """The steps of an epoch, in numbers of rows and pairs as they are dealt."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = None  # two of them need not be in memory
            self._planned = epoch, self._planned_anew(epoch)
        return self._planned[1]

    def _planned_anew(self, epoch: int) -> _Plan:
        rng = np.random.default_rng((self.seed, epoch))
        sort = self.padded and not self.tokens
        order = self._order(rng, sort)
        count, total = (np.append(0, np.cumsum(values[order], dtype=np.int64)) for values in (self.sizes, self.areas))
        plan, start = _Plan(len(order), self.packs), 0
        while start < len(order):
            end = len(order)
            if self.rows:
                end = _last(count, start, self.rows * self.packs)
            if self.tokens:
                end = min(end, _last(total, start, self.tokens * self.packs))
            start += plan.add(self._longest_step(order[start:end]))
        if sort:
            plan.order = rng.permutation(len(plan))
        return plan

    def _order(self, rng: np.random.Generator, sort: bool) -> np.ndarray:
        """All rows and pairs at random, the pairs evenly among the rows."""
        order = rng.permutation(self.single)
        pairs = self.single + rng.permutation(len(self.sizes) - self.single)
        if sort:
            order, pairs = (self._sorted_in_windows(part) for part in (order, pairs))
        places = np.concatenate([(np.arange(len(part)) + 0.5) / max(1, len(part)) for part in (order, pairs)])
        return np.append(order, pairs)[np.argsort(places, kind="stable")]

    def _longest_step(self, rows: np.ndarray) -> list[np.ndarray]:
        """Deal as many of the first rows and pairs as fit into one step."""
        if (step := self._deal(rows)) is not None:
            return step
        fits, too_many = 1, len(rows)  # one row always fits
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._deal(rows[:middle]) is None:
                too_many = middle
            else:
                fits = middle
        step = self._deal(rows[:fits])
        assert step is not None
        return step

    def _sorted_in_windows(self, order: np.ndarray) -> np.ndarray:
        """Sort rows by length within windows of some steps, up and down in turns: neighbours are of similar length.

        Dialogues that fill a third of their batches in random order fill three quarters so; wider windows make the
        steps of a small log all too unlike each other.
        """
        assert self.rows is not None
        size = max(1, _WINDOW * self.rows * self.packs * len(order) // max(1, int(self.sizes.sum())))
        windows = [order[i : i + size] for i in range(0, len(order), size)]
        ordered = [rows[np.argsort(self.areas[rows], kind="stable")] for rows in windows]
        return np.concatenate([rows[:: -1 if i % 2 else 1] for i, rows in enumerate(ordered)] or [order])

    def _deal(self, rows: np.ndarray) -> list[np.ndarray] | None:
        """Deal the rows and pairs of one step to its packs; None if they do not fit."""
        lengths, sizes = self.areas[rows], self.sizes[rows]
        if not self.padded:
            places = spread(lengths, self.packs)
            if self.tokens and max(int(lengths[pack].sum()) for pack in places) > self.tokens:
                return None
        elif self.tokens:
            places = _parted(by_length(lengths // sizes, tokens=self.tokens, sizes=sizes), self.packs)
            if len(places) > self.packs:
                return None
        else:
            places = _evenly(np.argsort(lengths // sizes, kind="stable"), sizes, self.packs)
        return [rows[pack] for pack in places]


class _Plan:
    """Steps, each as many packs of rows, in arrays: a row takes eight bytes.

    Args:
        rows: The number of all rows.
        packs: The number of packs of a step.

    Attributes:
        order: The order of the steps.
    """

    def __init__(self, rows: int, packs: int) -> None:
        self._rows = np.empty(rows, np.int64)
        self._ends: list[int] = [0]  # of the packs, one after the other
        self._packs = packs
        self.order: np.ndarray | None = None

    def add(self, step: Sequence[np.ndarray]) -> int:
        """Add a step, and return the number of its rows."""
        first = self._ends[-1]
        for pack in step:
            end = self._ends[-1] + len(pack)
            self._rows[self._ends[-1] : end] = pack
            self._ends.append(end)
        return self._ends[-1] - first

    def counts(self) -> np.ndarray:
        """The number of rows of each step."""
        counts: np.ndarray = np.diff(self._ends[:: self._packs])
        return counts if self.order is None else counts[self.order]

    def __len__(self) -> int:
        return (len(self._ends) - 1) // self._packs

    def __getitem__(self, number: int) -> Step:
        if not 0 <= number < len(self):
            raise IndexError(number)
        first = self._packs * (number if self.order is None else int(self.order[number]))
        ends = self._ends[first : first + self._packs + 1]
        return [self._rows[start:end].tolist() for start, end in pairwise(ends)]


def _last(total: np.ndarray, start: int, room: int) -> int:
    """The end of what has room from `start` on, at least one; `total` are running sums from 0."""
    return max(start + 1, int(np.searchsorted(total, total[start] + room, side="right")) - 1)


def _evenly(order: np.ndarray, sizes: np.ndarray, packs: int) -> list[list[int]]:
    """Part an order into packs of about as many rows each."""
    pack_of_row = np.repeat(np.arange(packs), [len(part) for part in np.array_split(np.empty(sizes.sum()), packs)])
    pack = pack_of_row[np.cumsum(sizes[order]) - sizes[order]]
    return [order[pack == number].tolist() for number in range(packs)]


def spread(lengths: np.ndarray, packs: int) -> list[list[int]]:
    """Deal places to packs, longest first, each to the pack with the fewest tokens so far.

    Args:
        lengths: The number of tokens at each place, (N,).
        packs: The number of packs.

    Returns:
        The places, 0 to N - 1, of each pack.
    """
    order = np.argsort(-lengths, kind="stable").tolist()
    if packs == 1:
        return [order]
    result: list[list[int]] = [[] for _ in range(packs)]
    loads = [(0, pack) for pack in range(packs)]
    sizes = lengths.tolist()
    for place in order:
        load, pack = loads[0]
        heapq.heapreplace(loads, (load + sizes[place], pack))
        result[pack].append(place)
    return result


def _parted(packs: list[list[int]], count: int) -> list[list[int]]:
    """Part the packs with most rows until there are `count` at least; some may be empty."""
    while len(packs) < count:
        most = max(range(len(packs)), key=lambda i: len(packs[i]))
        half = len(packs[most]) // 2
        packs[most : most + 1] = [packs[most][:half], packs[most][half:]]
    return packs


def _halves(step: Step) -> list[Step]:
    """Part a step in two, with every other row of each pack; no pack gets longer."""
    return [[pack[(half + number) % 2 :: 2] for number, pack in enumerate(step)] for half in (0, 1)]


def by_length(
    lengths: Sequence[int] | np.ndarray,
    *,
    rows: int | None = None,
    tokens: int | None = None,
    processes: int = 1,
    sizes: np.ndarray | None = None,
) -> list[list[int]]:
    """Deal all rows to packs for evaluation, the longest first, as many packs as make a round for all processes.

    Args:
        lengths: The number of tokens of each row, (N,).
        rows: The number of rows of a pack, at most. None: no limit.
        tokens: The number of tokens of a pack, at most, padding included. None: no limit.
        processes: The number of processes that share the packs.
        sizes: For rows that stand for several of their length, how many each is, (N,). None: one.

    Returns:
        The rows of each pack; the last packs may be empty.

    Raises:
        ValueError: As `PackSampler`.

    Examples:
        >>> by_length([5, 9, 7, 3], rows=2)
        [[1, 2], [0, 3]]
    """
    each = np.asarray(lengths, dtype=np.int64)
    counts = np.ones_like(each) if sizes is None else sizes
    check_budget(each * counts, rows, tokens)
    order = np.argsort(-each, kind="stable")
    total = np.append(0, np.cumsum(counts[order], dtype=np.int64))
    packs, start = [], 0
    while start < len(order):
        room = [rows] if rows else []
        if tokens:
            room.append(tokens // max(1, int(each[order[start]])))
        end = _last(total, start, min(room))
        packs.append(order[start:end].tolist())
        start = end
    return packs + [[] for _ in range(-len(packs) % processes)]


def check_budget(lengths: np.ndarray, rows: int | None, tokens: int | None, name: str = "row") -> None:
    """Check that every row fits into a pack; arguments as of `PackSampler`, and how a message names a row.

    Raises:
        ValueError: Neither `rows` nor `tokens` is given, or a row is longer than `tokens`.
    """
    if rows is None and tokens is None:
        raise ValueError("batch_size and token_budget: got neither; expected one of them")
    longest = int(lengths.max(initial=0))
    if tokens is not None and longest > tokens:
        raise ValueError(
            f"token_budget: got {tokens}; the longest {name} has {longest} tokens; expected as many at least, or a "
            "smaller max_length"
        )
