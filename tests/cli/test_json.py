"""`--json` of every command: one object on the standard output; `--quiet`; and where all else is said."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from irm_fast.cli.answers import Answer, Table, for_json
from irm_fast.cli.commands import app
from irm_fast.experiments import demo
from irm_fast.experiments.downstream import run as downstream
from irm_fast.experiments.reproduce import redraws
from irm_fast.experiments.worlds import run as worlds

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
RUNS = (  # one after the other in one folder; what a command reads an earlier one wrote
    "simulate rated.jsonl --out log.jsonl --signals 2 --target 0.5 --test-fraction 0.2",
    "import kto kto.jsonl --out kto-log.jsonl",
    "validate log.jsonl",
    'mask "click where platform=ios" --data segments.jsonl --out masked.jsonl',
    "train --data log.jsonl --model MODEL --output run --dry-run --propensity-design constant",
    "train --data log.jsonl --model MODEL --output run --epochs 1 --batch-size 8 --propensity-design constant",
    "embed --data log.jsonl --model MODEL --out log.safetensors",
    "train --data log.jsonl --embeddings log.safetensors --output fit --hidden-layers linear",
    "verify run",
    "evaluate --model run --data log.test.jsonl",
    "diagnose --data log.jsonl",
    "report run",
    "export run --out exported",
    "compare --data segments.jsonl --model run --by platform",
    "score --model run --data answers.jsonl --out rewards.jsonl",
    "label --next 4 --data log.jsonl --model fit --out to_rate.jsonl",
    "label --merge rated-rows.jsonl --data log.jsonl --out labelled.jsonl",
    "demo",
    "reproduce --data semi-synthetic --output out",
    "downstream --output out",
    "worlds --output out",
    "doctor",
)


def invoke(words: list[str]) -> Any:
    result = CliRunner().invoke(app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def place(make_log: Any, tiny_model: str, tmp_path_factory: Any) -> Path:
    """A folder with tiny data."""
    folder = tmp_path_factory.mktemp("json")
    texts = [(question["content"], answer["content"]) for question, answer in make_log(60).messages]
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in texts]
    files: dict[str, list[dict[str, Any]]] = {
        "rated.jsonl": [row | {"rating": 5 if i % 2 else 1} for i, row in enumerate(rows)],
        "kto.jsonl": [row | {"label": bool(i % 2)} for i, row in enumerate(rows)],
        "answers.jsonl": rows,
        "segments.jsonl": [
            row | {"feedback": {"click": int(i % 3 == 0), "copy": i % 2}, "platform": "android" if i % 4 else "ios"}
            for i, row in enumerate(rows)
        ],
        "rated-rows.jsonl": [{"id": "row-1", "preference": 1, "label_probability": 0.5}],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_every_command_prints_one_object_and_nothing_else(place: Path, tiny_model: str, monkeypatch: Any) -> None:
    def noisy_demo(*args: Any) -> demo.Demo:
        print("what a library prints")
        return demo.Demo([{"naive": {"auroc": float("nan")}}], "| a |", ["more"])

    monkeypatch.chdir(place)
    monkeypatch.setattr(demo, "run_demo", noisy_demo)
    monkeypatch.setattr(redraws, "run_redraws", lambda *args, **how: [{"method": "naive", "auroc": np.float32(0.5)}])
    monkeypatch.setattr(redraws, "write_report", lambda *args: "a report")
    monkeypatch.setattr(downstream, "run_downstream", lambda *args, **how: [{"step": np.int64(0)}])
    monkeypatch.setattr(downstream, "write_report", lambda *args: "a report")
    monkeypatch.setattr(worlds, "run_worlds", lambda *args, **how: [{"acts": np.float64(0)}])
    monkeypatch.setattr(worlds, "write_report", lambda *args: "a report")
    answers = {}
    for line in RUNS:
        words = [tiny_model if word == "MODEL" else word for word in shlex.split(line)]
        result = invoke([*words, "--json"])
        assert result.exit_code == 0, (line, result.output)
        answers[line] = json.loads(result.stdout)
        assert isinstance(answers[line], dict) and answers[line], line
    assert {line.split()[0] for line in RUNS} == set(COMMANDS)  # a new command has its line
    by_command = {line.split()[0]: answer for line, answer in answers.items()}
    assert by_command["score"] == {"wrote": str(place / "rewards.jsonl"), "rows": 60, "not_finite": 0}
    assert by_command["demo"]["results"] == [{"naive": {"auroc": None}}]
    assert by_command["simulate"]["rows"] == 48 and set(by_command["simulate"]["rates"]) == {"click", "copy"}
    assert answers[RUNS[4]]["plan"]["rows"] + answers[RUNS[4]]["plan"]["heldout"] == 48
    assert answers[RUNS[5]]["training"]["epochs"] == 1 and "nll" in answers[RUNS[5]]["metrics"]
    assert by_command["verify"]["whole"] and by_command["embed"]["rows"] == 48
    assert not list(place.glob("run/checkpoints"))


def test_a_failure_leaves_the_standard_output_empty(tmp_path: Path) -> None:
    result = invoke(["evaluate", "--model", str(tmp_path), "--data", "x.jsonl", "--json"])
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr.startswith("error: ")


def test_rewards_on_the_standard_output_are_alone_there() -> None:
    printed = []
    for code in (0, 1):
        answer = Answer({"rows": 1}, ["wrote it"], code, aside=True)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("irm_fast.cli.answers.echo", lambda text, err=False: printed.append((text.strip(), err)))
            answer.show(as_json=bool(code))
    assert printed == [("wrote it", True), ('{\n  "rows": 1\n}', True)]


def test_an_answer_is_json_whatever_it_holds() -> None:
    held = {"path": Path("a"), "nan": float("nan"), "few": (np.float32(0.5), np.int64(2)), 3: {"inf": float("inf")}}
    assert json.loads(json.dumps(for_json(held), allow_nan=False)) == {
        "path": "a",
        "nan": None,
        "few": [0.5, 2],
        "3": {"inf": None},
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_says_results_alone(place: Path, tiny_model: str, monkeypatch: Any, tmp_path: Path, quiet: bool) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", str(place / "segments.jsonl"), "--model", tiny_model, "--output", "run"]
    words += ["--epochs", "1", "--propensity-design", "constant", *(["--quiet"] if quiet else [])]
    result = invoke(words)
    assert result.exit_code == 0 and "wrote run" in result.stdout
    assert (not result.stderr) == quiet, result.stderr
    if not quiet:
        assert "trains 1 model" in result.stderr and "held-out nll" in result.stderr and "\r" not in result.stderr


def test_a_table_is_drawn_on_a_terminal_alone(monkeypatch: Any, capsys: Any) -> None:
    answer = Answer({}, [Table(("metric", "value"), [("auroc\x1b[2J", "0.5"), ("ece", "whole")])])
    answer.show(as_json=False)
    plain = capsys.readouterr().out
    assert plain.splitlines() == ["auroc\\u001b[2J  0.5", "ece             whole"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    answer.show(as_json=False)
    drawn = capsys.readouterr().out
    assert "metric" in drawn and "─" in drawn and "\x1b[2J" not in drawn
