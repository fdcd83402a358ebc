"""The best of n answers: exact chances, and what the table and the picture say of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from irm_fast.experiments.reproduce.best_of_n import BestOfN, draw, markdown
from irm_fast.experiments.reproduce.methods import DEFAULT, EXPLICIT, KNOWN, NAIVE
from irm_fast.experiments.reproduce.picks import best_of, chance_of_pick


@pytest.mark.parametrize("reward", [[0.3, -1.0, 2.0, 0.1, 5.0, 4.0], [1.0, 1.0, 0.0, 2.0, 2.0, 2.0], [0.0] * 6])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_chances_are_those_of_all_draws(reward, count) -> None:
    """Each set of answers is as likely as any other; equal rewards share a pick."""
    expected = np.zeros(6)
    draws = list(combinations(range(6), count))
    for drawn in draws:
        best = [i for i in drawn if reward[i] == max(reward[j] for j in drawn)]
        expected[best] += 1 / len(best) / len(draws)
    np.testing.assert_allclose(chance_of_pick(np.array(reward), count), expected, atol=1e-12)


def test_large_samples_are_exact() -> None:
    """The best of 64 of 100,000: no overflow, and nearly that of draws with repetition."""
    rank = np.arange(100_000)
    chance = chance_of_pick(rank.astype(np.float32), 64)
    assert chance.sum() == pytest.approx(1, abs=1e-12) and (chance[:63] == 0).all()
    assert (chance @ rank) / 1e5 == pytest.approx(64 / 65, abs=1e-4)


def test_picks() -> None:
    reward, preference = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 1, 1, 0])
    found = best_of(reward, preference, np.stack([reward, -reward], 1), counts=(1, 2, 4, 8))
    assert found["n"] == [1, 2, 4]  # there are no 8
    np.testing.assert_allclose(found["pleases"], [0.5, 0.5, 0.0])
    np.testing.assert_allclose(found["features"], [[2.5, -2.5], [10 / 3, -10 / 3], [4, -4]])


PLEASES = {  # at 1, 4, 16
    (NAIVE.name, 2): [0.5, 0.6, 0.55],
    (DEFAULT, 2): [0.5, 0.65, 0.75],
    (KNOWN.name, 2): [0.5, 0.7, 0.8],
    (EXPLICIT.name, 0): [0.5, 0.7, 0.85],
}


def results() -> list[dict]:
    made = []
    for redraw, noise in enumerate((0.0, 0.01, -0.01)):
        for (method, signals), values in PLEASES.items():
            picks = {"n": [1, 4, 16], "pleases": [v + noise for v in values], "features": [[v, 9.0] for v in values]}
            made.append(
                {"protocol": "rating", "redraw": redraw, "method": method, "signals": signals, "best_of": picks}
            )
    return made


def test_the_table() -> None:
    table = BestOfN(results(), "rating")
    assert table.turns_over((NAIVE.name, 2)) == 16 and table.turns_over((DEFAULT, 2)) is None
    head, *rows = table.rows()
    cells = {row[1]: dict(zip(head, row, strict=True)) for row in rows}
    assert cells[DEFAULT]["pleases, n = 16"] == "0.750" and cells[DEFAULT]["less naive"] == "**+0.200 ± 0.000**"
    assert cells[DEFAULT]["to known"] == "80% ± 0" and cells[DEFAULT]["to explicit"] == "67% ± 0"
    assert cells[NAIVE.name]["turns over"] == "16" and cells[NAIVE.name]["length, n = 16"] == "+0.55"
    assert "## Best of n, log, protocol rating" in markdown(results(), "log", "how it was made")


def test_the_picture(tmp_path) -> None:
    assert draw(results(), tmp_path / "best.png") == tmp_path / "best.png"
    assert (tmp_path / "best.png").stat().st_size > 10_000
