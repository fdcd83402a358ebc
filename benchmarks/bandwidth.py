"""How fast each GPU kernel moves memory, from events around its launches in whole eager steps.

    python -m benchmarks.bandwidth FOLDER

Appends a line for each step to FOLDER/bandwidth.jsonl as soon as it is measured, small sizes first, and prints every
kernel: its time, its bytes in that time, their share of what a copy in the same run and the data sheet reach, and the
share of a copy that `benchmarks.predict` expects. Bytes are those of tests/gpu_static/budgets.json: each argument that
has a row for every row, once. A kernel that has to read a tile twice shows as slower; one that only reads can be faster
than a copy.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol
from unittest.mock import patch

import torch
from triton.runtime.jit import JITFunction

from benchmarks.predict import DEVICES, TABLE, Device, times
from tests.gpu_static.cases import CASES, Inputs

# Cases of the table and rows; all but the first of each kernel are far larger than a cache.
STEPS = (
    ("loss K=1 float32", 2**20),
    ("pointwise float32", 2**20),
    ("linear K=1 H=4096 bfloat16", 2**12),
    ("loss K=1 float32", 2**25),
    ("linear K=1 H=4096 bfloat16", 2**15),
    ("pointwise float32", 2**25),
    ("loss K=1 bfloat16", 2**25),
    ("loss K=2 float32", 2**24),
    ("loss K=4 float32", 2**24),
    ("linear K=2 H=4096 bfloat16", 2**15),
    ("linear K=4 H=4096 bfloat16", 2**15),
    ("linear K=1 H=4096 float32", 2**14),
)
REPEATS = 20
CACHE = 2**28  # bytes: written between two steps, so that nothing of the last one is left in a cache
COPIED = 2**29  # bytes of the copy, read and written
QUEUED = 5_000_000  # cycles that the GPU waits while a step is queued, so that its kernels follow without a gap
# Names that PyTorch gives to the devices of `benchmarks.predict`; other variants have other memory.
NAMES = {"h100": r"H100 80GB HBM3", "h200": r"\bH200\b", "b200": r"\bB200\b", "mi300x": r"MI300X"}


class Event(Protocol):
    """A moment in the GPU's queue, as torch.cuda.Event."""

    def record(self) -> Any: ...
    def elapsed_time(self, end_event: Any) -> float: ...


Launched = list[tuple[str, Event, Event]]


@contextmanager
def timing(event: Callable[[], Event]) -> Iterator[Launched]:
    """A list that grows with each launch of Triton: its name, and the events before and after it."""
    launched: Launched = []
    launch = JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        start, end = event(), event()
        start.record()
        result = launch(self, *args, **kwargs)
        end.record()
        launched.append((self.__name__, start, end))
        return result

    with patch.object(JITFunction, "run", run):
        yield launched


def on(device: str, x: Any) -> Any:
    """Arguments of a case with all their tensors on the device."""
    if isinstance(x, Inputs):
        return Inputs(*({name: on(device, y) for name, y in part.items()} for part in x))
    if isinstance(x, tuple):
        return tuple(on(device, y) for y in x)
    return x.to(device) if isinstance(x, torch.Tensor) else x


def measure(name: str, rows: int, device: str, event: Callable[[], Event], between: Callable[[], Any]) -> Any:
    """One entry for each kernel of a step: its name, bytes, and median seconds.

    Args:
        name: A case of the table.
        rows: Of its inputs.
        device: Where they are.
        event: Makes an event.
        between: Called before each step that is timed.
    """
    inputs, case = on(device, CASES[name].inputs(rows)), CASES[name]
    for _ in range(2):  # compiles
        case.step(inputs, "triton")
    with timing(event) as launched:
        for _ in range(REPEATS):
            between()
            case.step(inputs, "triton")
    if device == "cuda":
        torch.cuda.synchronize()
    records = json.loads(TABLE.read_text())["sm_90"][name]
    expected = [record["kernel"] for record in records]
    names = [kernel for kernel, _, _ in launched]
    if names != expected * REPEATS:
        raise RuntimeError(
            f"a step of {name} launched {names[: len(names) // REPEATS]}, the table has {expected}: write it anew, "
            "python -m tests.gpu_static.budgets --write"
        )
    seconds = [start.elapsed_time(end) / 1e3 for _, start, end in launched]
    return [
        {"kernel": record["kernel"], "bytes": record["bytes"] * rows, "seconds": median(seconds[i :: len(records)])}
        for i, record in enumerate(records)
    ]


def copy_speed(event: Callable[[], Event], between: Callable[[], Any]) -> float:
    """Bytes a second that PyTorch's copy reads and writes, the median."""
    source = torch.zeros(COPIED // 2, dtype=torch.uint8, device="cuda")
    target, seconds = torch.empty_like(source), []
    for _ in range(REPEATS):
        between()
        start, end = event(), event()
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return COPIED / median(seconds)


def shares(name: str, found: list[dict[str, Any]], copy: float, device: Device | None) -> list[dict[str, Any]]:
    """What each kernel reached: of the copy and, where the device is known, of its data sheet and as predicted."""
    records = json.loads(TABLE.read_text())["sm_90"][name]
    result = []
    for kernel, record in zip(found, records, strict=True):
        speed = kernel["bytes"] / kernel["seconds"]
        entry = kernel | {"bytes_a_second": speed, "of_copy": speed / copy}
        if device is not None:
            entry |= {"of_peak": speed / device.bandwidth}
            if device.target == "sm_90" and record["bytes"]:
                predicted = times(record, device)
                entry |= {"predicted_of_copy": predicted.memory / predicted.total}
        result.append(entry)
    return result


def lines(name: str, rows: int, entries: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each kernel."""
    for x in entries:
        given = [f"{label} {100 * x[key]:.0f}%" for key, label in LABELS.items() if key in x]
        speed = f"{x['bytes_a_second'] / 1e9:8.0f} GB/s"
        yield f"{name:28} {rows:9} rows  {x['kernel']:30} {x['seconds'] * 1e6:9.1f} us {speed}  {', '.join(given)}"


LABELS = {"of_copy": "of copy", "of_peak": "of peak", "predicted_of_copy": "predicted of copy"}


def main(folder: str) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("this measures a GPU, and there is none: python -m benchmarks.predict h100 expects on paper")
    called = torch.cuda.get_device_name()
    device = next((DEVICES[key] for key, pattern in NAMES.items() if re.search(pattern, called)), None)
    full = torch.empty(CACHE, dtype=torch.uint8, device="cuda")

    def event() -> Event:
        return torch.cuda.Event(enable_timing=True)

    def between() -> None:
        torch.cuda.synchronize()
        torch.cuda._sleep(QUEUED)
        full.zero_()

    copy = copy_speed(event, between)
    print(
        f"{called}: a copy moves {copy / 1e9:.0f} GB/s" + (f", {copy / device.bandwidth:.0%} of peak" if device else "")
    )
    wrong = []
    with (Path(folder) / "bandwidth.jsonl").open("a") as file:
        for name, rows in STEPS:
            try:
                entries = shares(name, measure(name, rows, "cuda", event, between), copy, device)
            except Exception as error:  # the others are measured all the same
                wrong.append(f"{name}, {rows} rows: {type(error).__name__}: {error}")
                continue
            known = {"device": called, "copy_bytes_a_second": copy, "case": name, "rows": rows}
            file.write(json.dumps(known | {"kernels": entries}) + "\n")
            file.flush()
            print(*lines(name, rows, entries), sep="\n", flush=True)
    if wrong:
        raise SystemExit("\n".join(["not measured:", *wrong]))


if __name__ == "__main__":
    main(*sys.argv[1:])
