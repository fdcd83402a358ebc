"""What the best of n answers are like: the table and the picture of the best of n answers by each method's reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from irm_fast.common.extras import missing
from irm_fast.experiments.report import (
    FALL,
    LEAST,
    LEVEL,
    half_width,
    markdown_table,
    share_with_interval,
    signed_with_interval,
)
from irm_fast.experiments.reproduce.contest import entrants
from irm_fast.experiments.reproduce.methods import (
    DEFAULT,
    DEFAULT_FEATURES,
    EXPLICIT,
    KNOWN,
    LOWER,
    NAIVE,
    PENALISED,
    PRODUCTS,
    TOWERS,
)
from irm_fast.experiments.reproduce.picks import AT
from irm_fast.experiments.reproduce.table import PUBLISHED_ROW, Key, Results, protocols_of
from irm_fast.publish.figures import new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (1, 4, AT, 64)
NOTES = """"Pleases": the chance that the best of n held-out answers by the reward pleases in truth, mean over the
redraws; the n answers are drawn at random, and the chance is exact. "Less naive": paired difference to naive on the
same signals at n = {at}, with a {level:.0%} interval of Student's t over the redraws, for each row alone; bold: 0 is
outside. "To known", "to explicit": the share of the distance from naive, with an interval by the jackknife. "Turns
over": the n from which on picks please less, by {fall:g} or more at the last n, by the mean of the redraws; "-": never.
"Length": the mean of the first visible feature of the pick, in its standard deviations (made embeddings have no
length: there it is a feature that goes with the quality). What methods see is said in table.md; `{lower}` are the lower
ends of intervals of 90%, and the default itself in redraws where its reward is a network, which has none."""


class BestOfN:
    """The best of n answers by each method, of one protocol.

    Args:
        results: The results of `run_redraws`.
        protocol: The protocol.

    Attributes:
        counts: The numbers of answers, n.
        pleases: (redraws, n) how often the pick pleases, for each method and number of signals.
        length: (redraws, n) the mean of the first feature of the pick.
        signals: The greatest number of signals.
    """

    def __init__(self, results: Results, protocol: str) -> None:
        mine = [result for result in sorted(results, key=lambda r: r["redraw"]) if result["protocol"] == protocol]
        counts = {tuple(result["best_of"]["n"]) for result in mine}
        self.protocol, self.counts = protocol, min(counts, key=len)
        self.pleases: dict[Key, np.ndarray] = {}
        self.length: dict[Key, np.ndarray] = {}
        self.signals = max(result["signals"] for result in mine)
        for key in dict.fromkeys((result["method"], result["signals"]) for result in mine):
            found = [result["best_of"] for result in mine if (result["method"], result["signals"]) == key]
            kept = len(self.counts)
            self.pleases[key] = np.array([one["pleases"][:kept] for one in found])
            self.length[key] = np.array([[some[0] for some in one["features"][:kept]] for one in found])

    def at(self, key: Key, count: int) -> np.ndarray:
        """(redraws,) how often the best of so many answers pleases."""
        return self.pleases[key][:, self.counts.index(count)]

    def turns_over(self, key: Key) -> int | None:
        """The number of answers from which on picks please less, by `FALL` or more in the end; None if they do not."""
        mean = self.pleases[key].mean(axis=0)
        best = int(np.argmax(mean))
        return self.counts[best + 1] if mean[best] - mean[-1] >= FALL else None

    def rows(self) -> list[list[str]]:
        """The header of the table, and the cells of each method."""
        shown = [count for count in SHOWN if count in self.counts]
        at = max(count for count in self.counts if count <= AT)
        head = ["signals", "method", *(f"pleases, n = {count}" for count in shown), "less naive", "to known"]
        rows = [[*head, "to explicit", "turns over", f"length, n = {at}"]]
        for key in self.pleases:
            naive = self.at((NAIVE.name, key[1] or self.signals), at)
            value = self.at(key, at)
            cells = [str(key[1] or "labels"), key[0], *(f"{self.at(key, count).mean():.3f}" for count in shown)]
            cells.append("" if key[0] == NAIVE.name else _difference(value - naive))
            for goal in ((KNOWN.name, key[1] or self.signals), (EXPLICIT.name, 0)):
                cells.append(share_with_interval(value, naive, self.at(goal, at), least=LEAST))
            cells.append(str(self.turns_over(key) or "-"))
            rows.append([*cells, f"{self.length[key][:, self.counts.index(at)].mean():+.2f}"])
        return rows


def _difference(difference: np.ndarray) -> str:
    """A mean over redraws with the half width of its interval, as a cell; bold where 0 is outside."""
    mean = difference.mean()
    if len(difference) < 2:
        return f"{mean:+.3f}"
    return signed_with_interval(mean, half_width(difference))


def by_protocol(results: Results) -> list[BestOfN]:
    """The best of n answers of each protocol."""
    return [BestOfN(results, protocol) for protocol in protocols_of(results)]


def markdown(results: Results, data: str, about: str = "") -> str:
    """A table for each protocol, and what the columns mean.

    Args:
        results: The results of `run_redraws`.
        data: The name of the data.
        about: A line that says how the logs were made.
    """
    parts = [
        f"## Best of n, {data}, protocol {table.protocol}\n\n{markdown_table(table.rows())}"
        for table in by_protocol(results)
    ]
    notes = NOTES.format(at=AT, level=1 - LEVEL, fall=FALL, lower=LOWER)
    return "\n\n".join([*parts, *filter(None, [about]), notes]) + "\n"


def _lines(signals: int) -> dict[Key, tuple[str, str, float]]:
    """The methods in the picture, each with a label, a colour and a line width."""
    grey, dark = "#8a8a8a", "#222222"
    lines = {
        (NAIVE.name, signals): ("clicks taken for labels", "#c0392b", 2.0),
        (PENALISED, signals): ("the same, length taken out", "#e08e79", 1.2),
        (PRODUCTS[0].name, signals): ("pairs, acted against silent", "#d9a441", 1.2),
        PUBLISHED_ROW: ("paper's form, one signal", "#9b6fb5", 1.2),
        (TOWERS.name, signals): ("two towers, texts", "#3a9b7a", 1.2),
        (DEFAULT, signals): ("irm_fast, embeddings alone", "#7fb2dd", 1.6),
        (DEFAULT_FEATURES, signals): ("irm_fast, texts (train --embeddings)", "#1f6fb2", 2.8),
        (KNOWN.name, signals): ("true propensities", grey, 1.2),
        (EXPLICIT.name, 0): ("true labels", dark, 1.2),
    }
    return {key: line for key, line in lines.items() if key in entrants(signals)}


def draw(results: Results, path: Path) -> Path | None:
    """Draw how often the best of n answers pleases, and how long it is, against n; bands go from redraw to redraw.

    Args:
        results: The results of `run_redraws`.
        path: The file to write, .png.

    Returns:
        The path; None where matplotlib is not installed.
    """
    if missing("matplotlib"):
        return None
    tables = by_protocol(results)
    figure = new_figure(11, 0.6 + 3.9 * len(tables))
    grid = figure.subplots(len(tables), 2, squeeze=False)
    for line, table in zip(grid, tables, strict=True):
        which = f", protocol {table.protocol}" if len(tables) > 1 else ""
        _panel(line[0], table, table.pleases, f"How often the best of n answers pleases{which}")
        line[0].set_ylabel("share of picks that please")
        _panel(line[1], table, table.length, "... and how long it is")
        line[1].set_ylabel("length of the pick, standard deviations")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return save(figure, path)


def _panel(axes: Axes, table: BestOfN, values: dict[Key, np.ndarray], title: str) -> None:
    for key, (label, colour, width) in _lines(table.signals).items():
        if key not in values:
            continue
        style = "--" if key[0] in (KNOWN.name, EXPLICIT.name) else "-"
        axes.plot(table.counts, values[key].mean(axis=0), style, color=colour, linewidth=width, label=label)
        low, high = values[key].min(axis=0), values[key].max(axis=0)
        axes.fill_between(table.counts, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(table.counts, [str(count) for count in table.counts])
    axes.set_xlabel("n: the best of so many answers is picked")
    axes.set_title(title, fontsize=10, loc="left")
    plain(axes)
