"""The table and the pictures of curves whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from irm_fast.experiments.downstream.report import Curve, draw, markdown, table
from irm_fast.experiments.downstream.rewards import (
    EXPLICIT,
    KNOWN,
    NAIVE,
    OURS,
    PAIRS,
    PAPER,
    PENALISED,
    REWARDS,
)
from irm_fast.experiments.report import share_with_interval
from tests.experiments.downstream.points import point, worth

CURVES = {  # how often answers please, at steps 0, 10 and 20
    NAIVE: (0.4, 0.7, 0.5),
    PENALISED: (0.4, 0.6, 0.6),
    PAIRS: (0.4, 0.6, 0.65),
    PAPER: (0.4, 0.5, 0.45),
    OURS: (0.4, 0.7, 0.8),
    KNOWN: (0.4, 0.75, 0.8),
    EXPLICIT: (0.4, 0.8, 0.9),
}


def _points(seeds: int = 3) -> list[dict[str, object]]:
    points = []
    for seed in range(seeds):
        for name, curve in CURVES.items():
            for step, pleases in enumerate(curve):
                measured = point(step, pleases + seed / 100) | {"divergence": 2.0 * step}
                points.append({"seed": seed, "curve": "policy", "reward": name, **measured})
            for n, pleases in ((1, 0.4), (16, curve[1]), (64, curve[2])):
                points.append({"seed": seed, "curve": "best of n", "reward": name, "n": n, **worth(pleases)})
    return points


def test_the_table() -> None:
    head, _, *rows = (line.strip("| ").split("|") for line in table(_points()).splitlines())
    cells = {
        row[0].strip(): dict(zip((h.strip() for h in head), (c.strip() for c in row), strict=True)) for row in rows
    }
    assert list(cells) == list(REWARDS)
    naive, ours = cells[NAIVE], cells[OURS]
    assert naive["pleases"] == "0.410 to 0.510" and naive["gain"] == "20% ± 0" and naive["turns over"] == "2.0"
    assert (naive["best"], naive["at"]) == ("0.710", "2.0")
    assert ours["gain"] == "80% ± 0" and ours["turns over"] == "-" and cells[EXPLICIT]["gain"] == "100%"
    assert ours["best of 16"] == "0.700" and cells[KNOWN]["to known"] == "100%" and ours["to known"] == "0%"
    assert "mean over 3 worlds" in markdown(_points())


def test_intervals_of_shares_are_of_the_worlds() -> None:
    """Half of the distance on average: exactly so everywhere, or by chance."""
    low, high = np.zeros(4), np.array([0.4, 0.5, 0.6, 0.5])
    assert share_with_interval(high / 2, low, high, least=0.01) == "50% ± 0"
    half = share_with_interval(np.array([0.1, 0.35, 0.2, 0.35]), low, high, least=0.01)
    assert half.startswith("50% ± ") and 10 < float(half.removeprefix("50% ± ")) < 60
    assert share_with_interval(low, low, high, least=0.01) == "0%"
    assert share_with_interval(high, low, low, least=0.01) == "-"


def test_no_share_of_a_gain_that_is_none() -> None:
    flat = [one | {"pleases": 0.5} for one in _points()]
    assert "nan" not in table(flat) and "| -" in table(flat)


def test_the_pictures(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    drawn = draw(_points(), tmp_path)
    assert [path.name for path in drawn] == ["downstream.png", "divergence.png", "best_of_n.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert Curve(_points(), "policy", OURS).of("pleases").shape == (3, 3)
