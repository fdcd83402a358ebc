"""The table of all redraws: means, paired differences with simultaneous intervals, and shares of a distance."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.data.writing.whole import whole_file
from irm_fast.experiments.report import LEVEL, half_width, markdown_table, percent, share_closed, signed_with_interval
from irm_fast.experiments.reproduce.methods import DEFAULT, EXPLICIT, ITEMS, KNOWN, LOWER, NAIVE, PENALISED

Results = Sequence[Mapping[str, Any]]
Key = tuple[str, int]
METRICS = ("auroc", "mae", "rmse", "r2")
FEWEST = 5  # redraws for intervals to be worth printing
LEAST_AUROC = 0.005  # the smallest distance of which shares are worth giving; elsewhere `report.LEAST`
# Mean absolute errors of ImplicitRM as its paper prints them (arXiv:2603.23184).
PUBLISHED_MAE = {"hs": 0.2856, "ufb": 0.1961, "saferlhf": 0.1053}
PUBLISHED_ROW = ("stratified, current (paper)", 1)
NOTES = """AUROC, MAE, RMSE, R2: of the clean test set, mean over the redraws. "cal.": after one slope and shift, those
of the greatest implicit likelihood on held-out rows under the propensities that `{default}` estimates. They are
the same for every method, and wrong where these are: with one signal whose propensity is not constant.
`{default}` as fitted has been through it already.

"AUROC - default", "R2 cal. - default": paired difference to `{default}` on the same signals, of explicit labels
to that on {signals}. Intervals of Student's t over the redraws, from 5 on, together right in {level:.0%} of such tables
(Bonferroni, {count} of them); bold: 0 is outside. They speak of other splits and actions of these responses, not of
other responses. "to known", "to explicit": share of the AUROC distance from naive on the same signals; "-": lost in
the noise.

"pairs": each row that acted against a silent one of its prompt, or of another; KTO: its value function around 0;
"{penalised}": less what the reward owes to the first visible feature. `{lower}`: lower ends of intervals of 90%
(the default itself where its reward is a network).

Baselines on 2 signals see whether any of the two acted. Each method chose one of {candidates} candidates by its own
criterion on held-out rows of the log, explicit labels alone by clean ones; `{default}` chose likewise, and by
held-out actions the design and the prior of its propensities too. IPS and DR take propensities from the popularity of
{items} clusters of embeddings, which are the items of ReCRec-I too; uPU and nnPU a class prior by best bin estimation.

"marginal": the likelihood, with a propensity that is constant, linear in the visible features, or in the embedding
("hidden"); "stratified": the paper's loss. SAR-EM and both stratified forms have the stationary points of the marginal
form with a hidden propensity, ReCRec those of half the reward's prior; linear heads are fitted to these: rows that
agree are one estimator.

"+ features": propensities of the embedding and of the visible features. "two towers": whether any signal acted, by the
sum of two logits, that of the embedding, which is the reward, and that of the visible features.

Protocol feature: what reads the features is given the very ones that the propensity is logistic in. Protocol rating:
"known" is the mean propensity of preferred rows, and no bound."""
PUBLISHED_NOTE = """"MAE, published": of ImplicitRM as its paper prints it, on other embeddings and draws, selected on
clean labels. It is not reproduced here."""


def protocols_of(results: Results) -> list[str]:
    """The protocols of some results, in the order of their first appearance."""
    return list(dict.fromkeys(result["protocol"] for result in results))


class Table:
    """The results of one protocol.

    Args:
        results: The results of `run_redraws`.
        protocol: The protocol.

    Attributes:
        values: (redraws,) values of each metric, raw and calibrated, for each method and number of signals.
        signals: The greatest number of signals.
        redraws: The number of redraws.
        candidates: The number of candidates from which each method chose.
    """

    def __init__(self, results: Results, protocol: str) -> None:
        self.values: dict[Key, dict[str, np.ndarray]] = {}
        found: dict[Key, list[Mapping[str, Any]]] = {}
        for result in sorted(results, key=lambda result: result["redraw"]):
            if result["protocol"] == protocol:
                found.setdefault((result["method"], result["signals"]), []).append(result)
        for key, redraws in found.items():
            self.values[key] = {
                f"{kind} {name}": np.array([redraw[kind][name] for redraw in redraws])
                for kind in ("raw", "calibrated")
                for name in METRICS
            }
        self.protocol, self.signals = protocol, max(signals for _, signals in found)
        self.redraws = len(next(iter(found.values())))
        self.candidates = max(result["candidates"] for result in results)

    @property
    def comparisons(self) -> int:
        """Intervals in the table: two of every method but the default itself."""
        return 2 * sum(key[0] != DEFAULT for key in self.values)

    def difference(self, key: Key, metric: str) -> tuple[float, float]:
        """Mean paired difference to the default on the same signals, and half the width of its corrected interval."""
        difference = self.values[key][metric] - self.values[self.default(key)][metric]
        return float(difference.mean()), half_width(difference, LEVEL / self.comparisons)

    def default(self, key: Key) -> Key:
        """The method with which a method is compared."""
        return DEFAULT, key[1] or self.signals

    def share(self, key: Key, goal: str) -> float:
        """The share of the AUROC distance from naive to the goal; NaN if that is under two standard errors or tiny."""
        signals = key[1] or self.signals
        value, low, high = (
            self.values[one]["raw auroc"]
            for one in (key, (NAIVE.name, signals), (goal, 0 if goal == EXPLICIT.name else signals))
        )
        return share_closed(value, low, high, least=LEAST_AUROC)

    def rows(self, published: float | None) -> list[list[str]]:
        """The header of the table, and the cells of each method.

        Args:
            published: The mean absolute error that the paper prints for these data; None if it has none.
        """
        head = ["signals", "method", "AUROC", "MAE", "RMSE", "R2", "MAE cal.", "RMSE cal.", "R2 cal."]
        head += ["AUROC - default", "R2 cal. - default", "to known", "to explicit"]
        rows = [head + (["MAE, published"] if published is not None else [])]
        for key, values in self.values.items():
            cells = [str(key[1] or "labels"), key[0], *(f"{values[f'raw {name}'].mean():.3f}" for name in METRICS)]
            cells += [f"{values[f'calibrated {name}'].mean():.3f}" for name in METRICS[1:]]
            own = key[0] == DEFAULT
            cells += ["" if own else self._interval(key, metric) for metric in ("raw auroc", "calibrated r2")]
            cells += [percent(self.share(key, goal)) for goal in (KNOWN.name, EXPLICIT.name)]
            if published is not None:
                cells.append(f"{published:.4f}" if key == PUBLISHED_ROW and self.protocol == "rating" else "-")
            rows.append(cells)
        return rows

    def _interval(self, key: Key, metric: str) -> str:
        mean, half = self.difference(key, metric)
        if self.redraws < FEWEST:
            return f"{mean:+.3f}"
        return signed_with_interval(mean, half)


def markdown(results: Results, data: str, about: str = "") -> str:
    """A table for each protocol, and what the columns mean.

    Args:
        results: The results of `run_redraws`.
        data: The name of the data.
        about: A line that says how the logs were made.
    """
    published = PUBLISHED_MAE.get(data)
    tables = [Table(results, protocol) for protocol in protocols_of(results)]
    parts = [
        f"## {data}, protocol {table.protocol}, {table.redraws} redraws\n\n{markdown_table(table.rows(published))}"
        for table in tables
    ]
    notes = NOTES.format(
        default=DEFAULT,
        penalised=PENALISED,
        lower=LOWER,
        signals=tables[-1].signals,
        level=1 - LEVEL,
        count=tables[-1].comparisons,
        candidates=tables[-1].candidates,
        items=ITEMS,
    )
    if about:
        parts.append(about)
    parts.append(notes)
    if published is not None:
        parts.append(PUBLISHED_NOTE)
    return "\n\n".join(parts) + "\n"


def write_csv(results: Results, path: Path) -> None:
    """Write a line for each fit: protocol, redraw, method, signals, all metrics, candidate, seconds."""
    with whole_file(path, newline="") as file:
        writer = csv.writer(file)
        kinds = [(kind, name) for kind in ("raw", "calibrated") for name in results[0]["raw"]]
        own = ("protocol", "redraw", "method", "signals", "candidates", "candidate", "seconds")
        writer.writerow([*own, *(f"{kind}_{name}" for kind, name in kinds)])
        for result in results:
            writer.writerow([*(result[name] for name in own), *(result[kind][name] for kind, name in kinds)])
