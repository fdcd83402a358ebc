"""Hostile files are read or refused in the documented way; the fuzzer that says so can fail."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from benchmarks import fuzz
from benchmarks.fuzz_inputs import SEEDS, changed
from irm_fast.data.guards import bounded_memory
from irm_fast.data.problems import DataError
from irm_fast.data.read import read_log
from irm_fast.data.validation import validate

ROW = {"id": "a", "prompt": "q", "completion": "x", "feedback": {"copy": 1}}


def test_nothing_breaks_a_promise_in_some_thousand_inputs(tmp_path: Path) -> None:
    result = fuzz.run(300, seed=0, keep=tmp_path, inputs=4_000)  # the same ones on every machine
    assert result["found"] == {} and result["inputs"] == 4_000, result
    assert sum(count for name, count in result["counts"].items() if name.endswith("read")) > 10


def test_seeds_are_read_as_they_are(tmp_path: Path) -> None:
    for seed in sorted(SEEDS.iterdir()):
        outcomes = []
        for read in fuzz.targets(seed.name, tmp_path):
            path = tmp_path / f"input-{seed.name}"
            path.write_bytes(seed.read_bytes())
            outcomes.append(fuzz._outcome(read, path, bounded_memory))
        assert any(outcome == "read" for outcome, _ in outcomes) or seed.name.startswith("export"), (seed, outcomes)


def test_inputs_are_the_same_for_the_same_chance_and_are_many() -> None:
    for name in ("log.jsonl", "log.csv", "train.yaml", "irm_fast.json"):
        seed = (SEEDS / name).read_bytes()
        made = [changed(seed, name, random.Random(number)) for number in range(50)]
        assert made == [changed(seed, name, random.Random(number)) for number in range(50)]
        assert len(set(made)) > 40


def _raising(error: Exception) -> Callable[[Path], Any]:
    def read(path: Path) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (_raising(TypeError("x")), "undocumented TypeError"),
        (_raising(UnicodeDecodeError("utf-8", b"", 0, 1, "x")), "undocumented UnicodeDecodeError"),
        (_raising(ValueError("bad")), "names no file: ValueError"),
        (lambda path: all(n >= 0 for n in itertools.count()), "undocumented Hang"),
        (lambda path: b"x" * 2**31, "undocumented MemoryError"),
        (lambda path: _raising(DataError([f"{path}:1: bad"]))(path), "refused"),
        (lambda path: 1, "read"),
    ],
)
def test_the_fuzzer_sees_what_breaks_a_promise(monkeypatch, tmp_path, read, outcome) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    before = fuzz.signal.signal(fuzz.signal.SIGPROF, fuzz._interrupt)
    try:
        assert fuzz._outcome(read, tmp_path / "log.jsonl", bounded_memory)[0].startswith(outcome)
    finally:
        fuzz.signal.signal(fuzz.signal.SIGPROF, before)


# Found by it, and mended


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feedback": {"copy": 10**400}}, "got a number of 401 digits; expected at most 300"),
        ({"weight": -(10**400)}, "got a number of 402 digits; expected at most 300"),
    ],
)
def test_whole_numbers_beyond_all_bounds(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(ROW | change) + "\n")
    assert any(words in problem for problem in validate(tmp_path / "log.jsonl")["problems"])
    with pytest.raises(DataError, match="expected"):  # in memory
        read_log([ROW | change])


def test_names_that_are_not_unicode_are_said(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(ROW | {"\ud800": 1, "features": {"\ud800": 1}}) + "\n")
    assert validate(tmp_path / "log.jsonl")["problem_count"]


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([2**62], pyarrow.timestamp("ms")),
        pyarrow.array([[1]], pyarrow.list_(pyarrow.int8())),
        pyarrow.array([2**62], pyarrow.timestamp("ns")),
    ],
)
@pytest.mark.parametrize("name", ["weight", "timestamp", "position", "user_id"])
def test_columns_of_other_types_are_problems(tmp_path: Path, name: str, column: Any) -> None:
    table = pyarrow.table({**{key: [value] for key, value in ROW.items()}, name: column})
    parquet.write_table(table, tmp_path / "log.parquet")
    report = validate(tmp_path / "log.parquet")
    assert all(problem.startswith(f"{tmp_path}/log.parquet") for problem in report["problems"])
