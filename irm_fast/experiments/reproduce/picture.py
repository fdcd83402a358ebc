"""The picture of all redraws: how far each method is from the default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from irm_fast.data.writing.whole import whole_path
from irm_fast.experiments.reproduce.methods import EXPLICIT, KNOWN
from irm_fast.experiments.reproduce.table import Results, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {1: "tab:orange", 2: "tab:blue", 0: "black"}
PANELS = (("raw auroc", "AUROC"), ("calibrated r2", "R2, all calibrated alike"))


def draw(results: Results, path: Path) -> Path | None:
    """Draw AUROC and calibrated R2 less the default's: a dot a redraw, and a bar at the mean.

    Args:
        results: The results of `run_redraws`.
        path: The file to write, .png.

    Returns:
        The path; None where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    tables = [Table(results, protocol) for protocol in dict.fromkeys(result["protocol"] for result in results)]
    names = list(dict.fromkeys(name for table in tables for name, _ in table.values))
    figure = Figure(figsize=(11, 1.2 + 0.3 * len(names) * len(tables)), layout="constrained")
    grid = figure.subplots(len(tables), len(PANELS), squeeze=False, sharey=True)
    for line, table in zip(grid, tables, strict=True):
        for axes, (metric, title) in zip(line, PANELS, strict=True):
            _panel(axes, table, names, metric)
            axes.set_title(f"protocol {table.protocol}: {title} less that of the default", fontsize=10)
    grid[0][0].invert_yaxis()
    labels = {1: "1 signal", 2: "2 signals", 0: "labels (a dot is a redraw, a bar the mean)"}
    handles = [grid[0][0].plot([], [], "o", color=COLOURS[count], label=label)[0] for count, label in labels.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    with whole_path(path) as unfinished:
        figure.savefig(unfinished, dpi=130)
    return path


def _panel(axes: Axes, table: Table, names: list[str], metric: str) -> None:
    axes.axvline(0, color="grey", linewidth=1)
    for key, values in table.values.items():
        difference = values[metric] - table.values[table.default(key)][metric]
        place = names.index(key[0]) + {1: -0.17, 2: 0.17, 0: 0.0}[key[1]]
        colour = COLOURS[key[1]]
        axes.plot(difference, [place] * len(difference), "o", color=colour, alpha=0.45, markersize=3.5)
        axes.plot([difference.mean()] * 2, [place - 0.15, place + 0.15], color=colour, linewidth=2)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for label in axes.get_yticklabels():
        name = label.get_text()
        label.set_fontweight("bold" if name.startswith("ImplicitRM") else "normal")
        label.set_fontstyle("italic" if name in (KNOWN.name, EXPLICIT.name) else "normal")
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(labelsize=8)
