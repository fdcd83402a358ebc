"""What was measured, as JSON and as a table.

python -m benchmarks.report benchmarks/results/NAME.json
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import irm_fast
from benchmarks import harness
from benchmarks.cases import DEVICE, Case, Entry, floor_names
from benchmarks.harness import Result, Turn

HEAD = f"  {'mode':13}{'provider':18}" + "".join(
    f"{title:>{width}}"
    for title, width in zip(
        ("median", "10%", "90%", "/ ours", "of floor", "peak MB", "error"), (11, 11, 11, 9, 10, 9, 9), strict=True
    )
)


def as_record(case: Case, results: Iterable[Result]) -> dict[str, Any]:
    """One case as plain numbers: times in seconds a call, memory and traffic in bytes."""
    results = list(results)
    modes = {}
    for mode in case.modes:
        providers = {result.provider: _as_record(result) for result in results if mode in result.modes}
        modes[mode] = {
            "bytes": sum(case.traffic(mode)),
            "floor": floor_names(mode)[0],
            "providers": providers,
        }
    shape = {"n": case.n, "k": case.k, "hidden": case.hidden, "dtype": str(case.dtype).removeprefix("torch.")}
    return {"operation": case.operation, "case": str(case), **shape, "modes": modes}


def _as_record(result: Result) -> dict[str, Any]:
    if result.refused:
        return {"refused": result.refused}
    low, high = result.spread
    record: dict[str, Any] = {"median": result.median, "q10": low, "q90": high}
    record |= {"rounds": len(result.times), "calls_a_round": result.calls, "peak_bytes": result.peak_bytes}
    return record | ({"loss": result.loss, "errors": result.errors} if result.errors else {})


def table(records: Iterable[dict[str, Any]]) -> list[str]:
    """Every provider of every case beside `ours`, and beside the floor: the time in which a copy moves the bytes."""
    lines = []
    for record in records:
        lines += ["", f"{record['operation']}, {record['case']}", HEAD]
        for mode, contest in record["modes"].items():
            rows = contest["providers"]
            ours, floor = rows.get("ours", {}).get("median"), rows[contest["floor"]]["median"]
            for who, row in sorted(rows.items(), key=lambda item: item[1].get("median", 0.0)):
                lines.append(_row(mode, who, row, ours, floor, is_floor=who in ("copy", "clone", "read", "matmul")))
    return lines


def _row(mode: str, who: str, row: dict[str, Any], ours: float | None, floor: float, is_floor: bool) -> str:
    if "refused" in row:
        return f"  {mode:13}{who:18}REFUSED  {row['refused'].splitlines()[0][:100]}"
    times = "".join(f"{_time(row[x]):>11}" for x in ("median", "q10", "q90"))
    ratio = f"{row['median'] / ours:8.2f}x" if ours else " " * 9
    peak = f"{row['peak_bytes'] / 1e6:9.1f}" if row["peak_bytes"] is not None else f"{'-':>9}"
    error = f"{max(row['errors'].values()):9.0e}" if "errors" in row else " " * 9
    loses = "  OURS IS SLOWER" if ours and not is_floor and row["median"] < ours else ""
    return f"  {mode:13}{who:18}{times}{ratio}{floor / row['median']:>10.0%}{peak}{error}{loses}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def save(measured: Mapping[Case, Iterable[Result]], folder: Path) -> Path:
    """Writes FOLDER/<device>.json, over what an earlier run left there."""
    records = [as_record(case, results) for case, results in measured.items()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_slug(machine()['device'])}.json"
    path.write_text(json.dumps({"machine": machine(), "ceilings": ceilings(), "cases": records}, indent=1) + "\n")
    return path


@cache
def machine() -> dict[str, Any]:
    """Where, when and with what the session measures; the load is that of its start."""
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else f"{_cpu_name()} {os.cpu_count()} cores",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": _instruction_set(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "irm_fast": irm_fast.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


@cache
def ceilings() -> dict[str, float]:
    """This device's bytes and floating-point operations a second: a large copy, and square matrix products."""
    source = torch.rand(2**26 if DEVICE == "cpu" else 2**29, device=DEVICE)
    target = torch.ones_like(source)
    result = {"copy_bytes_a_second": 2 * source.nbytes / _best(lambda: target.copy_(source))}
    size = 1024 if DEVICE == "cpu" else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=DEVICE, dtype=dtype)
        name = f"matmul_{str(dtype).removeprefix('torch.')}_flops_a_second"
        result[name] = 2 * size**3 / _best(partial(torch.matmul, a, a))
    return result


def _best(run: Callable[[], Any]) -> float:
    """The least time of six calls, or of fewer where they take longer than all of a case does."""
    turn = Turn(Entry("", (), lambda _: run()), [None])
    times = [turn.seconds(1)]
    while len(times) < 6 and sum(times) < 10 * harness.SECONDS:
        times.append(turn.seconds(1))
    return min(times)


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _instruction_set() -> str | None:
    if irm_fast.backends()["cpu"] != "available":
        return None
    from irm_fast.kernels.cpu.library import INSTRUCTION_SET

    return INSTRUCTION_SET


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("\n".join(table(json.loads(Path(name).read_text())["cases"])))
