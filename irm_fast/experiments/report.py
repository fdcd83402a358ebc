"""Tables and pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Results = Sequence[Mapping[str, Mapping[str, float]]]  # seed -> method -> metric -> value
COLUMNS = {
    "auroc": "AUROC",
    "pair_accuracy": "pair acc.",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "nll": "NLL",
    "ece": "ECE",
}
GOAL = "explicit labels"


def comparison_table(results: Results) -> str:
    """Markdown: a row a method, means over the seeds and, with several seeds, their standard deviation.

    Last column: the share of the AUROC distance from the naive classifier on the same signals to explicit labels that
    the method closes; "-" where that distance does not stand out of the noise between seeds.
    """
    rows = [["method", *COLUMNS.values(), "distance closed"]]
    for method in results[0]:
        values = np.array([[seed[method][metric] for metric in COLUMNS] for seed in results])
        rows.append([method, *map(_cell, values.T), _closed(results, method)])
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells, the first of them the header, as Markdown with columns of one width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(values: np.ndarray) -> str:
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def _closed(results: Results, method: str) -> str:
    naive = "naive, 1 signal" if method.endswith("1 signal") else "naive, 2 signals"
    base, goal, value = (np.array([seed[name]["auroc"] for seed in results]) for name in (naive, GOAL, method))
    distance = goal - base
    noise = 2 * distance.std(ddof=1) / np.sqrt(len(results)) if len(results) > 1 else 0.01
    return f"{(value - base).mean() / distance.mean():.0%}" if distance.mean() > noise else "-"


def draw_comparison(results: Results, path: Path) -> Path | None:
    """AUROC and calibration error of every method, a dot a seed and a bar at the mean; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    methods = list(results[0])
    panels = (
        ("auroc", "AUROC against true preferences (higher is better)"),
        ("ece", "calibration error (lower is better)"),
    )
    for axes, (metric, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for place, method in enumerate(methods):
            values = [seed[method][metric] for seed in results]
            colour = "tab:green" if method.startswith("implicit") else "tab:grey"
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.6)
            axes.plot([np.mean(values)] * 2, [place - 0.25, place + 0.25], color=colour, linewidth=2)
            axes.annotate(f"{np.mean(values):.3f}", (np.mean(values), place - 0.3), ha="center", fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.set_yticks(range(len(methods)), methods)
        axes.margins(x=0.12, y=0.12)
    figure.axes[0].invert_yaxis()
    figure.savefig(path, dpi=150)
    return path
