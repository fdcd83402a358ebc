"""The demo in small: its data, its methods, what it writes; and its table and picture."""

from __future__ import annotations

import json

import numpy as np
import pytest

from irm_fast.data.read import read_log, read_rated
from irm_fast.data.simulation import standard_features
from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.experiments import demo
from irm_fast.experiments.made_text import make_rated
from irm_fast.experiments.report import comparison_table, draw_comparison

COLUMNS = ("auroc", "pair_accuracy", "mae", "rmse", "r2", "nll", "ece")
RESULTS = [
    {
        "naive, 1 signal": dict.fromkeys(COLUMNS, 0.6),
        "implicit, 1 signal": dict.fromkeys(COLUMNS, 0.55),
        "naive, 2 signals": dict.fromkeys(COLUMNS, 0.5),
        "implicit, 2 signals": dict.fromkeys(COLUMNS, 0.65 + shift),
        "explicit labels": dict.fromkeys(COLUMNS, 0.7),
    }
    for shift in (0.01, -0.01)
]


def test_made_text_has_the_quality_it_says() -> None:
    rated = make_rated(1500, seed=1)
    assert len(rated) == 3000 and (np.bincount(rated.pair) == 2).all()
    assert 0.4 < rated.preference.mean() < 0.6
    assert reward_metrics(rated.rating, rated.preference)["auroc"] > 0.8
    assert reward_metrics(rated.rating, rated.preference)["ece"] < 0.05  # the rating is the logit
    again = make_rated(1500, seed=1)
    assert again.messages == rated.messages and (again.preference == rated.preference).all()


def test_what_drives_the_actions_says_nothing_of_quality() -> None:
    rated = make_rated(3000, seed=2)
    features = standard_features(rated.messages)
    correlation = np.corrcoef(np.column_stack([rated.rating, features]).T)[0, 1:]
    assert (np.abs(correlation) < 4 / np.sqrt(len(features))).all(), correlation  # four standard errors


def test_methods_see_the_same_rows_and_no_truth_that_is_not_theirs() -> None:
    simulation = demo.make_simulation(seed=0, prompts=60)
    found = {method.name: method.log for method in demo.methods(simulation)}
    truth = simulation.truth.preference
    for name, log in found.items():
        assert log.messages == simulation.log.messages
        labels = (log.preference == truth).all()
        assert labels == (name == "explicit labels")
        assert (log.propensity is not None) == (name == "known propensities")
    naive = found["naive, 2 signals"]
    assert (naive.preference == (simulation.log.feedback == 1).any(axis=1)).all()


def test_a_small_demo(tmp_path, monkeypatch, capsys, forked_children) -> None:
    monkeypatch.setattr(demo, "SETTINGS", {**demo.SETTINGS, "epochs": 1})
    small, methods = demo.make_simulation, demo.methods
    few = ["naive, 2 signals", "implicit, 2 signals", "explicit labels"]
    monkeypatch.setattr(demo, "make_simulation", lambda seed: small(seed, prompts=60))
    with monkeypatch.context() as patch:
        patch.setattr(demo, "methods", lambda simulation: [one for one in methods(simulation) if one.name in few])
        first = demo.run_demo(tmp_path / "demo", seeds=1, processes=2)
    (tmp_path / "demo" / "thesis.tex").write_text("mine")
    done = demo.run_demo(tmp_path / "demo", seeds=1, processes=1)  # replaces the first
    results, printed = done.results, "\n".join(done.lines)
    assert (tmp_path / "demo" / "thesis.tex").read_text() == "mine"
    assert list(first.results[0]) == few
    assert first.results[0].items() <= results[0].items()  # whatever the processes
    folder, told = tmp_path / "demo", capsys.readouterr()
    assert not told.out and told.err.count("AUROC") == 3 + 6
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "table.md").read_text().strip() == done.table
    assert printed.count("  reward ") == 2
    assert (folder / "comparison.png").stat().st_size > 10_000
    assert len(read_log(folder / "log.jsonl")) == len(read_rated(folder / "log.truth.jsonl")) == 96
    assert list(results[0]) == [
        "naive, 1 signal",
        "implicit, 1 signal",
        "naive, 2 signals",
        "implicit, 2 signals",
        "known propensities",
        "explicit labels",
    ]


def test_the_demo_leaves_strange_folders_alone(tmp_path) -> None:
    (tmp_path / "log.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no earlier demo"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == "mine"


def test_table_of_results(tmp_path) -> None:
    lines = comparison_table(RESULTS).splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[2:]]
    assert rows[3][2] == "0.650 ± 0.014"
    assert [row[-2] for row in rows] == ["0%", "-50%", "0%", "75%", "100%"]  # each from the naive one on its signals
    assert draw_comparison(RESULTS, tmp_path / "x.png") == tmp_path / "x.png"


def test_no_share_of_a_distance_that_is_not_there() -> None:
    level = [{name: dict.fromkeys(COLUMNS, 0.7) for name in RESULTS[0]}]
    assert all(line.split("|")[-2].strip() == "-" for line in comparison_table(level).splitlines()[2:])
