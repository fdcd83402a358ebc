"""The small log that the README tries its commands on."""

from __future__ import annotations

from pathlib import Path

import pytest

import irm_fast
from irm_fast.experiments.small_log import make_small_log


def test_it_has_what_the_commands_take(tmp_path: Path) -> None:
    folder = make_small_log(tmp_path, prompts=40)
    log = irm_fast.read_log(folder / "log.jsonl")
    assert (len(log), log.signals) == (64, ("click", "copy"))
    assert len((folder / "log.test.jsonl").read_text().splitlines()) == 16
    assert (folder / "decoder" / "model.safetensors").exists()


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    one, other = (make_small_log(tmp_path / name, prompts=5, seed=3) for name in ("one", "other"))
    for name in ("log.jsonl", "decoder/model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "log.test.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already, and is not replaced"):
        make_small_log(tmp_path, prompts=5)
    assert [path.name for path in tmp_path.iterdir()] == ["log.test.jsonl"]
