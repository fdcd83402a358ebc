"""A few bytes of Parquet may stand for any number of rows, entries, columns and texts, and are refused."""

import io
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from irm_fast.data.reading import parquet_files
from irm_fast.data.validation import validate


def log(rows: int, **columns) -> pa.Table:
    feedback = pa.StructArray.from_arrays([pa.array(np.arange(rows) % 2)], names=["copy"])
    texts = {name: pa.array(["x"] * rows) for name in ("prompt", "completion")}
    return pa.table({"id": pa.array([str(i) for i in range(rows)]), **texts, "feedback": feedback, **columns})


def same(value: object, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))


def long_list(entries: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, entries, entries, entries], pa.int32()), np.zeros(entries, np.int8))


def nested(depth: int) -> pa.Array:
    values = pa.array([1, 2, 3])
    for _ in range(depth):
        values = pa.StructArray.from_arrays([values], names=["a"])
    return values


HOSTILE = {
    "one text in many rows": (lambda: log(20_000, prompt=same("a" * 2**23, 20_000)), "bytes of memory"),
    "a short text in many rows": (lambda: log(200_000, prompt=same("a" * 1000, 200_000)), "200 times its size"),
    "a list of many entries": (lambda: log(3, features=long_list(7 * 10**7)), "200 times its size|of memory"),
    "one long text": (lambda: log(3, prompt=["a" * 2**25, "b", "c"]), "row 1 takes more than 16,777,216 bytes"),
    "a text of 300 MB": (lambda: log(3, prompt=["a" * (300 * 2**20), "b", "c"]), "200 times its size|of memory"),
    "structs within each other": (lambda: log(3, features=nested(300)), "too deeply nested|cannot be read"),
    "many columns": (lambda: log(3, **{f"c{i}": [1, 2, 3] for i in range(5000)}), "got 5,004 columns"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_in_a_line_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    make, words = HOSTILE[kind]
    path = tmp_path / "log.parquet"
    parquet.write_table(make(), path, compression="zstd", dictionary_pagesize_limit=2**30)
    before, started = resource.getrlimit(resource.RLIMIT_DATA), time.process_time()
    [problem] = validate(path)["problems"]
    assert problem.startswith(f"{path}: file: ") and any(word in problem for word in words.split("|"))
    assert time.process_time() - started < 60 and resource.getrlimit(resource.RLIMIT_DATA) == before


def test_memory_is_bounded_while_a_batch_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "PARQUET_MEMORY", 2**26)
    monkeypatch.setattr(parquet_files, "_THREAD", 0)
    parquet.write_table(log(20_000, prompt=same("a" * 2**19, 20_000)), tmp_path / "log.parquet", compression="zstd")
    [problem] = validate(tmp_path / "log.parquet")["problems"]
    assert "some 8,192 rows after row 0 take more than 67,108,864 bytes of memory" in problem


def test_texts_that_are_not_unicode_are_said(tmp_path: Path) -> None:
    wrong = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"q\xff"))
    parquet.write_table(log(2).set_column(1, "prompt", wrong), tmp_path / "log.parquet")
    [problem] = validate(tmp_path / "log.parquet")["problems"]
    assert problem.startswith(f"{tmp_path}/log.parquet: file: cannot be read") and "UTF8" in problem


def test_honest_files_are_read_whatever_the_length_of_their_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [bytes(rng.integers(97, 123, 100_000, dtype=np.uint8)).decode() for _ in range(1000)]
    table = log(1000, completion=texts, user_id=same("u", 1000))
    parquet.write_table(table, tmp_path / "log.parquet", compression="zstd")
    report = validate(tmp_path / "log.parquet")
    assert report["valid_rows"] == 1000 and report["users"] == 1 and not report["problems"]
    with (tmp_path / "log.parquet").open("rb") as file:
        assert len([*parquet_files.parquet_batches(file)]) > 1


@pytest.mark.parametrize("how", ["a little", "much"])
def test_a_row_count_that_lies_is_said_or_without_effect(tmp_path: Path, how: str) -> None:
    file = io.BytesIO()
    parquet.write_table(log(100), file)
    content = file.getvalue()
    for at in range(len(content) - 600, len(content) - 8, 2):  # the footer
        changed = bytearray(content)
        changed[at] = changed[at] + 2 & 0xFF if how == "a little" else changed[at] ^ 0x40
        (tmp_path / "log.parquet").write_bytes(changed)
        report = validate(tmp_path / "log.parquet")
        assert report["rows"] <= 100 and (report["rows"] == 100 or report["problems"])


def test_an_honest_file_is_read_in_a_new_process(tmp_path):
    """The memory pool of Arrow reserves addresses when it is first used, which are no memory of the file."""
    rows = 60_000
    texts = [f"{number} " + "word " * 60 for number in range(rows)]
    feedback = [{"copy": number % 2} for number in range(rows)]
    table = pa.table({"prompt": texts, "completion": texts, "feedback": feedback})
    parquet.write_table(table, tmp_path / "log.parquet", compression="none", use_dictionary=False)
    code = "import sys; from irm_fast.data.read import read_log; print(len(read_log(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(tmp_path / "log.parquet")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(rows)
