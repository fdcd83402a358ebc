"""The tables of a run: every method in every world, and how far the estimator is ahead or behind, with intervals."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from irm_fast.data.writing.whole import whole_file
from irm_fast.experiments.report import LEVEL, half_width, markdown_table, signed_with_interval
from irm_fast.experiments.reproduce.methods import NAIVE
from irm_fast.experiments.reproduce.picks import AT
from irm_fast.experiments.worlds.methods import (
    ALONE,
    BOUNDS,
    LOWER_ENDS,
    METHODS,
    OURS,
    PAPER,
    PEERS,
    TOLD,
    WITH_FEATURES,
)

Results = Sequence[Mapping[str, Any]]
MEAN = "mean of all worlds"
METRICS = {"picks": f"how often the best of {AT} answers pleases", "auroc": "AUROC of what pleases"}
LEARNED = (*PEERS, OURS)  # what somebody with the log alone could choose
NOTES = """Made text: see `irm_fast/experiments/worlds`. Means over the redraws, which have texts, users and logs of
their own and serve all worlds; every world differs from the base in what its name says. "acts": how often each signal
acts. The {at} answers are drawn from the whole test set, to whatever question. Bold: the best of the methods that
learn from the log alone, `{ours}` and what stands left of it, and those that are not behind it by more than the
interval (paired, Student's t over the redraws, {level:.0%}, each by itself).

`{ours}`, "two towers" and peers with "{features}" read visible features of the text too, which hold what moves these
users in most worlds, and `{ours}` names of users and sessions. Where no co-actions show what features draw, it does not
read them, and takes propensities for constant. "{alone}": without features; "{lower}": of its 90% intervals (where the
reward is a network, which has none, itself); "{told}": of the rate of misclicks, of the funnel, or, where few rows or
none hold several actions, that visible features alone draw actions, with these.

"two towers" explains the actions by the sum of two logits: that of the embedding, which is the reward, and that of the
features. Pairs are of one question where its other answers are in the batch. "{paper}": its loss, on both signals; the
others see whether any signal acted. The bounds know the true propensities, misclicks and the funnel, but not who
rewards flattery, or the labels.

What `{ours}` says: verdicts, the chosen context and linear rewards with the number of redraws; mean propensities and
preferences beside the true ones, in a funnel the propensity of both signals."""


class Gain(NamedTuple):
    """How far the estimator is ahead of another method in a world, at a size.

    Attributes:
        rival: The other method.
        mean: The mean paired difference over the redraws, above 0 where the estimator is ahead.
        half: Half the width of its interval.
    """

    rival: str
    mean: float
    half: float


class Table:
    """The results of all worlds at one size of the log.

    Args:
        results: The results of `run_worlds`.
        rows: The size.

    Attributes:
        worlds: The worlds, in the order of the run.
        redraws: The number of redraws of each world.
    """

    def __init__(self, results: Results, rows: int) -> None:
        mine = [result for result in results if result["rows"] == rows]
        self.worlds = list(dict.fromkeys(result["world"] for result in mine))
        self._of = {world: [result for result in mine if result["world"] == world] for world in self.worlds}
        self.redraws = len(mine) // len(self.worlds)

    def said(self, world: str, name: str) -> list[Any]:
        """What the estimator says of itself, of each redraw; the names are those of `Entrants.said`."""
        return [result["said"][name] for result in self._of[world]]

    def acts(self, world: str) -> np.ndarray:
        """(K,) how often each signal acts."""
        acts: np.ndarray = np.mean([result["acts"] for result in self._of[world]], axis=0)
        return acts

    def values(self, world: str, method: str, metric: str) -> np.ndarray | None:
        """(redraws,) of a method, for `MEAN` the mean of its values; None where it does not differ from another."""
        if world == MEAN:
            each = [self.values(one, method, metric) for one in self.worlds]
            return None if any(values is None for values in each) else np.mean(each, axis=0)  # type: ignore[arg-type]
        found = [result["methods"][method][metric] for result in self._of[world] if method in result["methods"]]
        return np.array(found) if found else None

    def mean(self, world: str, method: str, metric: str) -> float:
        """The mean over the redraws; NaN where there is none."""
        values = self.values(world, method, metric)
        return float("nan") if values is None else float(values.mean())

    def best(self, world: str, metric: str, methods: Sequence[str]) -> str:
        """Which of some methods has the greatest mean."""
        return max(methods, key=lambda method: self.mean(world, method, metric))

    def gain(self, world: str, metric: str, rival: str, method: str = OURS) -> Gain:
        """How far a method is ahead of another."""
        mine, other = self.values(world, method, metric), self.values(world, rival, metric)
        assert mine is not None and other is not None
        return Gain(rival, float((mine - other).mean()), half_width(mine - other))

    def worth_it(self, world: str, metric: str) -> list[str]:
        """The best of the methods that learn from the log alone, and those not behind it by more than the interval."""
        best = self.best(world, metric, LEARNED)
        gains = {method: self.gain(world, metric, method, best) for method in LEARNED}
        return [method for method, gain in gains.items() if method == best or gain.mean <= gain.half]


def sizes_of(results: Results) -> list[int]:
    """The sizes of the logs, in rising order."""
    return sorted({result["rows"] for result in results})


def markdown(results: Results) -> str:
    """All tables, and what they mean.

    Args:
        results: The results of `run_worlds`.
    """
    tables = {rows: Table(results, rows) for rows in sizes_of(results)}
    parts = []
    for metric, says in METRICS.items():
        parts += [f"## {OURS} against others: {says}\n\n{_ahead(tables, metric)}"]
        parts += [
            f"### {rows:,} rows, {table.redraws} redraws: {says}\n\n{_all_methods(table, metric)}"
            for rows, table in tables.items()
        ]
    parts += [f"### {rows:,} rows: what {OURS} says of itself\n\n{_said(table)}" for rows, table in tables.items()]
    names = {
        "at": AT,
        "ours": OURS,
        "alone": ALONE,
        "lower": LOWER_ENDS,
        "told": TOLD,
        "paper": PAPER,
        "features": WITH_FEATURES.strip(", "),
    }
    return "\n\n".join([*parts, NOTES.format(level=1 - LEVEL, **names)]) + "\n"


def _all_methods(table: Table, metric: str) -> str:
    rows = [["world", "acts", *METHODS]]
    for world in (*table.worlds, MEAN):
        bold = table.worth_it(world, metric)
        cells = [world, "" if world == MEAN else " ".join(f"{share:.3f}" for share in table.acts(world))]
        for method in METHODS:
            mean = table.mean(world, method, metric)
            text = "" if np.isnan(mean) else f"{mean:.3f}"
            cells.append(f"**{text}**" if method in bold else text)
        rows.append(cells)
    return markdown_table(rows)


def _said(table: Table) -> str:
    """Verdicts and choices with the number of redraws, and the mean levels that were learned beside the true ones."""
    rows = [["world", "ranking", "scale", "context", "linear", "propensity", "true", "preference", "true"]]
    for world in table.worlds:
        context = [" ".join(names) or "none" for names in table.said(world, "context")]
        counted = [_counted(table.said(world, "ranking")), _counted(table.said(world, "scale")), _counted(context)]
        linear = f"{sum(table.said(world, 'is_linear'))} of {len(context)}"
        means = [
            " ".join(f"{mean:.2f}" for mean in np.atleast_1d(np.mean(table.said(world, name), axis=0)))
            for name in ("propensity", "true_propensity", "preference", "true_preference")
        ]
        rows.append([world, *counted, linear, *means])
    return markdown_table(rows)


def _counted(names: Sequence[str]) -> str:
    """Each name with how often it comes, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())


def _ahead(tables: Mapping[int, Table], metric: str) -> str:
    """How far the estimator is ahead of naive, and of the best of its peers, at each size."""
    head = ["world"]
    for rows in tables:
        head += [f"{rows:,}: over naive", "over the best peer"]
    lines = [head]
    for world in (*next(iter(tables.values())).worlds, MEAN):
        cells = [world]
        for table in tables.values():
            over, best = (table.gain(world, metric, rival) for rival in (NAIVE.name, table.best(world, metric, PEERS)))
            cells += [
                signed_with_interval(over.mean, over.half),
                f"{signed_with_interval(best.mean, best.half)} {best.rival}",
            ]
        lines.append(cells)
    return markdown_table(lines)


def write_csv(results: Results, path: Path) -> None:
    """Write a line for each fit: world, rows, redraw, method, and what it came to."""
    with whole_file(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["world", "rows", "redraw", "method", "bound", *METRICS, "seconds"])
        for result in results:
            own = [result[name] for name in ("world", "rows", "redraw")]
            for method, found in result["methods"].items():
                measured = [found[name] for name in (*METRICS, "seconds")]
                writer.writerow([*own, method, int(method in BOUNDS), *measured])
