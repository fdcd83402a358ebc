"""The table and the pictures of a run: what a policy gets by each reward, and what it is driven to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from irm_fast.common.extras import missing
from irm_fast.experiments.downstream.rewards import EXPLICIT, KNOWN, NAIVE, OURS, PAIRS, PAPER, PENALISED, REWARDS
from irm_fast.experiments.report import FALL, LEAST, markdown_table, share_with_interval
from irm_fast.experiments.reproduce.picks import AT
from irm_fast.publish.figures import new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[dict[str, Any]]
LOOKS = {  # reward: label, colour, width of the line
    NAIVE: ("actions taken for labels", "#c0392b", 2.4),
    PENALISED: ("the same, length taken out", "#e08e79", 1.4),
    PAIRS: ("pairs, acted against silent (TRL)", "#d9a441", 1.4),
    PAPER: ("the paper's form, one signal", "#9b6fb5", 1.4),
    OURS: ("irm_fast", "#1f6fb2", 3.0),
    KNOWN: ("true propensities", "#8a8a8a", 1.4),
    EXPLICIT: ("true labels", "#222222", 1.4),
}
BAIT_TITLE = "... and how often they fish for an action (sentences of bait)"


class Picture(NamedTuple):
    """A picture of a run.

    Attributes:
        file: Its name.
        curve: The kind of curve, "policy" or "best of n".
        along: The value along which curves are drawn.
        axis: What this is.
        panels: For each panel the value, and the title.
    """

    file: str
    curve: str
    along: str
    axis: str
    panels: tuple[tuple[str, str], tuple[str, str]]


PICTURES = (
    Picture(
        *("downstream.png", "policy", "step", "steps of optimisation (GRPO)"),
        (("pleases", "A policy trained on the reward: how often its answers please"), ("bait", BAIT_TITLE)),
    ),
    Picture(
        *("divergence.png", "policy", "divergence", "divergence from the starting policy, nats an answer"),
        (("pleases", "How often the answers of the policy please"), ("acts", "... and how often anybody acts on them")),
    ),
    Picture(
        *("best_of_n.png", "best of n", "n", "answers of which the best by the reward is given"),
        (("pleases", "Best of n: how often its answers please"), ("bait", BAIT_TITLE)),
    ),
)
NOTES = """"Pleases": how often the answers of the policy please in truth, before and after, mean over {seeds} worlds;
"gain": the share of what explicit labels gain, with a 95% interval by the jackknife over the worlds; "best": the
highest point on the way; "at": its divergence from the starting policy, nats an answer; "turns over": the same where
the end is lower by {fall:g} or more, else "-"; "acts": how often anybody acts; "bait": sentences an answer that fish
for an action; "best of {at}": how often the best of so many answers of the starting policy pleases; "to known": the
share of the distance from naive to known propensities."""


class Curve:
    """One reward's points in all worlds.

    Args:
        points: The points of all curves.
        kind: "policy" or "best of n".
        reward: The reward.
    """

    def __init__(self, points: Points, kind: str, reward: str) -> None:
        mine = [point for point in points if point["curve"] == kind and point["reward"] == reward]
        self.seeds = sorted({point["seed"] for point in mine})
        self._by_seed = [[point for point in mine if point["seed"] == seed] for seed in self.seeds]

    def of(self, name: str) -> np.ndarray:
        """(seeds, points) of a value."""
        return np.array([[point[name] for point in points] for points in self._by_seed])


def markdown(points: Points) -> str:
    """The table, and what its columns mean."""
    seeds = len({point["seed"] for point in points})
    return f"{table(points)}\n\n{NOTES.format(seeds=seeds, fall=FALL, at=AT)}\n"


def table(points: Points) -> str:
    """The table of policies and of the best of n answers, in Markdown: a row a reward."""
    curves = {name: Curve(points, "policy", name) for name in REWARDS}
    picks = {name: Curve(points, "best of n", name) for name in REWARDS}
    goal = curves[EXPLICIT].of("pleases")
    head = ["reward", "pleases", "gain", "best", "at", "turns over", "acts", "bait", f"best of {AT}", "to known"]
    rows = [head]
    for name in REWARDS:
        curve = curves[name]
        pleases, moved = curve.of("pleases"), curve.of("divergence").mean(axis=0)
        mean = pleases.mean(axis=0)
        best = int(np.argmax(mean))
        at_n = picks[name].of("n")[0].tolist().index(AT)
        chosen = {one: picks[one].of("pleases")[:, at_n] for one in (name, NAIVE, KNOWN)}
        rows.append(
            [
                name,
                f"{mean[0]:.3f} to {mean[-1]:.3f}",
                share_with_interval(pleases[:, -1], pleases[:, 0], goal[:, -1], least=LEAST),
                f"{mean[best]:.3f}",
                f"{moved[best]:.1f}",
                f"{moved[best]:.1f}" if mean[best] - mean[-1] >= FALL else "-",
                f"{curve.of('acts').mean(axis=0)[-1]:.3f}",
                f"{curve.of('bait').mean(axis=0)[-1]:.1f}",
                f"{chosen[name].mean():.3f}",
                share_with_interval(chosen[name], chosen[NAIVE], chosen[KNOWN], least=LEAST),
            ]
        )
    return markdown_table(rows)


def draw(points: Points, folder: Path) -> list[Path]:
    """Draw what a policy's answers are worth and how far it is driven, on the way and by the best of n.

    Args:
        points: The points of all curves.
        folder: The folder that gets the files of `PICTURES`.

    Returns:
        The files; none where matplotlib is not installed.
    """
    if missing("matplotlib"):
        return []
    found = []
    for picture in PICTURES:
        figure = new_figure(10, 4.2)
        grid = figure.subplots(1, 2)
        for axes, (value, title) in zip(grid, picture.panels, strict=True):
            _lines(axes, points, picture.curve, picture.along, value)
            axes.set_xlabel(picture.axis)
            axes.set_title(title, fontsize=10, loc="left")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        found.append(save(figure, folder / picture.file))
    return found


def _lines(axes: Axes, points: Points, kind: str, along: str, value: str) -> None:
    for name, (label, colour, width) in LOOKS.items():
        curve = Curve(points, kind, name)
        x, values = curve.of(along).mean(axis=0), curve.of(value)
        style = "--" if name in (KNOWN, EXPLICIT) else "-"
        axes.plot(x, values.mean(axis=0), style, color=colour, linewidth=width, label=label)
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.08, linewidth=0)
    if along == "n":
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(int(n)) for n in x])
    plain(axes)
