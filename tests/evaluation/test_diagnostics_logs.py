"""The diagnosis of logs, of models on logs, and of training runs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.signals import RewardSpec
from irm_fast.evaluation.log_diagnosis import diagnose_file, diagnose_rows, joined
from irm_fast.models.heldout import HeldOut
from irm_fast.models.passes import Passes
from irm_fast.training.run import train_log


def write(log, path, **more) -> Path:
    with path.open("w") as file:
        for i, (turns, given) in enumerate(zip(log.messages, log.feedback.tolist(), strict=True)):
            row = {"id": log.ids[i], "messages": turns, "feedback": dict(zip(log.signals, given, strict=True))}
            file.write(json.dumps(row | {name: values[i] for name, values in more.items()}) + "\n")
    return path


def run(*arguments, code=0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout


def test_a_run_is_diagnosed_on_its_held_out_rows(make_log, make_config, tmp_path, monkeypatch):
    """The stored diagnosis is that of the saved model on the same rows, whatever order training had them in."""
    log, heldout = make_log(160), make_log(120, seed=1)
    config = make_config(propensity_design="auto", estimator="joint")
    result = train_log(log, config, heldout=heldout)
    stored = json.loads((Path(config.output) / "irm_fast.json").read_text())["diagnosis"]
    assert stored == json.loads(json.dumps(result.diagnosis.to_dict()))

    path = write(heldout, tmp_path / "heldout.jsonl")
    seen, whole = [], Passes.run
    monkeypatch.setattr(Passes, "run", lambda self, *a: seen.append(self.token_budget) or whole(self, *a))
    again = json.loads(run("diagnose", "--data", path, "--model", config.output, "--json", "--token-budget", 99))
    assert set(seen) == {99}
    assert again["sensitivity"]["mean_g"] == pytest.approx(stored["sensitivity"]["mean_g"], rel=1e-5)
    for one, two in zip(stored["tests"], again["tests"], strict=True):
        if one["name"] in ("inequality", "fit: calibration"):
            assert one["statistic"] == pytest.approx(two["statistic"], rel=1e-3)
            assert one["statistic"] is not None
    count = {test["name"]: test["statistic"] for test in stored["tests"]}["co-actions"]
    assert count == log.feedback.all(axis=1).sum() + heldout.feedback.all(axis=1).sum()


def test_a_run_without_held_out_rows(make_log, make_config):
    result = train_log(make_log(160), make_config(epochs=1, validation_fraction=0))
    assert result.diagnosis.kind == "conditional"
    assert result.diagnosis.sensitivity.mean_g is None


def test_explicit_preferences_only(make_log, make_config):
    result = train_log(make_log(signals=()), make_config(epochs=1))
    assert result.diagnosis.kind == "not identified"
    assert "chosen regardless of the preference" in result.diagnosis.verdict


def test_the_command(make_log, tmp_path):
    log = make_log(600)
    path = write(log, tmp_path / "log.jsonl")
    assert "The reward is identified if the signals are independent" in run("diagnose", "--data", path)
    assert json.loads(run("diagnose", "--data", path, "--json"))["kind"] == "conditional"

    feedback = log.feedback.copy()
    feedback[:, 1] = feedback[:, 0]
    twice = write(replace(log, feedback=feedback), tmp_path / "twice.jsonl")
    assert "copy and share act in the same rows" in run("diagnose", "--data", twice, code=1)
    said = run("diagnose", "--data", path, "--polarity", "share=-1", code=1)
    assert "opposite signals" in said

    one = write(replace(log, signals=("copy",), feedback=feedback[:, :1]), tmp_path / "one.jsonl")
    assert "not identified without assuming that the propensity is the same" in run("diagnose", "--data", one)
    assert "any other split" in run("diagnose", "--data", one, "--propensity-design", "hidden").replace("\n", " ")
    run("diagnose", "--data", path, "--propensity-design", "perhaps", code=2)


def test_known_propensities_and_labels_in_a_file(make_log, tmp_path):
    log = make_log(600, signals=("copy",))
    known = write(log, tmp_path / "known.jsonl", propensity=[{"copy": 0.6}] * 600)
    assert diagnose_file(known).kind == "identified"
    assert diagnose_file(known, propensity_design="constant").kind == "not identified"
    labels = [int(log.feedback[i, 0] == 1) if i < 200 else None for i in range(600)]
    labelled = write(log, tmp_path / "labelled.jsonl", preference=labels)
    assert diagnose_file(labelled).kind == "not identified"
    assert diagnose_file(labelled, labels_ignorable=True).kind == "identified"


def test_logs_end_to_end(make_log):
    bare = make_log(2)
    some = replace(
        make_log(3),
        session_ids=["a", None, "b"],
        times=np.array([1.0, np.nan, 3.0]),
        acted_at=np.array([[1.0, np.nan], [2.0, 3.0], [np.nan, 4.0]]),
        segments={"platform": ["ios", None, "web"]},
    )
    other = replace(bare, segments={"model": ["m", "n"]})
    assert joined([bare, some, bare], "session_ids") == [None, None, "a", None, "b", None, None]
    np.testing.assert_array_equal(joined([some, bare], "times"), [1, np.nan, 3, np.nan, np.nan])
    acted_at = joined([bare, some], "acted_at")
    np.testing.assert_array_equal(acted_at, [[np.nan] * 2] * 2 + [[1, np.nan], [2, 3], [np.nan, 4]])
    assert joined([some, other], "segments") == {
        "platform": ["ios", None, "web", None, None],
        "model": [None, None, None, "m", "n"],
    }
    assert joined([bare, bare], "segments") == {}
    unknown = replace(bare, user_ids=[None, None])
    assert joined([bare, bare], "times") is joined([bare, unknown], "user_ids") is None


def test_users_of_a_file_are_read(make_log):
    log = make_log(600)
    spec = RewardSpec("constant", log.signals, log.polarity, (0.0, 0.0))
    logits = HeldOut(np.zeros(600), np.ones(600), np.full(600, 0.4), np.full((600, 2), 0.4))
    some = replace(log, user_ids=[None if i % 3 == 0 else f"user {i % 100}" for i in range(600)])
    named = {test.name: test for test in diagnose_rows([log, some], spec, logits).tests}
    assert named["users alike"].result == "passed"
    without = {test.name: test for test in diagnose_rows([log], spec, logits).tests}
    assert without["users alike"].result == "not testable"
