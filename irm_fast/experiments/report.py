"""Tables and pictures that compare methods over several seeds or redraws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from irm_fast.common.extras import missing
from irm_fast.publish.figures import new_figure, plain, save

Results = Sequence[Mapping[str, Mapping[str, float]]]  # seed -> method -> metric -> value
ByMethod = Mapping[str, Sequence[Mapping[str, float]]]  # method -> seed -> metric -> value
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
LEVEL = 0.05  # of intervals: the chance of each to miss
FALL = 0.01  # less than this below its best, a curve has not turned over
LEAST = 0.01  # the smallest distance of which shares are worth giving


def comparison_table(results: Results) -> str:
    """The table of the demo, in Markdown: a row a method, means over the seeds, with their standard deviation.

    The last column is the share of the AUROC distance from the naive classifier on the same signals to explicit labels
    that the method closes; "-" where that distance does not stand out of the noise between seeds.

    Args:
        results: For each seed the metrics of each method.
    """
    by_method = {method: [seed[method] for seed in results] for method in results[0]}
    return method_table(by_method, COLUMNS, last="distance closed", naive_of=_naive_of, goal=GOAL)


def _naive_of(method: str) -> str:
    return "naive, 1 signal" if method.endswith("1 signal") else "naive, 2 signals"


def method_table(
    results: ByMethod, columns: Mapping[str, str], *, last: str, naive_of: Callable[[str], str], goal: str
) -> str:
    """Results as a Markdown table with a row for each method.

    Args:
        results: For each method the metrics of each seed.
        columns: The metrics to show, with their headings.
        last: The heading of the last column: the share of the AUROC distance to the goal that a method closes.
        naive_of: The method from which the distance of a method is measured.
        goal: The method to which it is measured.
    """
    rows = [["method", *columns.values(), last]]
    auroc = {method: np.array([seed["auroc"] for seed in seeds]) for method, seeds in results.items()}
    for method, seeds in results.items():
        cells = [mean_and_deviation([seed[metric] for seed in seeds]) for metric in columns]
        share = share_closed(auroc[method], auroc[naive_of(method)], auroc[goal], least=LEAST)
        rows.append([method, *cells, percent(share)])
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells, the first of them the header, as Markdown with columns of one width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def mean_and_deviation(values: Sequence[float]) -> str:
    """The mean of some values and, of several, their standard deviation, as a cell of a table."""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def share_closed(value: np.ndarray, low: np.ndarray, high: np.ndarray, *, least: float) -> float:
    """The share of the mean distance from `low` to `high` that `value` closes.

    Args:
        value: (seeds,) of a method.
        low: (seeds,) of the method from which the distance is measured.
        high: (seeds,) of the method to which it is measured.
        least: The smallest distance of which a share is worth giving.

    Returns:
        The share, below 0 and above 1 for a value outside; NaN where the mean distance is not above `least` and twice
        its standard error.
    """
    distance = high - low
    noise = 2 * distance.std(ddof=1) / np.sqrt(len(distance)) if len(distance) > 1 else 0.0
    return float((value - low).mean() / distance.mean()) if distance.mean() > max(noise, least) else float("nan")


def half_width(differences: np.ndarray, level: float = LEVEL) -> float:
    """Half the width of the interval of a mean by Student's t; NaN of fewer than two values.

    Args:
        differences: (seeds,) values.
        level: The chance of the interval to miss.
    """
    from scipy.stats import t

    if (count := len(differences)) < 2:
        return float("nan")
    return float(t.ppf(1 - level / 2, count - 1) * differences.std(ddof=1) / np.sqrt(count))


def signed_with_interval(mean: float, half: float) -> str:
    """A difference and half the width of its interval, as a cell of a table; bold where 0 is outside."""
    text = f"{mean:+.3f} ± {half:.3f}"
    return f"**{text}**" if abs(mean) > half else text


def share_with_interval(value: np.ndarray, low: np.ndarray, high: np.ndarray, *, least: float) -> str:
    """`share_closed` as a cell of a table, with the half width of its interval by the jackknife over the seeds."""
    from scipy.stats import t

    share, count = share_closed(value, low, high, least=least), len(value)
    if np.isnan(share) or count < 2 or np.array_equal(value, low) or np.array_equal(value, high):
        return percent(share)
    gain, distance = value - low, high - low
    without = (gain.sum() - gain) / (distance.sum() - distance)  # the share of all seeds but one
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    return f"{share:.0%} ± {100 * t.ppf(1 - LEVEL / 2, count - 1) * error:.0f}"


def percent(share: float) -> str:
    """A share as a cell of a table; "-" for NaN."""
    return "-" if np.isnan(share) else f"{share:.0%}"


def draw_comparison(results: Results, path: Path) -> Path | None:
    """Draw AUROC and calibration error of every method: a dot a seed, and a bar at the mean.

    Args:
        results: For each seed the metrics of each method.
        path: The file to write, .png.

    Returns:
        The path; None where matplotlib is not installed.
    """
    if missing("matplotlib"):
        return None
    figure = new_figure(9, 3.2)
    methods = list(results[0])
    panels = (
        ("auroc", "AUROC against true preferences (right is better)"),
        ("ece", "calibration error (left is better)"),
    )
    for axes, (metric, label) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for place, method in enumerate(methods):
            values = [seed[method][metric] for seed in results]
            colour = "tab:green" if method.startswith("implicit") else "tab:grey"
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.6)
            axes.plot([np.mean(values)] * 2, [place - 0.25, place + 0.25], color=colour, linewidth=2)
            axes.annotate(f"{np.mean(values):.3f}", (np.mean(values), place - 0.3), ha="center", fontsize=8)
        axes.set_xlabel(label)
        plain(axes, "x")
        axes.set_yticks(range(len(methods)), methods)
        axes.margins(x=0.12, y=0.12)
    figure.axes[0].invert_yaxis()
    figure.suptitle("How near actions come to labels: a dot a seed, a bar at the mean", fontsize=11)
    return save(figure, path)
