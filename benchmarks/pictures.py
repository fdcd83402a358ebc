"""The pictures of docs/results, from the figures of its pages and kept results: `python -m benchmarks.pictures`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.draw import draw_speed
from irm_fast.experiments.reproduce.methods import DEFAULT, NAIVE
from irm_fast.experiments.reproduce.picture import PUBLISHED, Gain, draw_gains
from irm_fast.publish.figures import new_figure, plain, save

RESULTS = Path(__file__).parents[1] / "docs" / "results"
KEPT = Path(__file__).parent / "results" / "amd-epyc-2-cores.json"
LOGS = {  # a page, the protocol of its table, and how the log is called
    ("semi-synthetic", "rating"): "made, propensity by rating",
    ("semi-synthetic", "feature"): "made, propensity by features",
    ("noisy", "feature"): "made, noisy ratings",
    ("graded", "feature"): "real text, graded",
    ("judged", "feature"): "real text, judged pairs",
}
GROUPS = {"naive": "tab:grey", "implicit": "tab:green", "known": "black", "explicit": "black"}


def tables(page: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The tables of a page.

    Args:
        page: The page.

    Yields:
        The heading above a table, and its rows by their columns.
    """
    for part in re.split(r"^#+ ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
        if lines:
            yield part.splitlines()[0], [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def numbers(cell: str) -> tuple[float, float]:
    """Mean and deviation, or difference and half an interval, of a cell."""
    mean, half = cell.strip("*").split(" ± ")
    return float(mean), float(half)


def gains() -> list[Gain]:
    """What the default gains, by the tables of docs/results/methods."""
    found = []
    for (name, protocol), log in LOGS.items():
        for title, rows in tables(RESULTS / "methods" / f"{name}.md"):
            if f"protocol {protocol}," not in title:
                continue
            for signals in ("1", "2"):
                mine = {row["method"]: row for row in rows if row["signals"] == signals}
                assert DEFAULT in mine
                best = max((name for name in PUBLISHED if name in mine), key=lambda name: float(mine[name]["AUROC"]))
                for rival in (NAIVE.name, best):
                    mean, half = numbers(mine[rival]["AUROC - default"])
                    place = f"{log}, {signals} signal{'s' if signals > '1' else ''}"
                    found.append(Gain(place, rival, rival == best, -mean, half))
    return found


def draw_demo(path: Path) -> None:
    """AUROC and calibration error of the table of docs/results/demo.md, means with standard deviations.

    Args:
        path: The file to write, .png.
    """
    (_, rows), *_ = tables(RESULTS / "demo.md")
    figure = new_figure(9, 3.4)
    panels = (
        ("AUROC", "AUROC on labels that no method saw (right is better)"),
        ("ECE", "calibration error (left is better)"),
    )
    for axes, (column, label) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for place, row in enumerate(rows):
            mean, half = numbers(row[column])
            colour = GROUPS[row["method"].split()[0].strip(",")]
            axes.errorbar(mean, place, xerr=half, fmt="o", color=colour, capsize=3)
            axes.annotate(f"{mean:.3f}", (mean, place - 0.2), ha="center", fontsize=8, color=colour)
        axes.set_yticks(range(len(rows)), [row["method"].replace("implicit", "irm_fast") for row in rows])
        axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.7))
        plain(axes, "x")
    figure.suptitle("With two signals irm_fast is nearly as good as labels", fontsize=11)
    save(figure, path)


if __name__ == "__main__":
    draw_demo(RESULTS / "demo.png")
    title = "With two signals the default is ahead or level; with one it depends on the propensity"
    draw_gains(gains(), RESULTS / "methods.png", title)
    draw_speed(json.loads(KEPT.read_text()), RESULTS / "speed.png")
