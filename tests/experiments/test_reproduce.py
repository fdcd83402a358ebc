"""The comparison of all methods: nobody sees the truth, everybody has the same budget, and runs go on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.optimize import REWARD_SDS, Training, fit_map
from irm_fast.experiments.reproduce import contest, experiment, fitting, redraws
from irm_fast.experiments.reproduce import folder as folder_of_runs
from irm_fast.experiments.reproduce.contest import Contest, entrants
from irm_fast.experiments.reproduce.fitting import Logits, Method
from irm_fast.experiments.reproduce.methods import (
    BASELINES,
    BOUNDS,
    DEFAULT,
    EXPLICIT,
    FORMS,
    KNOWN,
    NAIVE,
    PAPER,
    RECREC,
    WITH_FEATURES,
)
from irm_fast.experiments.reproduce.population import Log, Population, Redraw, Truth, semi_synthetic

ORACLES = {method.name for method in BOUNDS}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few candidates, folds, iterations and epochs: what is tested here holds for any number."""
    patch = pytest.MonkeyPatch()
    for place in (fitting, contest):
        patch.setattr(place, "FOLDS", 2)
    patch.setattr(fitting, "REWARD_SDS", (2.0,))
    patch.setattr(fitting, "fit_map", partial(fit_map, iterations=20))
    patch.setattr(fitting, "Training", lambda: Training(max_epochs=2))
    small = {"hidden_layers": (), "n_folds": 2}
    patch.setattr(contest, "EmbeddingRewardModel", partial(EmbeddingRewardModel, **small))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def population() -> Population:
    return semi_synthetic(500, 12)


@pytest.fixture(scope="module")
def redraw(population) -> Redraw:
    return population.redraw("feature", 0, target=0.5)


@pytest.fixture(scope="module")
def results(redraw) -> dict:
    """Of every entrant."""
    whole = Contest(redraw, 0)
    return {key: whole.measured(key) for key in entrants(2)}


def without_time(result: dict) -> dict:
    return {name: value for name, value in result.items() if name != "seconds"}


def test_poisoned_truth_changes_nothing_but_the_bounds(redraw, results):
    """Selection, fit and calibration see no clean label: with wrong ones they are the same to the last bit."""
    wrong = np.random.default_rng(1).random(len(redraw.truth.preference)) < 0.5
    truth = replace(redraw.truth, preference=wrong.astype(np.int8), propensity=redraw.truth.propensity[::-1])
    poisoned = Contest(replace(redraw, truth=truth), 0)
    for key, result in results.items():
        again = without_time(poisoned.measured(key))
        assert (again == without_time(result)) == (key[0] not in ORACLES), key


def test_test_labels_decide_metrics_alone(redraw, results):
    poisoned = Contest(replace(redraw, test_preference=1 - redraw.test_preference), 0)
    for name, signals in (("nnPU", 2), ("marginal, hidden", 2), (DEFAULT, 1), (EXPLICIT.name, 0)):
        again, result = poisoned.measured((name, signals)), results[name, signals]
        assert again["scores"] == result["scores"] and again["candidate"] == result["candidate"]
        assert again["raw"]["auroc"] == pytest.approx(1 - result["raw"]["auroc"])


def test_the_truth_is_out_of_reach(redraw):
    """A method that looks for clean labels finds none."""
    whole = Contest(redraw, 0)
    known = whole.known(2)
    for bound in (EXPLICIT, KNOWN):
        for seen in (known.any_signal, known.each_signal, known.estimates):
            with pytest.raises(AttributeError, match=r"preference|known"):
                whole.field.fit(Method("peeking", bound.loss), seen)


def test_everybody_has_the_same_candidates(results):
    fits = {key: result for key, result in results.items() if key[0] not in contest.OURS}
    names = {tuple(result["scores"]) for result in fits.values()}
    assert names == {("network", "linear, even, sd 2", "linear, raw, sd 2")}
    for result in fits.values():
        assert result["candidate"] == min(result["scores"], key=result["scores"].get)
    assert all(result["candidates"] == len(result["scores"]) for result in results.values())
    assert all(result["seconds"] > 1e-3 for result in results.values())
    assert all(np.isfinite(result["calibrated"]["mae"]) for result in results.values())


def test_calibration_keeps_the_ranking(results):
    for result in results.values():
        assert result["calibrated"]["auroc"] == pytest.approx(result["raw"]["auroc"], abs=2e-3)


POSTERIORS = [method for method in (*BASELINES, *FORMS) if method.objective is not None and method.name != "nnPU"]


@pytest.mark.parametrize("method", POSTERIORS, ids=lambda method: method.name)
def test_linear_heads_are_stationary_points_of_the_loss_itself(method, redraw):
    """They minimise the likelihood: where its gradient and the prior's cancel, those of the loss have to, too."""
    whole = Contest(redraw, 0)
    known = whole.known(2).any_signal if method.sees == "any" else whole.known(2).each_signal
    fold = fitting._Fold(method, known, whole.field.setting, 0)
    fit_map_fully = partial(fit_map, iterations=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "fit_map", fit_map_fully)
        heads = fold.linear(torch.ones(12), 2.0)
    parameters = [p.requires_grad_() for p in heads.parameters()]
    gradients = torch.autograd.grad(method.loss(Logits(*heads(fold.part)), fold.batch), parameters)
    prior = torch.autograd.grad(heads.penalty(2.0, 1.0) / len(fold.index), parameters, allow_unused=True)
    for own, other in zip(gradients, prior, strict=True):
        pull = torch.zeros_like(own) if other is None else other
        assert (own + pull).abs().max() < 3e-4 < max(0.01, 10 * own.abs().max())
    assert max(gradient.abs().max() for gradient in gradients) > 5e-3


def test_methods_with_one_optimum_agree(results):
    """On one signal SAR-EM and both stratified forms are the marginal form with a hidden propensity."""
    scores = [results[name, 1]["scores"]["linear, raw, sd 2"] for name in ("SAR-EM", *(form.name for form in FORMS))]
    sar_em, current, lagged, constant, _, hidden = scores
    assert sar_em == pytest.approx(hidden) and current == lagged == pytest.approx(hidden)
    assert abs(constant - hidden) > 1e-4


def test_what_features_add():
    """Where propensities hang on what only features show, methods that read them tell it from what pleases."""
    rng = np.random.default_rng(0)
    rows, count = 4000, 3
    X, features = (rng.normal(size=(rows + 500, width)).astype(np.float32) for width in (3, count))
    X[:, 2] = 0.3 * X[:, 2] + features[:, 0]  # what embeddings hold of a feature
    pleased = rng.random(rows + 500) < 1 / (1 + np.exp(-2 * X[:, 0]))
    propensity = 1 / (1 + np.exp(1 - 2 * features[:rows, [0, 0]] - features[:rows, [1, 2]]))
    feedback = (pleased[:rows, None] & (rng.random((rows, 2)) < propensity)).astype(np.int8)
    log = Log(X[:rows], features[:rows], feedback, np.arange(rows))
    truth = Truth(pleased[:rows].astype(np.int8), propensity)
    whole = Contest(Redraw(log, truth, X[rows:], pleased[rows:].astype(np.int8), features[rows:]), 0)
    paid = {}
    for method in (NAIVE, RECREC, PAPER, *WITH_FEATURES):
        reward = whole.field.fit(method, whole.known(2).read_by(method)).test
        paid[method.name] = abs(np.corrcoef(reward, X[rows:, 2])[0, 1] / np.corrcoef(reward, X[rows:, 0])[0, 1])
    towers, recrec, paper = (paid[method.name] for method in WITH_FEATURES)
    assert towers < 0.6 * paid["naive"], paid
    assert recrec < 0.75 * paid[RECREC.name] and paper < 0.75 * paid[PAPER.name], paid


@pytest.mark.parametrize("protocol", ["rating", "feature"])
def test_a_redraw(population, protocol):
    one, again, other = (population.redraw(protocol, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.log.feedback, again.log.feedback) and np.array_equal(one.test_X, again.test_X)
    assert not np.array_equal(one.log.X, other.log.X)
    assert len(one.log.X) == 400 and len(one.test_X) == 100
    assert not (one.log.feedback[one.truth.preference == 0] == 1).any()
    seen = {row.tobytes() for row in one.log.X}
    assert not any(row.tobytes() in seen for row in one.test_X)
    liked = one.truth.preference == 1
    expected = one.truth.propensity[liked].mean(axis=0)
    rate = (one.log.feedback[liked] == 1).mean(axis=0)
    assert rate == pytest.approx(expected, abs=4 * np.sqrt(0.25 / liked.sum()))
    assert (np.ptp(one.truth.propensity) == 0) == (protocol == "rating")  # a row's own would give its rating away


def test_groups_are_not_parted(population):
    grouped = replace(population, group=np.arange(500) // 4)
    members = {row.tobytes(): number for row, number in zip(population.X, grouped.group, strict=True)}
    one = grouped.redraw("feature", 0)
    groups = [{members[row.tobytes()] for row in rows} for rows in (one.log.X, one.test_X)]
    assert groups[0] and groups[1] and not groups[0] & groups[1]


# --- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Only some of the entrants."""
    keys = [
        ("naive", 1),
        (DEFAULT, 1),
        (KNOWN.name, 1),
        ("naive", 2),
        (DEFAULT, 2),
        (KNOWN.name, 2),
        (EXPLICIT.name, 0),
    ]
    monkeypatch.setattr(contest, "entrants", lambda signals: keys)
    return keys


EXPERIMENT = experiment.Experiment(experiment.MADE, target=0.5, limit=300)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(experiment, "semi_synthetic", lambda rows, noise: semi_synthetic(rows, 8, noise))


def go(output, **more):
    settings = {"protocols": ("feature",), "redraws": 2, "processes": 1} | more
    return redraws.run_redraws(EXPERIMENT, output, **settings)


def test_a_run_goes_on_where_it_was_cut_off(tmp_path, few, small):
    whole = go(tmp_path / "one")
    assert [(r["redraw"], r["method"], r["signals"]) for r in whole] == [(i, *key) for i in (0, 1) for key in few]
    file = tmp_path / "one" / "redraws" / "feature-1.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3][:40]]))  # in the middle of a line
    again = go(tmp_path / "one", resume=True)
    assert [without_time(r) for r in again] == [without_time(r) for r in whole]
    assert [json.loads(line)["seconds"] for line in lines[:3]] == [r["seconds"] for r in again[7:10]]  # not run anew


def test_an_error_in_a_child_ends_the_run(tmp_path, small, monkeypatch, forked_children):
    monkeypatch.setattr(redraws, "_in_child", math.sqrt)  # which takes no job
    with pytest.raises(TypeError, match="takes exactly one argument"):
        go(tmp_path / "one", processes=2)


def test_a_run_can_be_extended_and_replaced(tmp_path, few, small):
    whole = go(tmp_path / "one")
    assert len(go(tmp_path / "one", redraws=3, resume=True)) == 3 * len(few)
    assert [without_time(r) for r in go(tmp_path / "one", overwrite=True)] == [without_time(r) for r in whole]


def test_a_run_does_not_write_through_a_link(tmp_path, few, small):
    go(tmp_path / "one")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "one" / "table.md").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"holds 'table\.md', not written by an earlier run"):
        go(tmp_path / "one", overwrite=True)
    assert (tmp_path / "one" / "redraws").is_dir() and (tmp_path / "mine").read_text() == "mine"


def test_what_must_not_be_mixed(tmp_path, few, small, monkeypatch):
    folder = tmp_path / "one"
    go(folder)
    with pytest.raises(ValueError, match="not empty: it holds an earlier run; --resume goes on"):
        go(folder)
    with pytest.raises(ValueError, match="both are set"):
        go(folder, resume=True, overwrite=True)
    with pytest.raises(ValueError, match=r"target: got 0\.3; .* was run with 0\.5"):
        redraws.run_redraws(replace(EXPERIMENT, target=0.3), folder, resume=True)
    monkeypatch.setattr(experiment, "semi_synthetic", lambda rows, noise: semi_synthetic(rows, 9, noise))
    with pytest.raises(ValueError, match="was run on other ratings or embeddings"):
        go(folder, resume=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no earlier run"):
        go(tmp_path / "two", overwrite=True)
    (tmp_path / "two" / "settings.json").write_text('{"editor.tabSize": 4}')
    with pytest.raises(ValueError, match="is not empty and holds no earlier run"):
        go(tmp_path / "two", overwrite=True)
    (folder / "thesis.tex").write_text("mine")
    monkeypatch.setattr(experiment, "semi_synthetic", lambda rows, noise: semi_synthetic(rows, 8, noise))
    go(folder, overwrite=True)
    assert (folder / "thesis.tex").exists() and (tmp_path / "two" / "thesis.tex").exists()
    monkeypatch.setattr(folder_of_runs, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"version: got '9\.9'; .*; install irm-fast "):
        go(folder, resume=True)
    with pytest.raises(ValueError, match="redraws: got 1"):
        go(tmp_path / "three", redraws=1)
    with pytest.raises(ValueError, match="protocol: got 'ratings'; expected 'rating' or 'feature'"):
        go(tmp_path / "three", protocols=("ratings",))


def test_processes_give_what_one_process_does(tmp_path, small, monkeypatch, forked_children):
    """Real ones, which know nothing of what is patched here: each has one fit left to do."""
    whole = entrants(2)
    monkeypatch.setattr(contest, "entrants", lambda signals: [("naive", 1)])
    [one, *_] = go(tmp_path / "one")
    for seed in (0, 1):
        done = [one | {"redraw": seed, "method": name, "signals": signals} for name, signals in whole[1:]]
        file = tmp_path / "one" / "redraws" / f"feature-{seed}.jsonl"
        file.write_text("".join(json.dumps(result) + "\n" for result in done))
    monkeypatch.undo()
    monkeypatch.setattr(experiment, "semi_synthetic", lambda rows, noise: semi_synthetic(rows, 8, noise))
    found = go(tmp_path / "one", resume=True, processes=2)
    assert {(r["redraw"], r["method"], r["signals"]) for r in found} == {
        (seed, *key) for seed in (0, 1) for key in whole
    }
    fitted = [r for r in found if (r["method"], r["signals"]) == ("naive", 1)]
    assert len(fitted[0]["scores"]) == 2 * len(REWARD_SDS) + 1 and fitted[0]["raw"] != fitted[1]["raw"]


def write_rated(path, n=240):
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(n):
            good = int(rng.random() < 0.5)
            text = " ".join(["good" if good else "bad"] * int(rng.integers(1, 9)))
            row = {
                "id": str(i),
                "prompt": f"question {i}",
                "completion": text,
                "rating": good * 2 + int(rng.integers(2)),
            }
            file.write(json.dumps(row) + "\n")


def test_the_command(tmp_path, few, tiny_model):
    data, output = tmp_path / "rated.jsonl", tmp_path / "out"
    write_rated(data)
    command = ["reproduce", "--data", str(data), "--model", tiny_model, "--output", str(output)]
    command += ["--redraws", "2", "--processes", "1", "--target", "0.6"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "## rated.jsonl, protocol rating, 2 redraws" in result.output and "protocol feature" in result.output
    assert "published" not in result.output
    assert {"table.md", "results.csv", "comparison.png", "embeddings.safetensors"} <= {p.name for p in output.iterdir()}
    assert len((output / "results.csv").read_text().splitlines()) == 1 + 2 * 2 * len(few)
    again = CliRunner().invoke(app, [*command, "--resume"])
    assert again.exit_code == 0 and (output / "table.md").read_text() in again.output


def test_what_the_command_refuses(tmp_path):
    def said(*arguments):
        result = CliRunner().invoke(app, ["reproduce", "--output", str(tmp_path / "out"), *arguments])
        assert result.exit_code == 2
        return result.output

    assert "model: none given" in said("--data", "hs")
    offline = said("--data", "hs", "--model", "nowhere")
    assert "nvidia/HelpSteer), which cannot be reached" in offline and "give a file instead" in offline
    assert "no.jsonl is no file; expected one, or semi-synthetic" in said("--data", str(tmp_path / "no.jsonl"))
    assert "did you mean 'semi-synthetic'" in said("--data", "semi-synthetc")
    assert "'both', 'rating', 'feature'" in said("--data", experiment.MADE, "--protocol", "all")
    assert "target: got 2.0; expected a number from" in said("--data", experiment.MADE, "--target", "2")
    write_rated(tmp_path / "few.jsonl", 30)
    assert "holds 30 responses; expected 100 or more" in said(
        "--data", str(tmp_path / "few.jsonl"), "--model", "nowhere"
    )
    assert not (tmp_path / "out").exists()
