"""The measurement of memory goes through the commands as they are."""

import json
import sys

import pytest

from benchmarks import memory


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("command", memory.COMMANDS)
def test_every_command_is_measured(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory", command, str(tmp_path), "--one", "--rows", "60"])
    memory.main()
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    assert found["rows"] == 60 and 0 < found["resident"] < 1e5
    assert "some steps" in said.err if command == "train" else command in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "reward_model", "rows-60.jsonl"]
