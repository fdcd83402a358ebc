"""What a table of methods claims."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.stats import t

from irm_fast.experiments.reproduce.methods import DEFAULT, EXPLICIT, KNOWN, NAIVE
from irm_fast.experiments.reproduce.picture import draw, gains
from irm_fast.experiments.reproduce.table import PUBLISHED_ROW, Table, markdown, write_csv

AUROC = {
    (NAIVE.name, 1): [0.70, 0.71, 0.69, 0.70, 0.70],
    PUBLISHED_ROW: [0.75, 0.76, 0.74, 0.75, 0.75],
    (DEFAULT, 1): [0.74, 0.77, 0.73, 0.76, 0.75],
    (KNOWN.name, 1): [0.80, 0.81, 0.79, 0.80, 0.80],
    (EXPLICIT.name, 0): [0.90, 0.91, 0.89, 0.90, 0.90],
}


def results(auroc=None, protocol="rating"):
    made = []
    for (name, signals), values in (auroc or AUROC).items():
        for redraw, value in enumerate(values):
            metrics = {"mae": 1 - value, "rmse": 0.4, "r2": value / 2, "auroc": value, "nll": 0.5, "ece": 0.1, "n": 9}
            made.append({"protocol": protocol, "redraw": redraw, "method": name, "signals": signals, "candidates": 9})
            made[-1] |= {"candidate": "network", "seconds": 1.0, "raw": metrics, "calibrated": metrics}
    return made


def test_differences_are_paired_and_corrected_for_their_number():
    table = Table(results(), "rating")
    assert table.comparisons == 2 * 4
    mean, half = table.difference(PUBLISHED_ROW, "raw auroc")
    difference = np.array([0.01, -0.01, 0.01, -0.01, 0.0])
    assert mean == pytest.approx(difference.mean(), abs=1e-12)
    assert half == pytest.approx(t.ppf(1 - 0.05 / 16, 4) * difference.std(ddof=1) / 5**0.5)
    assert half > 1.5 * t.ppf(1 - 0.025, 4) * difference.std(ddof=1) / 5**0.5  # wider than that of a single one
    shuffled = [result | {"redraw": (result["redraw"] * 3) % 5} for result in results()][::-1]
    assert Table(shuffled, "rating").difference(PUBLISHED_ROW, "raw auroc")[1] == pytest.approx(half)


def test_shares_of_the_distance():
    table = Table(results(), "rating")
    assert table.share(PUBLISHED_ROW, KNOWN.name) == pytest.approx(0.5)
    assert table.share(PUBLISHED_ROW, EXPLICIT.name) == pytest.approx(0.25)
    assert table.share((EXPLICIT.name, 0), KNOWN.name) == pytest.approx(2.0)
    near = AUROC | {(KNOWN.name, 1): [0.70, 0.72, 0.69, 0.70, 0.70]}
    assert np.isnan(Table(results(near), "rating").share(PUBLISHED_ROW, KNOWN.name))  # lost in the noise


def test_published_numbers_stand_apart():
    plain, hub = markdown(results(), "ratings.jsonl"), markdown(results(), "hs")
    assert "published" not in plain
    header, *lines = [line for line in hub.splitlines() if line.startswith("|")]
    assert header.rstrip(" |").endswith("MAE, published")
    cells = {line.split("|")[2].strip(): line.split("|")[-2].strip() for line in lines[1:]}
    assert cells.pop(PUBLISHED_ROW[0]) == "0.2856" and set(cells.values()) == {"-"}
    feature = markdown(results(protocol="feature"), "hs")
    assert "0.2856" not in feature  # published for the rating protocol


def test_what_stands_out_is_bold():
    sure = AUROC | {(NAIVE.name, 1): [value - 0.1 for value in AUROC[DEFAULT, 1]]}
    table = markdown(results(sure), "x")
    assert "**-0.100 ± 0.000**" in table and "| +0.000 ± " in table
    assert "8 of them" in table
    few = markdown([result for result in results(sure) if result["redraw"] < 4], "x")
    assert "| -0.100 " in few and "±" not in few  # four redraws say too little of their spread


def test_gains_are_those_over_naive_and_over_the_best_published_method():
    more = AUROC | {("uPU", 1): [0.73, 0.72, 0.74, 0.73, 0.73], ("SAR-EM", 1): [0.72] * 5}
    over_naive, over_best = gains(results(more))
    assert (over_naive.log, over_naive.rival, over_best.rival) == ("rating, 1 signal", NAIVE.name, "uPU")
    assert over_naive.mean == pytest.approx(0.05) and over_best.mean == pytest.approx(0.02)
    assert over_best.half == Table(results(more), "rating").difference(("uPU", 1), "raw auroc")[1]


def test_csv_and_picture(tmp_path):
    write_csv(results(), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25 and float(rows[0]["raw_auroc"]) == 0.70 and rows[0]["method"] == NAIVE.name
    assert draw(results(), tmp_path / "picture.png").stat().st_size > 10_000
