"""The dry run: what a run would do and cost, with nothing written."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.training import plan as plans
from irm_fast.training.plan import Trial
from irm_fast.training.run import dry_run, train


@pytest.fixture
def saved_log(make_log, tmp_path):
    """A function that writes a log, some of whose rows are long."""

    def save(signals=("copy", "share"), n=48) -> str:
        log, path = make_log(n, signals), tmp_path / "log.jsonl"
        with path.open("w") as file:
            for i in range(n):
                prompt, answer = (turn["content"] for turn in log.messages[i])
                row = {"id": log.ids[i], "prompt": prompt + " why" * (40 if i % 8 == 0 else 0), "completion": answer}
                row["feedback"] = dict(zip(signals, log.feedback[i].tolist(), strict=True))
                file.write(json.dumps(row) + "\n")
        return str(path)

    return save


def test_it_tells_what_the_run_does(saved_log, make_config, tmp_path) -> None:
    config = make_config(data=saved_log(), max_length=100, propensity_design="auto", estimator="joint", eval_steps=2)
    plan, trial = dry_run(config)
    assert not (tmp_path / "out").exists()
    result = train(config)
    assert plan.designs == ("constant", "hidden") and set(result.designs) == set(plan.designs)
    assert plan.truncated == result.truncated > 0 and plan.longest == plan.max_length == 100
    assert plan.rows == 36 and plan.heldout == 12
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines if line["propensity_design"] == "hidden"]
    assert max(steps) == plan.steps * plan.epochs
    evaluations = {line["step"] for line in lines if "eval_nll" in line and line["propensity_design"] == "hidden"}
    assert len(evaluations) <= plan.evaluations <= len(evaluations) + 1  # patience may leave some out
    assert trial.steps == 6 and 0 < trial.seconds < 30


def test_its_time_counts_designs_epochs_and_evaluations(saved_log, make_config) -> None:
    data = saved_log()
    one, _ = dry_run(make_config(data=data, estimator="joint", epochs=3))
    two, _ = dry_run(make_config(data=data, estimator="joint", epochs=3, propensity_design="auto"))
    trial = Trial(6, 2.0)
    trained, read = 3 * one.steps * 2.0, 3 * one.heldout_tokens / one.tokens * one.steps * 2.0 / 3
    assert one.seconds(trial) == pytest.approx(trained + read)
    assert two.seconds(trial) == pytest.approx(2 * one.seconds(trial))


def test_propensities_first_are_counted_and_not_fitted(saved_log, make_config, monkeypatch) -> None:
    def fit(*arguments):
        raise AssertionError("fitted")

    monkeypatch.setattr("irm_fast.training.run.fit_propensities", fit)
    plan, trial = dry_run(make_config(data=saved_log(n=240), estimator="two-step", propensity_design="hidden"))
    assert (
        plan.first
        and "propensities first, fitted to states of the untrained model; propensity design hidden" in plan.trains
    )
    assert "without the fit of the propensities" in plan.in_words(trial)
    assert "trained; the pass that makes states for the propensities is not tried" in plan.in_words(trial)


def test_a_step_that_does_not_fit_into_memory_is_said(saved_log, make_config, monkeypatch) -> None:
    def forward(*arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("irm_fast.training.trainer.ImplicitTrainer.compute_loss", forward)
    plan, trial = dry_run(make_config(data=saved_log()))
    assert trial.seconds is None and plan.seconds(trial) is None
    assert "time      unknown: a step did not fit into memory; expected a smaller --token-budget" in plan.in_words(
        trial
    )


@pytest.mark.parametrize("estimator", ["joint", "two-step"])
def test_a_model_that_does_not_fit_into_memory_is_said(saved_log, tiny_model, tmp_path, monkeypatch, estimator) -> None:
    def move(*arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("irm_fast.training.trainer.ImplicitTrainer.__init__", move)
    given = ["--data", saved_log(n=240), "--model", tiny_model, "--output", str(tmp_path / "out")]
    how = ["--estimator", estimator, "--propensity-design", "hidden", "--dry-run"]
    result = CliRunner().invoke(app, ["train", *given, *how])
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    said = result.stderr
    assert "error: the model did not fit into memory, before the first step; training takes about" in said
    assert "GB a device (weights" in said and "; expected a smaller --token-budget" in said
    assert ("the pass that makes states for the propensities is not tried" in said) == (estimator == "two-step")


def test_a_slow_step_ends_the_trial(saved_log, make_config, monkeypatch) -> None:
    monkeypatch.setattr(plans, "_SECONDS", 0.0)
    assert dry_run(make_config(data=saved_log()))[1].steps == 1


def test_the_command(saved_log, tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["train", "--data", saved_log(), "--model", tiny_model, "--output", "out", "--estimator", "joint"]
    before = set(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, [*given, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert set(tmp_path.rglob("*")) == before
    first, *lines = result.stdout.splitlines()
    assert first == "out would be written, and is not:"
    names = [line.split()[0] for line in lines]
    assert names == ["trains", "rows", "signals", "tokens", "steps", "computes", "memory", "time"]
    assert "GB" in lines[-2] and "s a step, timed over 6 steps" in lines[-1]
    refused = CliRunner().invoke(app, [*given[:-2], "--embeddings", "x.safetensors", "--dry-run"])
    assert refused.exit_code == 2 and "a fit on embeddings has none; leave it out" in refused.output


def test_what_a_run_refuses_it_refuses(saved_log, make_config, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not empty, and not by irm-fast"):
        dry_run(make_config(data=saved_log()))
