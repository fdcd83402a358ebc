"""The command line: the whole path from ratings to scores, and one line for every error."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors import SafetensorError
from typer.testing import CliRunner

from irm_fast.cli.commands import app


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def rated(make_log, tmp_path_factory):
    """A file of rated responses."""
    path = tmp_path_factory.mktemp("data") / "rated.jsonl"
    log = make_log(80)
    with path.open("w") as file:
        for i, (question, answer) in enumerate(log.messages):
            rating = 4 if answer["content"].startswith("good") else 1
            row = {"prompt": question["content"], "completion": answer["content"], "rating": rating + i % 2}
            file.write(json.dumps(row) + "\n")
    return path


def test_from_ratings_to_scores(rated, tiny_model, tmp_path):
    log, model, scores = tmp_path / "log.jsonl", tmp_path / "model", tmp_path / "scores.jsonl"
    simulated = run("simulate", rated, "--out", log, "--signals", 2, "--target", 0.5, "--test-fraction", 0.2)
    assert all((tmp_path / name).exists() for name in ("log.jsonl", "log.truth.jsonl", "log.test.jsonl"))
    assert "log.test.jsonl" in simulated.stdout

    report = json.loads(run("validate", log, "--json").stdout)
    assert report["valid_rows"] == 64
    assert "click" in run("validate", log).stdout

    settings = tmp_path / "run.yaml"
    settings.write_text(f"model: {tiny_model}\nlearning_rate: 1e-3\nepochs: 30\nvalidation_fraction: 0.25\n")
    common = ["--config", settings, "--data", log, "--output", model, "--no-progress"]
    trained = run("train", *common, "--epochs", 2, "--propensity-design", "constant")
    assert "held-out nll" in trained.stdout
    assert re.search(r"trained [\d,]+ parameters; optimiser 0\.\d MB a device", trained.stdout)
    assert "The reward is" in trained.stdout
    assert json.loads((model / "irm_fast.json").read_text())["training"]["epochs"] == 2

    again = run("train", *common, code=2)
    assert again.stderr.startswith("error: output ")
    assert "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr

    on_truth = json.loads(run("evaluate", "--model", model, "--data", tmp_path / "log.truth.jsonl", "--json").stdout)
    assert on_truth["n"] == 64
    assert "auroc" in run("evaluate", "--model", model, "--data", tmp_path / "log.test.jsonl").stdout
    assert "click_predicted" in run("evaluate", "--model", model, "--data", log).stdout

    run("score", "--model", model, "--data", rated, "--out", scores)
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [line["id"] for line in lines[:2]] == ["row-1", "row-2"]
    assert np.std([line["reward"] for line in lines]) > 0


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--model", "/nowhere/at/all"], ["'/nowhere/at/all'", "no such folder"]),
        (["--data", "nowhere.jsonl"], ["nowhere.jsonl", "not found"]),
        (["--propensity-design", "known"], ["propensity.click", "known"]),
        (["--epochs", "0"], ["epochs", "above 0"]),
        (["--misclick-rate", "click=2"], ["misclick_rate", "[0, 1)"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_errors_are_one_line(rated, tiny_model, tmp_path, options, fragments):
    log = tmp_path / "log.jsonl"
    run("simulate", rated, "--out", log, "--target", 0.5)
    given = ["--data", log, "--model", tiny_model, "--output", tmp_path / "out", "--no-progress"]
    result = run("train", *given, "--propensity-design", "constant", *options, code=2)
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert all(fragment in error for fragment in fragments), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "finished",
    [
        "states.safetensors",
        "propensities/irm_fast.json",
        "constant/checkpoint-3/irm_fast_files.json",
        "constant/model/irm_fast.json",
    ],
)
def test_interrupt_promises_only_what_is_there(tmp_path, monkeypatch, finished):
    from irm_fast.training import run as trainer

    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", interrupt)
    settings = ["--model", "m", "--data", "d.jsonl", "--output", tmp_path]
    assert run("train", *settings, code=130).stderr == "interrupted\n"
    path = tmp_path / "checkpoints" / finished
    path.parent.mkdir(parents=True)
    assert run("train", *settings, code=130).stderr == "interrupted\n"
    path.write_text("{}")
    assert "interrupted; --resume" in run("train", *settings, code=130).stderr


def test_unknown_key_in_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text("model: m\noutput: o\nlearningrate: 1\n")
    result = run("train", "--config", tmp_path / "run.yaml", code=2)
    assert result.stderr.splitlines() == [
        f"error: {tmp_path}/run.yaml: unknown setting 'learningrate'; did you mean 'learning_rate'?"
    ]


@pytest.mark.parametrize("place", [0, 1, 5])
def test_debug_shows_the_traceback_before_and_after_the_command(tmp_path, place):
    arguments = ["evaluate", "--model", str(tmp_path), "--data", "x.jsonl"]
    assert not isinstance(CliRunner().invoke(app, arguments).exception, ValueError)
    result = CliRunner().invoke(app, [*arguments[:place], "--debug", *arguments[place:]])
    assert isinstance(result.exception, ValueError)


def test_a_missing_value_is_named_by_its_option(tmp_path):
    error = run("train", "--data", "x.jsonl", code=2).stderr
    assert error == "error: no value for --output and --model; give it, or a YAML file of settings by --config\n"
    (tmp_path / "run.yaml").write_text("output: o\n")
    error = run("train", "--config", tmp_path / "run.yaml", code=2).stderr
    assert error == f"error: {tmp_path}/run.yaml: no value for model; set it here or in a YAML file\n"


def test_validate_reports_problems(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"prompt": "a", "completion": "b", "feedback": {"copy": 3}}\n')
    assert "feedback.copy" in run("validate", tmp_path / "log.jsonl", code=1).stdout
    result = run("validate", tmp_path / "log.jsonl", "--absent", "perhaps", code=2)
    assert "absent: got 'perhaps'; expected 'error', 'silent', 'missing'" in result.stderr


def test_version():
    assert re.fullmatch(r"irm-fast 0[\d.]+\n", run("--version").stdout)


def test_every_setting_is_an_option():
    from dataclasses import fields

    import typer

    from irm_fast.training.config import PROGRAMS

    command = typer.main.get_command(app).commands["train"]
    options = {name for parameter in command.params for name in parameter.opts}
    settings = {field.name for program in PROGRAMS for field in fields(program)}
    assert {f"--{name.replace('_', '-')}" for name in settings} <= options


def test_help_imports_neither_torch_nor_transformers():
    code = "import sys; sys.argv = ['irm-fast', 'train', '--help']; from irm_fast.cli import main\n"
    code += "try: main()\nexcept SystemExit: assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "error: out of memory (MemoryError); expected a smaller file, batch or model, or more memory"),
        (OverflowError("too large\nreally"), "error: not foreseen: OverflowError: too large; --debug shows where"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "error: a file could not be written: no space",
        ),
        (
            SafetensorError("header too small"),
            "error: not foreseen: SafetensorError: header too small; --debug",
        ),
        (EOFError(), "error: not foreseen: EOFError: ; --debug"),
        (RecursionError("maximum depth"), "error: not foreseen: RecursionError: maximum depth"),
        (RuntimeError("the processes see different data"), "error: the processes see different data\n"),
    ],
)
def test_every_error_is_a_line(tmp_path, monkeypatch, error, said):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("irm_fast.data.validation.validate", fail)
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "log.jsonl")])
    assert result.exit_code == 2 and result.stderr.startswith(said) and result.stderr.count("\n") == 1
    debugged = CliRunner().invoke(app, ["--debug", "validate", str(tmp_path / "log.jsonl")])
    assert debugged.exception is error or isinstance(error, EOFError)  # of which click makes "Aborted."
