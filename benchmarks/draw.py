"""Draws what a run kept: how many times as fast as the best other way each loss is.

python -m benchmarks.draw benchmarks/results/NAME.json     writes NAME.png beside it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from irm_fast.publish.figures import new_figure, plain, save

FLOORS = ("copy", "clone", "read")  # no loss: the least that the bytes take
MODES = {"step": ("with gradients", "o", "tab:green"), "forward": ("loss alone", "s", "tab:grey")}


class Ratio(NamedTuple):
    """How many times as fast as the best other way ours is: by unkind quantiles, by the medians, by kind quantiles."""

    low: float
    mid: float
    high: float


def ratio(providers: dict[str, Any]) -> Ratio | None:
    """Ours beside the best of the others.

    Args:
        providers: What was measured of each way, by its name.

    Returns:
        The ratio; None where ours or all others were not measured.
    """
    others = [row for who, row in providers.items() if who not in ("ours", *FLOORS) and "median" in row]
    ours = providers.get("ours", {})
    if not others or "median" not in ours:
        return None
    best = min(others, key=lambda row: row["median"])
    low, high = best["q10"] / ours["q90"], best["q90"] / ours["q10"]
    return Ratio(low, best["median"] / ours["median"], high)


def draw_speed(run: dict[str, Any], path: Path) -> None:
    """A panel for each loss: a line for each size, a dot for each mode, from the slow to the fast quantiles.

    Args:
        run: The kept results.
        path: The file to write, .png.
    """
    cases = [case for case in run["cases"] if any(ratio(case["modes"].get(m, {}).get("providers", {})) for m in MODES)]
    operations = list(dict.fromkeys(case["operation"] for case in cases))
    rows = {operation: [case for case in cases if case["operation"] == operation] for operation in operations}
    figure = new_figure(12, 1.8 + 0.3 * max(map(len, rows.values()), default=1))
    for axes, operation in zip(figure.subplots(1, max(1, len(rows)), squeeze=False)[0], rows, strict=False):
        axes.axvline(1, color="black", linewidth=1)
        for place, case in enumerate(rows[operation]):
            for mode, (label, marker, colour) in MODES.items():
                found = ratio(case["modes"].get(mode, {}).get("providers", {}))
                if found is not None:
                    spread = [[found.mid - found.low], [found.high - found.mid]]
                    axes.errorbar(found.mid, place, xerr=spread, fmt=marker, color=colour, capsize=2, label=label)
        axes.set_yticks(range(len(rows[operation])), [_size(case) for case in rows[operation]])
        axes.invert_yaxis()
        axes.set(xscale="log", title=operation, xlabel="times as fast as the best other way (1: as fast)")
        ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        plain(axes, "x")
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(
        f"How many times as fast as eager PyTorch and torch.compile, whichever is faster\n{_machine(run)}", fontsize=11
    )
    save(figure, path)


def _size(case: dict[str, Any]) -> str:
    """The size of a case in words."""
    width = f" of {case['hidden']:,}" if case["hidden"] else ""
    signals = f", {case['k']} signals" if case["k"] > 1 else ""
    return f"{case['n']:,} rows{width}{signals}{'' if case['dtype'] == 'float32' else ', ' + case['dtype']}"


def _machine(run: dict[str, Any]) -> str:
    machine = run["machine"]
    return f"{machine['device']}, torch {machine['torch']}, {machine['date'][:10]}"


if __name__ == "__main__":
    for name in map(Path, sys.argv[1:]):
        draw_speed(json.loads(name.read_text()), name.with_suffix(".png"))
