"""The example of identification: its worlds are what they say, and a small part of it runs from end to end."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit

from examples.identification import assumptions, ifllm, intervals, kinds, real_logs, worlds
from examples.identification.compare import KNOWN, NAIVE, Variant, measure, table

ROOT = Path(__file__).parents[2]


def test_synthetic_world_draws_what_its_probabilities_say() -> None:
    train, test = worlds.synthetic(40_000, 4000).draw(0)
    assert train.X.shape == (40_000, 32) and test.X.shape == (4000, 32)
    rate = train.g[:, None] * train.m
    assert np.abs((train.feedback - rate).mean(axis=0)).max() < 0.01
    assert np.abs(train.preference - train.g).mean() == pytest.approx(2 * (train.g * (1 - train.g)).mean(), abs=0.01)
    both = (train.g * train.m.prod(axis=1)).mean()
    assert train.feedback.all(axis=1).mean() == pytest.approx(both, abs=0.005)  # independent given the preference
    assert not (train.feedback.any(axis=1) & (train.preference == 0)).any()


def test_published_world_has_the_chances_it_claims_and_a_rating_that_the_signals_share() -> None:
    world = worlds.published(20_000, 32)
    preference, feedback = (
        np.mean(many, axis=0) for many in zip(*map(world.truth, map(np.random.default_rng, range(40))), strict=True)
    )
    assert preference.mean() == pytest.approx(0.4, abs=0.01)  # two of five levels
    for low, high in ((0.1, 0.4), (0.4, 0.7), (0.7, 1)):
        part = (world.g > low) & (world.g <= high)
        assert preference[part].mean() == pytest.approx(world.g[part].mean(), abs=0.01)
        assert feedback[part, 0].mean() == pytest.approx((world.g * world.m[:, 0])[part].mean(), abs=0.01)
    assert world.activity.mean() == pytest.approx(0.2) and world.activity[4] == pytest.approx(2 * world.activity[3])


def test_text_world_meets_its_rates_and_ties_propensities_to_length() -> None:
    rng = np.random.default_rng(0)
    X, features = rng.normal(size=(4000, 70)).astype(np.float32), rng.normal(size=(4000, 5)).clip(-3, 3)
    for reward in (worlds.smooth, worlds.quadratic):
        world = worlds.on_text(X, features, reward, 4.0, test=1000)
        assert world.g.mean() == pytest.approx(0.5, abs=1e-6)
        assert (world.g[:, None] * world.m).mean(axis=0) == pytest.approx([0.13, 0.13], abs=1e-6)
        assert np.polyfit(features[:, 0], logit(world.m[:, 0]), 1)[0] == pytest.approx(1.5)
    train, test = world.sized(500).draw(3)
    assert len(train.X) == 500 and len(test.X) == 1000
    again = world.draw(3)[1]
    assert np.array_equal(test.X, again.X) and not np.array_equal(test.X, world.draw(4)[1].X)


def test_ties_between_signals() -> None:
    _, _, free = assumptions.preferences_and_actions(5000, 0)
    rng = np.random.default_rng(0)
    tied = {how: assumptions.tie(free, how, rng) for how in assumptions.SIGNALS}
    assert np.array_equal(tied["independent"], free)
    assert not tied["one menu"].all(axis=1).any()
    assert np.array_equal(tied["one menu"].any(axis=1), free.any(axis=1))  # a choice is made all the same
    assert (tied["nested"][:, 1] <= tied["nested"][:, 0]).all() and tied["nested"][:, 1].any()
    assert np.array_equal(*tied["duplicated"].T)


def test_kinds_of_real_logs_have_the_trouble_they_name() -> None:
    """What is passed, who acts, and what is missing differ from the clean log by the one thing that was asked for."""
    clean, lost = real_logs.draw(0, rows=4000), real_logs.draw(0, rows=4000, lost=0.5)
    silent = (~clean.feedback.any(axis=1)).sum()
    assert len(clean.X) - len(lost.X) == pytest.approx(silent / 4, rel=0.1)  # half of those of the second half
    assert len(lost.arguments["times"]) == len(lost.X) == len(lost.feedback)
    broken = real_logs.draw(0, rows=4000, broken=True)
    phone = np.array(broken.platform) == "phone"
    assert not broken.feedback[phone, 1].any() and broken.feedback[~phone, 1].any()
    bots = real_logs.draw(0, rows=4000, rows_a_user=40, bots=0.05)
    automatic = np.isnan(bots.propensity[:, 0])
    assert bots.feedback[automatic].all() and 0 < automatic.mean() < 0.1
    assert real_logs.draw(0, rows=500, declared=0.01).settings == {"misclick_rate": 0.01}

    funnel = real_logs.draw_funnel(0, rows=4000)
    assert (funnel.feedback[:, 1] <= funnel.feedback[:, 0]).all() and funnel.settings == {"after": {1: 0}}
    drawn = {kind: real_logs.draw_one_signal(0, kind=kind, labels=30, rows=4000) for kind in ("features", "noisy")}
    assert all((log.arguments["preference"] >= 0).sum() == 30 for log in drawn.values())
    visible = {kind: log.arguments["propensity_features"][:, 0] for kind, log in drawn.items()}
    acted = {kind: log.feedback[:, 0].astype(bool) for kind, log in drawn.items()}
    gap = {kind: visible[kind][acted[kind]].mean() - visible[kind][~acted[kind]].mean() for kind in drawn}
    assert gap["features"] > 0.5 and abs(gap["noisy"]) < 0.2  # directions of features and preference are not orthogonal


def test_four_fits_of_a_kind_and_their_table() -> None:
    found = {
        f"a funnel of three signals: {name}": [redraw]
        for name, redraw in kinds.measure("a funnel of three signals", 0, rows=4000).items()
    }
    plain, passed = (found[f"a funnel of three signals: {name}"][0] for name in ("plain", "passed"))
    assert plain["scale"] == "contradicted" and "funnel" in plain["failed"]
    assert passed["ranking"] == "conditional" and passed["failed"] == []
    assert abs(passed["mean_g"] - passed["true_mean_g"]) < abs(plain["mean_g"] - plain["true_mean_g"])
    assert passed["auroc"] > plain["auroc"]
    last = kinds.kinds_table(found).splitlines()[-1]
    assert f"{passed['auroc']:.3f} / {passed['mean_g']:.2f}" in last and "conditional 1; conditional 1" in last


def folder_of_tasks(folder: Path, tasks: int) -> np.ndarray:
    """Write a log in the layout of IFLLM, two answers a task and ten tasks a user; return embeddings that show all."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2 * tasks, 4)).astype(np.float32)
    X[:, 1] = np.repeat(rng.normal(size=(tasks + 9) // 10), 20)[: 2 * tasks]  # a user's own
    log, truth = [], []
    for row, (quality, *_) in enumerate(X):
        task, user = row // 2, row // 20
        acted = {name: int(rng.random() < 0.6 / (1 + np.exp(-4 * quality))) for name in ("copied", "long_gaze")}
        place = {
            "user_id": f"u{user}",
            "session_id": f"s{task}",
            "timestamp": f"{2025 if row else 1:04d}-01-01T00:00:00",
        }
        text = {"prompt": f"question {task}", "completion": "word " * rng.integers(1, 40)}
        log.append({"id": f"{task}-{row % 2 + 1}", **text, "feedback": acted, **place})
        better = int(quality > X[row ^ 1, 0])
        truth.append(
            {"id": log[-1]["id"], "likert": 5 if quality > 0 else 3, "preferred": better if task % 2 else None}
        )
    for name, rows in (("log", log), ("truth", truth)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return X


def test_a_log_of_tasks_is_measured_with_intervals(tmp_path) -> None:
    """Models that learn from actions rank tasks whose actions show the quality; what is no model does not."""
    X = folder_of_tasks(tmp_path, 300)
    log, truth = ifllm.read_ifllm(tmp_path, tmp_path / "repaired.jsonl")
    assert np.isnan(log.times).sum() == 1  # of the year 1
    perfect = ifllm.measured(X[:, 0], log, truth)
    assert [perfect[name] for name in ("auroc", "auroc_within_users", "pair_accuracy", "pairs")] == [1, 1, 1, 150]
    assert perfect["auroc_interval"] == [1, 1]

    scored = ifllm.scores(X, log)
    found = {name: ifllm.measured(logit, log, truth) | said for name, (logit, said) in scored.items()}
    for name, figures in found.items():
        low, high = figures["auroc_interval"]
        assert low < figures["auroc"] < high and high - low < 0.25, name
        learns = name not in ("length alone", "user alone")
        assert (low > 0.5) == learns and (figures["pair_accuracy_interval"][0] > 0.5) == learns, name
    assert found["user alone"]["auroc_within_users"] == found["user alone"]["pair_accuracy"] == 0.5
    length = scored["length alone"][0]
    assert abs(np.corrcoef(length, scored["naive, length taken out"][0])[0, 1]) < 1e-3
    last = ifllm.ifllm_table({name: [figures] for name, figures in found.items()}).splitlines()
    assert last[-1].startswith("irm_fast, texts: ") and "0.500 (0.500 to 0.500)" in last[-3]


def test_users_and_not_rows_are_resampled(tmp_path) -> None:
    """A logit that knows users alone has a wide interval, where rows by themselves would have a narrow one."""
    X = folder_of_tasks(tmp_path, 200)
    log, truth = ifllm.read_ifllm(tmp_path, tmp_path / "repaired.jsonl")
    likes = {name: 5 if X[20 * (row // 20), 1] > 0 else 3 for row, name in enumerate(log.ids)}
    truth = {name: one | {"likert": likes[name]} for name, one in truth.items()}
    low, high = ifllm.measured(np.random.default_rng(1).normal(size=20).repeat(20), log, truth)["auroc_interval"]
    assert high - low > 0.3


def test_worlds_of_intervals() -> None:
    """What users share is what the kind says, and the table has mean and standard error of the coverage."""
    for kind in intervals.KINDS:
        X, feedback, users, truth = intervals.draw(30_000, 4, kind, 0)
        assert X.shape == (32_000, 4) and np.bincount(users).max() == intervals.ROWS_A_USER
        assert X.std() == pytest.approx(1, abs=0.03) and truth.std() == pytest.approx(1.5, abs=0.1)
        alike = np.corrcoef(X[::10, 0], X[1::10, 0])[0, 1]
        assert alike == pytest.approx(0.5 * (kind == "users with alike responses"), abs=0.05)
        acts = feedback.any(axis=1).reshape(-1, 10).mean(axis=1).var() * 10 / feedback.any(axis=1).var()
        assert (acts > 1.3) == ("differ" in kind or "alike" in kind)
    redraws = [{"coverage": 0.8, "deviation": 0.1}, {"coverage": 0.9, "deviation": 0.3}]
    assert intervals.coverage_table({"a": redraws}).splitlines()[-1] == "| a | 0.850 ± 0.050 | 0.20 |"
    assert 0 <= intervals.measure(1500, 4, "users", 0)["coverage"] <= 1


def test_identification_pays_and_the_table_says_so() -> None:
    world = worlds.synthetic(4000, 2000)
    settings = {"hidden_layers": ()}
    variants = [
        Variant(NAIVE, "any", settings),
        Variant("two-step", "actions", settings),
        Variant(KNOWN, "known", settings),
    ]
    results = {variant.name: [measure(world, variant, seed) for seed in (0, 1)] for variant in variants}
    naive, two_step, known = ([redraw["mae_g"] for redraw in redraws] for redraws in results.values())
    assert max(two_step) < min(naive) and max(known) < min(naive)
    last = [line.split("|")[-2].strip() for line in table(results).splitlines()]
    assert last[0] == "closed" and last[2] == "0%" and last[4] == "100%" and 30 <= int(last[3].rstrip("%")) <= 130


def test_small_run_from_end_to_end(tmp_path) -> None:
    command = [sys.executable, "-m", "examples.identification", "--output", tmp_path, "--pictures", tmp_path, "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, command), "--redraws", "1", "--only", "signals tied"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["signals tied"]
    assert {redraw["verdict"] for redraw in found["duplicated"]} == {"contradicted"}
    assert {redraw["verdict"] for redraw in found["independent"]} == {"conditional"}
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == ["identification-one-signal.png", "identification-tied.png"]
