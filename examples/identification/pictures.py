"""The pictures of docs/why/identification.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.special import expit

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from examples.identification.assumptions import signals_tied
from examples.identification.kinds import SWEEPS, context

CASES = {"context": context, "signals tied": signals_tied}
GREY = "0.5"
ONE_SIGNAL = "Two worlds with the same clicks and opposite rewards: a second action tells them apart"
CONTEXT = "Users, times and sessions move the scale, and little the ranking; passed to the fit they do so less"
TIED = "Signals that are tied mislead, and are found: the verdict of each log is beside its name"
NAIVE = "naive: any action"
STYLES = {  # shown as, colour, marker and line
    NAIVE: ("naive: any action", GREY, "s-"),
    "two-step (default)": ("two-step, embedding alone", "tab:blue", "o-"),
    "two-step, reads text features": ("two-step, text features too", "tab:blue", "^--"),
    "known propensities": ("known propensities", "tab:orange", "D-"),
    "explicit labels": ("explicit labels", "black", "v:"),
}


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Every picture whose numbers are there."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(one_signal(), folder / "identification-one-signal.png")
    if any(name.startswith("text") and name.endswith("rows") for name in results):
        _save(rise(results), folder / "identification-rise.png")
    if "context" in results:
        _save(who_when_where(results["context"]), folder / "identification-context.png")
    if "signals tied" in results:
        _save(tied(results["signals tied"]), folder / "identification-tied.png")


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)


def one_signal(rows: int = 200_000) -> plt.Figure:
    """Two worlds with preference and propensity exchanged; the clicks of both, and their clicks among copied rows."""
    rng, bins = np.random.default_rng(0), 15
    x, line = rng.uniform(-3, 3, rows), np.linspace(-3, 3, 100)
    place, middle = ((x + 3) * bins / 6).astype(int), -3 + 6 * (np.arange(bins) + 0.5) / bins
    figure, panels = plt.subplots(1, 4, figsize=(14, 3.8), sharex=True, sharey=True, layout="constrained")

    def rising(at: np.ndarray) -> np.ndarray:
        return expit(1.5 * at + 0.5)

    def falling(at: np.ndarray) -> np.ndarray:
        return expit(1 - 0.8 * at)

    worlds = (("A", rising, falling, "o", "black"), ("B", falling, rising, "x", "tab:red"))
    for axes, (name, preference, propensity, marker, colour) in zip(panels, worlds, strict=False):
        axes.plot(line, preference(line), color="tab:blue", linewidth=2, label="pleases: the reward")
        axes.plot(line, propensity(line), "--", color="tab:orange", linewidth=2, label="a pleased user clicks")
        axes.set_title(f"World {name}")
        pleased = rng.random(rows) < preference(x)
        click, copy = (pleased & (rng.random(rows) < chance) for chance in (propensity(x), 0.6))
        for panel, among in ((panels[2], np.ones(rows, bool)), (panels[3], copy)):
            share = np.bincount(place[among], click[among], bins) / np.bincount(place[among], minlength=bins)
            panel.plot(middle, share, marker, color=colour, label=f"world {name}", fillstyle="none", markersize=8)
    panels[0].set_ylabel("probability, share of rows")
    panels[2].set_title("Clicks in all rows: the same")
    panels[3].set_title("Clicks in rows that were copied:\nthe propensity, and so the world")
    figure.suptitle(ONE_SIGNAL)
    for axes in panels:
        axes.set(xlabel="a feature of the response", ylim=(0, 1.3), yticks=np.linspace(0, 1, 6))
        axes.legend(fontsize="small", loc="upper center")
    return figure


def rise(results: Mapping[str, Any]) -> plt.Figure:
    """AUROC and R2 on real text by the number of rows: mean and standard deviation over the redraws."""
    sizes = [case for name, case in results.items() if name.startswith("text") and name.endswith("rows")]
    sizes = sorted(sizes, key=lambda case: case[NAIVE][0]["rows"])
    rows = [case[NAIVE][0]["rows"] for case in sizes]
    both = [np.mean([redraw["coactions"] for redraw in case[NAIVE]]) for case in sizes]
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for axes, metric, label in zip(panels, ("auroc", "r2"), ("AUROC", "R2"), strict=True):
        for method, (shown, colour, style) in STYLES.items():
            values = [[redraw[metric] for redraw in case[method]] for case in sizes]
            mean, spread = [np.mean(redraws) for redraws in values], [np.std(redraws) for redraws in values]
            axes.errorbar(rows, mean, spread, fmt=style, color=colour, label=shown, capsize=2)
        axes.set(
            xscale="log", ylabel=f"{label} on clean preferences", xlabel="rows of the log (rows with both actions)"
        )
        axes.set_xticks(rows, [f"{n:,}\n({count:,.0f})" for n, count in zip(rows, both, strict=True)], fontsize="small")
        axes.minorticks_off()
        axes.grid(axis="y", alpha=0.3)
    panels[1].axhline(0, color="black", linewidth=0.8)
    panels[0].legend(fontsize="small")
    return figure


def who_when_where(found: Mapping[str, Any]) -> plt.Figure:
    """Mean preference and AUROC by the size of each trouble, without and with the context: mean and standard error."""
    figure, panels = plt.subplots(2, 3, figsize=(13, 6.4), sharex="col", sharey="row", layout="constrained")
    styles = {"plain": ("context not passed", GREY, "s-"), "passed": ("context passed", "tab:blue", "o-")}
    for column, (title, by_fit) in zip(panels.T, found.items(), strict=True):
        for axes, metric in zip(column, ("mean_g", "auroc"), strict=True):
            for fit, by_size in by_fit.items():
                label, colour, style = styles[fit]
                values = np.array([[redraw[metric] for redraw in redraws] for redraws in by_size.values()])
                error = values.std(axis=1) / np.sqrt(max(1, values.shape[1] - 1))
                sizes = [float(size) for size in by_size]
                axes.errorbar(sizes, values.mean(axis=1), error, fmt=style, color=colour, label=label, capsize=3)
            axes.grid(axis="y", alpha=0.3)
        column[0].axhline(0.5, color="black", linestyle="--", linewidth=1, label="truth")
        column[0].set(title=title, ylim=(0, 0.75))
        column[1].set_xlabel(SWEEPS[title].axis)
    panels[0, 0].set_ylabel("mean preference as fitted")
    panels[1, 0].set_ylabel("AUROC on clean preferences")
    panels[0, 0].legend(fontsize="small", loc="lower left")
    figure.suptitle(CONTEXT)
    return figure


def tied(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> plt.Figure:
    """AUROC and mean preference of two signals that are tied in some way, a dot a redraw, beside the naive AUROC."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True, layout="constrained")
    for place, redraws in enumerate(found.values()):
        series = (
            ("naive_auroc", 0, "s", GREY, 0.18),
            ("auroc", 0, "o", "tab:blue", -0.18),
            ("mean_g", 1, "o", "tab:blue", 0),
        )
        for key, panel, marker, colour, shift in series:
            values = [redraw[key] for redraw in redraws]
            label = {"naive_auroc": "naive: any action", "auroc": "two-step"}.get(key) if not place else None
            panels[panel].plot(values, [place + shift] * len(values), marker, color=colour, alpha=0.6, label=label)
    kinds = ["\n".join([how, _verdicts(redraws)]) for how, redraws in found.items()]
    panels[0].set_yticks(range(len(found)), kinds)
    panels[0].set(xlabel="AUROC on clean preferences", ylim=(len(found) - 0.5, -0.5))
    figure.suptitle(TIED)
    panels[1].set(xlabel="mean preference as fitted", xlim=(0, 1.02))
    panels[1].axvline(0.5, color="black", linestyle="--", linewidth=1, label="truth")
    for axes in panels:
        axes.legend(fontsize="small")
        axes.grid(axis="x", alpha=0.3)
    return figure


def _verdicts(redraws: Sequence[Mapping[str, Any]]) -> str:
    """How often each verdict was given, the most frequent first."""
    kinds = [redraw["verdict"] for redraw in redraws]
    return ", ".join(f"{kind} {kinds.count(kind)}/{len(kinds)}" for kind in sorted(set(kinds), key=kinds.count)[::-1])
