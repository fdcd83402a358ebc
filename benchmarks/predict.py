"""What would bound each GPU kernel on a device, from its machine code: a roofline on paper. Nothing here is measured.

    python -m benchmarks.predict h100|h200|b200|mi300x

It reads tests/gpu_static/budgets.json: warp instructions for 32 rows, of these approximate functions, and bytes of a
row. A kernel takes the longest of three times: its bytes at the speed of a copy, its instructions at 80% of the rate of
issue, its approximate functions at their rate. Latency that few warps cannot hide, the launch, and the weights of
heads, which stay in cache, are left out: a device may be up to 30% slower.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).parents[1] / "tests" / "gpu_static" / "budgets.json"
ROWS = 2**20
ISSUE = 0.8  # of the rate of issue, taken as reachable
COPY = 0.9  # of the bandwidth in the data sheet; quack's softmax reaches 89.7% on an H100


class Device(NamedTuple):
    """Constants of a GPU, from its data sheet unless said."""

    name: str
    target: str  # of the table
    bandwidth: float  # bytes a second
    processors: int
    clock: float  # cycles a second, that of long loads
    issue: int = 4  # warp instructions that a processor issues a cycle (CUDA programming guide)
    functions: int = 16  # lanes of approximate functions, likewise


DEVICES = {
    "h100": Device("H100 SXM", "sm_90", 3.35e12, 132, 1.7e9),
    "h200": Device("H200", "sm_90", 4.8e12, 132, 1.7e9),
    "b200": Device("B200", "sm_100", 8.0e12, 148, 1.85e9),
    "mi300x": Device("MI300X", "gfx942", 5.3e12, 304, 2.1e9),
}


class Times(NamedTuple):
    """Seconds for `ROWS` rows of one kernel; None where nothing was counted."""

    memory: float
    issue: float | None
    functions: float | None

    @property
    def total(self) -> float:
        """The longest one."""
        return max(x for x in self if x is not None)

    @property
    def bound(self) -> str:
        """The name of the longest one."""
        return max((x, name) for x, name in zip(self, self._fields, strict=True) if x is not None)[1]


def times(record: dict[str, Any], device: Device) -> Times:
    """The three times of a kernel, from its record for an NVIDIA GPU.

    Args:
        record: A record of the table.
        device: The GPU; an AMD GPU issues other instructions, of which none are counted.
    """
    memory = record["bytes"] * ROWS / (COPY * device.bandwidth)
    if device.target.startswith("gfx"):
        return Times(memory, None, None)
    cycles = ROWS / 32 / device.processors / device.clock
    functions = record["mufu"] * record["warps"] * 32 / record["rows"]
    return Times(
        memory,
        record["per_32_rows"] * cycles / device.issue / ISSUE,
        functions * cycles * 32 / device.functions,
    )


def predictions(table: dict[str, Any], device: Device) -> Iterator[tuple[str, dict[str, Any], Times, str]]:
    """Case, record, times, and the target whose machine code was counted, for each kernel of the table."""
    for case, records in table["sm_90"].items():
        own = table.get(device.target, {}).get(case)
        counted = own if own and "bytes" in own[0] else records
        for record in counted:
            yield case, record, times(record, device), device.target if counted is own else "sm_90"


def main(name: str = "") -> None:
    """Print the predictions for a device."""
    if name not in DEVICES:
        raise SystemExit(f"expected a device, one of {', '.join(DEVICES)}; got {name!r}")
    device, table = DEVICES[name], json.loads(TABLE.read_text())
    print(f"Predicted for one {device.name}, not measured: {ROWS:,} rows, code of Triton {table['triton']}.")
    print(f"Copy at {COPY:.0%} of {device.bandwidth / 1e12:.2f} TB/s, issue at {ISSUE:.0%}. Times in microseconds.\n")
    print(f"{'step':40}{'kernel':32}{'B/row':>7}{'memory':>9}{'issue':>9}{'mufu':>8}  {'bound':10}{'of copy':>8}  code")
    for case, record, time, target in predictions(table, device):
        issue, functions = ("-" if x is None else f"{1e6 * x:.0f}" for x in time[1:])
        share = f"{time.memory / time.total:.0%}"
        line = f"{case:40}{record['kernel']:32}{record['bytes']:7}{1e6 * time.memory:9.0f}{issue:>9}{functions:>8}"
        print(f"{line}  {time.bound:10}{share:>8}  {target}")
    if device.target.startswith("gfx"):
        print("\nInstructions are not counted for AMD: only the memory bound is known.")


if __name__ == "__main__":
    main(*sys.argv[1:])
