"""A folder of embeddings: shards that several processes write, each by itself, and runs that are interrupted."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.store import read_embeddings, read_source
from irm_fast.embeddings.writing import write_embeddings
from irm_fast.models import parts
from tests.embeddings.interruption import interrupted_after
from tests.evaluation import command_run
from tests.training import forked

ROWS = 20
NAMES = [f"embeddings-{number:05}-of-00003.safetensors" for number in range(3)]


@pytest.fixture
def log(make_log):
    return make_log(ROWS)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 4)


@pytest.fixture
def embedder(tiny_model) -> Embedder:
    return Embedder(tiny_model)


def write(log, embedder, out: Path, **how) -> int:
    return write_embeddings(log.ids, log.messages, embedder, out, shard_rows=how.pop("shard_rows", 8), **how)


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_shards_hold_what_one_file_holds(log, embedder, tmp_path, small_parts):
    folder, file = tmp_path / "shards", tmp_path / "e.safetensors"
    assert write(log, embedder, folder) == write(log, embedder, file) == 0
    assert held(folder) == NAMES
    whole, shards = load_file(file), [load_file(folder / name) for name in NAMES]
    for name in ("embeddings", "row_hash"):
        np.testing.assert_array_equal(np.concatenate([shard[name] for shard in shards]), whole[name])
    assert [len(shard["row_hash"]) for shard in shards] == [8, 8, 4]
    assert {read_source(folder / name) for name in NAMES} == {read_source(file)}
    for rows in (np.arange(ROWS), np.array([17, 3, 9, 0])):
        some = log.subset(rows)
        np.testing.assert_array_equal(read_embeddings(folder, some.ids, some.messages), whole["embeddings"][rows])


@pytest.fixture
def interrupted(log, embedder, tmp_path, small_parts) -> Path:
    """The folder of a run that ended in the second part of its second file."""
    folder = tmp_path / "shards"
    with interrupted_after(3):
        write(log, embedder, folder)
    assert held(folder) == [NAMES[0], f"{NAMES[1]}.parts"]
    with pytest.raises(ValueError, match="2 of the 3 files of 'embeddings' are missing"):
        read_embeddings(folder, log.ids, log.messages)
    return folder


def test_resume_keeps_finished_files_and_parts(interrupted, log, embedder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds an interrupted run; --resume goes on with it, --overwrite replaces it"):
        write(log, embedder, interrupted)
    embed, computed = embedder.embed, []
    monkeypatch.setattr(embedder, "embed", lambda some, how: computed.append(len(some)) or embed(some, how))
    write(log, embedder, interrupted, resume=True)
    assert computed == [4, 4]
    write(log, embedder, tmp_path / "anew")
    for name in NAMES:
        assert (interrupted / name).read_bytes() == (tmp_path / "anew" / name).read_bytes()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"holds a finished run; --overwrite replaces it$"):
            write(log, embedder, interrupted, resume=resume)


def test_resume_refuses_other_rows_and_other_shards(interrupted, log, embedder, make_log):
    other = make_log(ROWS, seed=1)
    with pytest.raises(ValueError, match=r"data: row 'row-\d+' is not what .*of-00003.safetensors was written from"):
        write(other, embedder, interrupted, resume=True)
    with pytest.raises(ValueError, match=r"holds embeddings-00000-of-00003.* make 4 files; repeat .*--shard-rows"):
        write(log, embedder, interrupted, resume=True, shard_rows=5)
    with pytest.raises(ValueError, match="dtype: got bfloat16 instead of float32"):
        write(log, embedder, interrupted, resume=True, dtype="bfloat16")
    assert held(interrupted) == [NAMES[0], f"{NAMES[1]}.parts"]
    write(log, embedder, interrupted, overwrite=True, shard_rows=5)
    assert held(interrupted) == [f"embeddings-{number:05}-of-00004.safetensors" for number in range(4)]


def test_folders_of_others_stay(log, embedder, tmp_path):
    for how in ({}, {"overwrite": True}, {"resume": True}):
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match="is not empty and holds no earlier run of irm-fast embed"):
            write(log, embedder, folder, **how)
    (tmp_path / "shards").mkdir()
    write(log, embedder, tmp_path / "shards")  # an empty one is filled
    (tmp_path / "shards" / "notes.txt").write_text("mine")
    write(log, embedder, tmp_path / "shards", overwrite=True)
    assert held(tmp_path / "shards") == [*NAMES, "notes.txt"]
    with pytest.raises(ValueError, match="no such folder"):
        write(log, embedder, tmp_path / "none" / "shards")
    with pytest.raises(ValueError, match="shard_rows: got 0; expected 1 or more"):
        write(log, embedder, tmp_path / "other", shard_rows=0)


def test_two_processes_write_the_files_of_one(tiny_model, log, tmp_path):
    data = tmp_path / "log.jsonl"
    rows = zip(log.ids, log.messages, strict=True)
    data.write_text("".join(json.dumps({"id": name, "messages": messages}) + "\n" for name, messages in rows))
    for ranks in (1, 2):
        command = ["embed", "--data", data, "--model", tiny_model, "--out", tmp_path / f"by-{ranks}"]
        command += ["--shard-rows", 8, "--max-length", 8]
        said = tmp_path / f"said-{ranks}"
        assert forked.run((str(said), *map(str, command)), ranks, tmp_path, command_run.main) == [0] * ranks
        text = Path(f"{said}.0").read_text()
        assert f"by-{ranks}: 20 embeddings of 32 numbers" in text
        assert int(re.findall(r"(\d+) rows were longer than 8", text)[0]) == ROWS
    assert held(tmp_path / "by-1") == held(tmp_path / "by-2") == NAMES
    for name in NAMES:
        one, two = (load_file(tmp_path / f"by-{ranks}" / name)["embeddings"] for ranks in (1, 2))
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
