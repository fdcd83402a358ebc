"""Measures one case: every provider is checked against the float64 reference, then all take turns in one loop.

pytest-benchmark shows the timings but does not take them: it would run one test after the other, and a machine's speed
drifts between them. A provider that is wrong is not timed, and its tests fail.
"""

from __future__ import annotations

import ctypes
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import DEVICE, Case, Entry

CACHE = 2**27  # bytes: a rotation over this much finds little in the last-level cache of the usual machine
SMALL = 2**20  # bytes: below, launches are the bound, and the inputs may stay in the cache
BLOCK = 4e-3  # seconds: fast calls are timed in blocks of this length
ROUNDS = (5, 200)
SECONDS = 0.7 if DEVICE == "cpu" else 0.3  # for each entry of a case


class WrongResult(AssertionError):
    """A provider does not compute what the reference does."""


@dataclass
class Result:
    """What was measured of one entry; times in seconds a call."""

    provider: str
    modes: tuple[str, ...]
    refused: str | None = None
    errors: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    peak_bytes: int | None = None
    calls: int = 1  # in one timed block
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.times)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10% and the 90% quantile."""
        tenths = quantiles(self.times, n=10, method="inclusive")
        return tenths[0], tenths[-1]


def check(entry: Entry, case: Case, inputs: Any, truth: dict[str, Tensor]) -> tuple[dict[str, float], float]:
    """Relative error of every result, and the loss. Raises WrongResult if one is too large."""
    names = case.modes[entry.modes[-1]]
    results = [result.detach() for result in entry.run(inputs)]
    errors = {}
    for name, got in zip(names, _join(results, [truth[name] for name in names]), strict=True):
        want = truth[name].reshape(-1)
        if not want.norm() > 0:
            raise WrongResult(f"the reference's {name} is zero: the check would show nothing")
        errors[name] = ((got.double() - want).norm() / want.norm()).item()
        if not errors[name] <= case.tolerance:  # NaN is refused too
            raise WrongResult(f"{name} is off by {errors[name]:.1e} (relative)")
    return errors, results[0].item()


def _join(results: Sequence[Tensor], like: Sequence[Tensor]) -> Iterator[Tensor]:
    """Flat results, as many as in `like`: two heads give two weight gradients where a stacked one gives one."""
    if sum(x.numel() for x in results) != sum(x.numel() for x in like):
        raise WrongResult(f"results have {[x.numel() for x in results]} elements, not {[x.numel() for x in like]}")
    rest = iter(results)
    for want in like:
        pieces = [next(rest).reshape(-1)]
        while sum(map(len, pieces)) < want.numel():
            pieces.append(next(rest).reshape(-1))
        yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class Turn:
    """One entry in the measuring loop, with its place in the rotation over its input sets."""

    def __init__(self, entry: Entry, sets: Sequence[Any]) -> None:
        self.run, self.sets, self.at = entry.run, sets, 0

    def seconds(self, calls: int) -> float:
        """Seconds a call. Results are dropped at once, so that freeing memory is part of the time."""
        run, sets, at = self.run, self.sets, self.at
        n_sets = len(sets)
        _synchronize()
        start = time.perf_counter()
        for i in range(at, at + calls):
            run(sets[i % n_sets])
        _synchronize()
        elapsed = time.perf_counter() - start
        self.at = (at + calls) % n_sets
        return elapsed / calls

    def calls_in_a_block(self) -> int:
        """How many calls fill a block; warms up on the way."""
        for _ in range(min(3, len(self.sets))):
            self.seconds(1)
        calls, each = 1, self.seconds(1)
        while calls * each < BLOCK:
            calls = math.ceil(min(BLOCK * 1.1 / each, 10 * calls))
            each = self.seconds(calls)
        return calls


def _synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def interleave(timed: Iterable[tuple[Turn, Result]], seconds: float) -> None:
    """Rounds in which every entry has one block, in an order drawn anew: nobody always follows the same neighbour."""
    order, shuffle = list(timed), random.Random(0).shuffle
    for turn, result in order:
        result.calls = turn.calls_in_a_block()
    deadline = time.perf_counter() + seconds
    for i in range(ROUNDS[1]):
        if i >= ROUNDS[0] and time.perf_counter() > deadline:
            break
        shuffle(order)
        for turn, result in order:
            result.times.append(turn.seconds(result.calls))


def peak_memory(turn: Turn) -> int | None:
    """Bytes that one call holds at once, at most, beyond what was there; its results count.

    On a GPU by the allocator. On Linux by the kernel's high-water mark of resident memory, which counts whole pages and
    misses blocks that malloc kept: only large cases are asked. None elsewhere.
    """
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        turn.seconds(1)
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
        turn.seconds(1)
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):  # not Linux, or another C library
        return None


def _resident(name: str) -> int:
    fields = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    return int(fields[name]) * 1024


measured: dict[Case, list[Result]] = {}
broken: dict[Case, Exception] = {}
after_each_case: list[Callable[[], Any]] = []


def measure(case: Case) -> list[Result]:
    """Checks and times everybody in this case, once; a provider that is wrong in one mode is timed in none."""
    if case in broken:
        raise broken[case]
    if case not in measured:
        try:
            measured[case] = _measure(case)
        except Exception as error:  # out of memory, say: the other tests of the case need not find it out again
            broken[case] = error
            raise
        for action in after_each_case:
            action()
    return measured[case]


def _measure(case: Case) -> list[Result]:
    torch.compiler.reset()  # Dynamo gives a function up after eight shapes and runs it eagerly, without a word
    if DEVICE == "cuda":
        torch.cuda.empty_cache()  # the check's float64 tensors are large, and of other sizes in every case
    n_bytes = max(sum(case.traffic(mode)) for mode in case.modes)
    n_sets = 1 if n_bytes < SMALL else min(64, math.ceil(CACHE / n_bytes))
    sets = [case.make_inputs(seed) for seed in range(n_sets)]
    entries = case.entries()
    results = [Result(entry.provider, entry.modes) for entry in entries]
    refused = _check_all(entries, results, case, sets[0])

    turns = [Turn(entry, sets) for entry in entries]
    for entry, buffers in case.floors(n_sets):
        turns.append(Turn(entry, buffers))
        results.append(Result(entry.provider, entry.modes))
    for result in results:
        result.refused = refused.get(result.provider)
    timed = [(turn, result) for turn, result in zip(turns, results, strict=True) if not result.refused]
    interleave(timed, seconds=SECONDS * len(timed))
    if n_bytes >= 4 * SMALL:
        for turn, result in timed:
            result.peak_bytes = peak_memory(turn)
    return results


def _check_all(entries: Iterable[Entry], results: Iterable[Result], case: Case, inputs: Any) -> dict[str, str]:
    """Fills in errors and losses; returns who is refused, and why."""
    refused: dict[str, str] = {}
    truth = case.truth(inputs)
    for entry, result in zip(entries, results, strict=True):
        try:
            result.errors, result.loss = check(entry, case, inputs, truth)
        except Exception as error:  # out of memory, no compiler: told, and the others go on
            refused.setdefault(entry.provider, f"{entry.modes[-1]}: {type(error).__name__}: {error}")
    return refused


def find(results: Iterable[Result], mode: str, provider: str) -> Result:
    return next(x for x in results if x.provider == provider and mode in x.modes)


class ReplayClock:
    """A timer for pytest-benchmark that moves by `advance` alone: its loop then sees the times that were taken here."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


clock = ReplayClock()


def show(benchmark: Any, case: Case, mode: str, provider: str) -> None:
    """The times of one provider through pytest-benchmark; fails where the provider was refused."""
    result = find(measure(case), mode, provider)
    if result.refused:
        pytest.fail(f"{provider} is not timed. {result.refused}", pytrace=False)
    benchmark.group = f"{case.operation}, {case}, {mode}, {DEVICE}"
    benchmark.extra_info |= {"bytes": sum(case.traffic(mode)), "peak_bytes": result.peak_bytes}
    times = iter(result.times)
    benchmark.pedantic(lambda: clock.advance(next(times, 0.0)), rounds=len(result.times))
