"""Charts as PNG files, for slides and letters; it needs matplotlib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.common.extras import missing
from irm_fast.data.writing.whole import whole_files
from irm_fast.publish.charts import COLOURS, Chart, Series
from irm_fast.publish.figures import new_figure, plain, save

_WRITER = "irm-fast report"  # what the files say of themselves, by which those of an earlier report are known
_NOT_OF_A_NAME = re.compile(r"[^\w-]+")  # names of signals are those of the log, and may hold anything


def write_pngs(charts: Sequence[Chart], folder: Path) -> int:
    """Write each chart as a file, NUMBER-NAME.png, into a folder, which is made where there is none.

    Args:
        charts: The charts.
        folder: The folder. Files of these names are replaced, and what an earlier report wrote beside them is removed.

    Returns:
        How many were written: none where matplotlib is not installed.
    """
    if missing("matplotlib"):
        return 0
    written = set()
    with whole_files(folder) as scratch:
        for number, chart in enumerate(charts, 1):
            height = 3.4 if not chart.y_names else 1.2 + 0.28 * len(chart.y_names)
            figure = new_figure(5, height)
            _draw(chart, figure.subplots())
            name = f"{number:02}-{_NOT_OF_A_NAME.sub('_', chart.name)}.png"
            save(figure, scratch / name, _WRITER)
            written.add(name)
    for path in folder.glob("*.png"):
        if path.name not in written and _is_ours(path):
            path.unlink()
    return len(charts)


def _is_ours(path: Path) -> bool:
    """Whether a file is a picture that `write_pngs` wrote."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return _WRITER.encode() in file.read(1000)


def _draw(chart: Chart, axes: Any) -> None:
    """Draw a chart into the axes of a figure."""
    for series in chart.series:
        _marks(series, axes, along_x=bool(chart.y_names))
    axes.set(xlim=chart.ends("x"), ylim=chart.ends("y"), xlabel=chart.x_label, ylabel=chart.y_label)
    if chart.x_names:
        axes.set_xticks(range(len(chart.x_names)), chart.x_names)
    if chart.y_names:
        axes.set_yticks(range(len(chart.y_names)), chart.y_names)
        axes.invert_yaxis()
    axes.set_title(chart.title, fontsize=10, loc="left", wrap=True)
    plain(axes)
    if chart.legend:
        axes.legend(frameon=False, fontsize="small")


def _marks(series: Series, axes: Any, *, along_x: bool) -> None:
    """Draw one series."""
    colour, label = COLOURS[series.colour][0], series.label or None
    if series.kind == "bars":
        axes.stairs(series.y, series.x, color=colour, label=label, fill=True, alpha=0.2)
        axes.stairs(series.y, series.x, color=colour)
    elif series.kind == "points":
        x, y = np.asarray(series.x, float), np.asarray(series.y, float)
        ends = None
        if series.low:
            ends = np.abs(np.array([series.low, series.high]) - (x if along_x else y))
        axes.errorbar(x, y, **{"xerr" if along_x else "yerr": ends}, fmt="o", color=colour, label=label, markersize=4)
    else:
        axes.plot(series.x, series.y, "--" if series.kind == "rule" else "-", color=colour, label=label)
