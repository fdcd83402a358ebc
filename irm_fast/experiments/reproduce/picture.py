"""The picture of all redraws: what the default gains over naive, and over the best published method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from irm_fast.common.extras import missing
from irm_fast.experiments.reproduce.methods import BASELINES, DEFAULT, NAIVE
from irm_fast.experiments.reproduce.table import Results, Table, protocols_of
from irm_fast.publish.figures import new_figure, plain, save

PUBLISHED = tuple(method.name for method in BASELINES if method is not NAIVE)
TITLE = "What the default gains in AUROC over other methods (right of 0: the default is ahead)"


class Gain(NamedTuple):
    """How far the default is ahead of another method.

    Attributes:
        log: The log on which they were compared.
        rival: The other method.
        best: Whether it is the best published one; else it is naive.
        mean: The mean difference in AUROC over the redraws, above 0 where the default is ahead.
        half: Half the width of its interval, corrected for the number of comparisons.
    """

    log: str
    rival: str
    best: bool
    mean: float
    half: float


def gains(results: Results) -> list[Gain]:
    """The gains of the default, for each protocol and number of signals.

    Args:
        results: The results of `run_redraws`.
    """
    found = []
    for protocol in protocols_of(results):
        table = Table(results, protocol)
        for signals in sorted({count for name, count in table.values if name == DEFAULT}):
            log = f"{protocol}, {signals} signal{'s' if signals > 1 else ''}"
            auroc = {
                name: table.values[name, signals]["raw auroc"].mean()
                for name in PUBLISHED
                if (name, signals) in table.values
            }
            rivals = [(NAIVE.name, False), *((name, True) for name in sorted(auroc, key=lambda name: -auroc[name])[:1])]
            for rival, best in rivals:
                mean, half = table.difference((rival, signals), "raw auroc")
                found.append(Gain(log, rival, best, -mean, half))
    return found


def draw(results: Results, path: Path) -> Path | None:
    """Draw what the default gains over naive, and over the best published method, with intervals.

    Args:
        results: The results of `run_redraws`.
        path: The file to write, .png.

    Returns:
        The path; None where matplotlib is not installed.
    """
    return draw_gains(gains(results), path)


def draw_gains(found: Sequence[Gain], path: Path, title: str = TITLE) -> Path | None:
    """Draw gains as dots with intervals, two for each log.

    Args:
        found: The gains.
        path: The file to write, .png.
        title: The title of the picture.

    Returns:
        The path; None where matplotlib is not installed.
    """
    if missing("matplotlib"):
        return None
    logs = list(dict.fromkeys(gain.log for gain in found))
    figure = new_figure(9, 1.5 + 0.55 * len(logs))
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=1)
    for gain in found:
        place = logs.index(gain.log) + (0.17 if gain.best else -0.17)
        colour = "tab:green" if gain.best else "tab:grey"
        label = "over the best published method, which is named" if gain.best else "over naive: any action is a label"
        axes.errorbar(gain.mean, place, xerr=gain.half, fmt="o", color=colour, capsize=3, label=label)
        if gain.best:
            axes.annotate(
                gain.rival, (gain.mean + gain.half, place), (6, 0), textcoords="offset points", va="center", fontsize=8
            )
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    axes.set_yticks(range(len(logs)), logs)
    axes.set_ylim(len(logs) - 0.5, -0.5)
    axes.margins(x=0.2)
    axes.set_xlabel("AUROC of the default less that of the other method, on labels that none of them saw")
    plain(axes, "x")
    figure.suptitle(title, fontsize=11)
    return save(figure, path)
