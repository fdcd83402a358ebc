"""The picture of a run: in each world, how far naive, the best peer and the estimator come, at each size of the log."""

from __future__ import annotations

from pathlib import Path

from irm_fast.common.extras import missing
from irm_fast.experiments.reproduce.methods import EXPLICIT, NAIVE
from irm_fast.experiments.reproduce.picks import AT
from irm_fast.experiments.worlds.methods import OURS, PEERS
from irm_fast.experiments.worlds.table import Results, Table, sizes_of
from irm_fast.publish.figures import new_figure, plain, save

LOOKS = {  # label: colour, mark, size
    "actions taken for labels": ("#c0392b", "o", 6),
    "the best of ten others in that world": ("#d9a441", "D", 5),
    "irm_fast": ("#1f6fb2", "o", 8),
    "true labels": ("#222222", "|", 11),
}


def draw(results: Results, path: Path) -> Path | None:
    """Draw how often the best of 16 answers pleases, a panel a size and a line a world.

    Args:
        results: The results of `run_worlds`.
        path: The file to write, .png.

    Returns:
        The path; None where matplotlib is not installed.
    """
    if missing("matplotlib"):
        return None
    sizes = sizes_of(results)
    worlds = Table(results, sizes[0]).worlds
    figure = new_figure(max(8.5, 2.5 + 3.2 * len(sizes)), 1.4 + 0.34 * len(worlds))
    panels = figure.subplots(1, len(sizes), sharey=True, sharex=True, squeeze=False)[0]
    for axes, rows in zip(panels, sizes, strict=True):
        table = Table(results, rows)
        for place, world in enumerate(worlds):
            best = table.best(world, "picks", PEERS)
            means = [table.mean(world, method, "picks") for method in (NAIVE.name, best, OURS, EXPLICIT.name)]
            axes.plot([means[0], means[2]], [place] * 2, color="#1f6fb2", linewidth=1, alpha=0.5)
            for (label, (colour, mark, size)), mean in zip(LOOKS.items(), means, strict=True):
                axes.plot(mean, place, mark, color=colour, markersize=size, label=label, linestyle="none")
        axes.set_title(f"{rows:,} rows", fontsize=10)
        plain(axes, "x")
    panels[0].set_yticks(range(len(worlds)), worlds)
    panels[0].set_ylim(len(worlds) - 0.5, -0.5)
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(LOOKS), frameon=False, fontsize=9)
    figure.suptitle(
        f"How often the best of {AT} answers by the reward pleases, in worlds that differ in one thing", fontsize=11
    )
    return save(figure, path)
