"""A second run into the same place is refused in a line that names the first, and touches nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.writing.lock import only_run
from tests.data.writing.test_lock import hold
from tests.training.training_cases import write_log

FOLDERS = {
    "train": ["train", "--model", "MODEL", "--data", "LOG", "--output", "PLACE"],
    "train, resumed": ["train", "--model", "MODEL", "--data", "LOG", "--output", "PLACE", "--resume"],
    "train, anew": ["train", "--model", "MODEL", "--data", "LOG", "--output", "PLACE", "--overwrite"],
    "train --embeddings": ["train", "--embeddings", "EMBEDDED", "--data", "LOG", "--output", "PLACE"],
    "embed": ["embed", "--model", "MODEL", "--data", "LOG", "--out", "PLACE", "--overwrite"],
    "reproduce": ["reproduce", "--data", "semi-synthetic", "--output", "PLACE", "--resume"],
    "downstream": ["downstream", "--output", "PLACE", "--resume"],
    "worlds": ["worlds", "--output", "PLACE", "--resume"],
    "demo": ["demo", "--output", "PLACE"],
}


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A folder that another process writes to."""
    folder = tmp_path_factory.mktemp("held") / "place"
    first = hold(folder, 300)
    yield folder
    first.kill()
    first.wait()


@pytest.mark.parametrize("command", FOLDERS)
def test_into_a_folder(held, make_log, tiny_model, tmp_path, command) -> None:
    write_log(make_log(16), tmp_path / "log.jsonl")
    told = {"MODEL": tiny_model, "LOG": str(tmp_path / "log.jsonl"), "PLACE": str(held), "EMBEDDED": "e.safetensors"}
    result = CliRunner().invoke(app, [told.get(word, word) for word in FOLDERS[command]])
    assert result.exit_code == 2, result.output
    assert f"{held} is being written by irm-fast test, process " in result.stderr.splitlines()[-1]
    assert [path.name for path in held.iterdir()] == ["irm_fast.lock"]


@pytest.mark.parametrize("command", ["embed", "score"])
def test_into_a_file(make_log, tiny_model, tmp_path, command) -> None:
    write_log(make_log(16), tmp_path / "log.jsonl")
    out = tmp_path / f"out.{'safetensors' if command == 'embed' else 'jsonl'}"
    first = hold(tmp_path / "other")
    try:
        (tmp_path / "other" / "irm_fast.lock").rename(Path(f"{out}.lock"))  # as if it wrote the file
        arguments = [
            command,
            "--model",
            tiny_model,
            "--data",
            str(tmp_path / "log.jsonl"),
            "--out",
            str(out),
            "--overwrite",
        ]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert f"error: out: {out} is being written by irm-fast test, process {first.pid}" in result.stderr
    finally:
        first.kill()
        first.wait()
    with only_run(out, "irm-fast test", folder=False, argument="out"):
        pass  # it is free now
