"""Draws what a run kept: time a row against the number of rows, and the linear loss under its roofline.

python -m benchmarks.draw benchmarks/results/NAME.json     writes NAME-sizes.png and NAME-roofline.png beside it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FLOORS = {"copy": "--", "clone": ":", "read": "--"}
COLOURS = {
    "ours": "tab:blue",
    "eager": "tab:red",
    "compile": "tab:orange",
    "separate eager": "tab:red",
    "separate compile": "tab:orange",
    "stacked eager": "tab:purple",
    "stacked compile": "tab:green",
}
GREY = "0.6"


def draw_sizes(run: dict[str, Any], path: Path) -> None:
    """A panel for each operation and mode: nanoseconds a row, over the sizes that differ in N alone."""
    series = [(operation, mode, cases) for operation, cases in _sweeps(run).items() for mode in cases[0]["modes"]]
    figure, panels = plt.subplots(2, -(-len(series) // 2), figsize=(13, 8), squeeze=False, layout="constrained")
    for axes, (operation, mode, cases) in zip(panels.flat, series, strict=False):
        providers = list(cases[0]["modes"][mode]["providers"])
        for who in providers:
            points = [(c["n"], c["modes"][mode]["providers"].get(who, {})) for c in cases]
            points = [(n, row) for n, row in points if "median" in row]
            n = [n for n, _ in points]
            low, mid, high = ([row[q] / i * 1e9 for i, row in points] for q in ("q10", "median", "q90"))
            axes.plot(n, mid, FLOORS.get(who, "-"), color=COLOURS.get(who, GREY), marker=".", label=who)
            axes.fill_between(n, low, high, color=COLOURS.get(who, GREY), alpha=0.2)
        axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="ns a row", title=f"{operation}\n{mode}")
        axes.legend(fontsize="x-small", framealpha=0.4)
    for axes in panels.flat[len(series) :]:
        axes.remove()
    figure.suptitle(_title(run))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _sweeps(run: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Of every operation the cases of the shape that was measured at most sizes, by N."""
    shapes: dict[str, dict[tuple, list[dict[str, Any]]]] = {}
    for case in run["cases"]:
        if {"epoch", "train"} & case["modes"].keys():  # of sizes that have nothing else in common
            continue
        shape = case["k"], case["hidden"], case["dtype"]
        shapes.setdefault(case["operation"], {}).setdefault(shape, []).append(case)
    largest = {operation: max(by_shape.values(), key=len) for operation, by_shape in shapes.items()}
    return {operation: sorted(cases, key=lambda case: case["n"]) for operation, cases in largest.items()}


def draw_roofline(run: dict[str, Any], path: Path) -> None:
    """The linear loss in float32: operations of the heads a second against operations a byte that has to be moved.

    The roofs were measured in the same run: a large copy, the fastest read of hidden states, and a large float32 matrix
    product. Modes that write next to nothing are held to the read.
    """
    # Small cases are bound by launches: no roof of theirs is here.
    cases = [case for case in run["cases"] if case["hidden"] and case["n"] >= 4096 and case["dtype"] == "float32"]
    cases = [case for case in cases if "epoch" not in case["modes"]]
    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    for mode, marker in zip(("forward", "frozen", "step"), "^so", strict=True):
        points: dict[str, list[tuple[float, float]]] = {}
        for case in cases:
            contest, n_flops = case["modes"][mode], _flops(case, mode)
            for who, row in contest["providers"].items():
                if who not in FLOORS and "median" in row:
                    points.setdefault(who, []).append((n_flops / contest["bytes"], n_flops / row["median"]))
        for who, xy in points.items():
            axes.plot(*zip(*xy, strict=True), marker, color=COLOURS[who], alpha=0.7, label=f"{who}, {mode}")
    peak = run["ceilings"]["matmul_float32_flops_a_second"]
    bandwidths = {"copy": run["ceilings"]["copy_bytes_a_second"], "read": _fastest_read(cases)}
    low, high = axes.get_xlim() if cases else (0.1, 10)
    for (name, bandwidth), style in zip(bandwidths.items(), ("-", "--"), strict=True):
        if bandwidth:
            x = [low, peak / bandwidth, max(high, 2 * peak / bandwidth)]
            label = f"{name}; float32 matrix product"
            axes.plot(x, [min(peak, bandwidth * i) for i in x], style, color="black", label=label)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second", title=_title(run))
    figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _fastest_read(cases: list[dict[str, Any]]) -> float:
    """Bytes a second."""
    contests = [case["modes"]["forward"] for case in cases]
    reads = [(contest["bytes"], contest["providers"].get("read", {})) for contest in contests]
    return max((n_bytes / row["median"] for n_bytes, row in reads if "median" in row), default=0.0)


def _flops(case: dict[str, Any], mode: str) -> int:
    """Multiplications and additions of the heads: logits, and in backward one product for each gradient."""
    products = {"forward": 1, "frozen": 2, "step": 3}[mode]
    return products * 2 * case["n"] * case["hidden"] * (case["k"] + 1)


def _title(run: dict[str, Any]) -> str:
    machine = run["machine"]
    return f"{machine['device']}, torch {machine['torch']}, {machine['date'][:10]}"


if __name__ == "__main__":
    for name in map(Path, sys.argv[1:]):
        measured = json.loads(name.read_text())
        draw_sizes(measured, name.with_name(f"{name.stem}-sizes.png"))
        draw_roofline(measured, name.with_name(f"{name.stem}-roofline.png"))
