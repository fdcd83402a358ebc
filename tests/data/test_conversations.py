"""Conversations that are read again and again, of which no more are in memory than are asked for."""

import io
import json
import os
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from irm_fast.data.conversations import read_conversations
from irm_fast.data.declarations import Declarations
from irm_fast.data.problems import DataError


def row(number: int, **fields) -> dict:
    return {"id": f"r{number}", "prompt": f"why {number}", "completion": "so", **fields}


def written(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return written(tmp_path / "rows.jsonl", map(row, range(20)))


def test_slices_are_read_in_any_order(path):
    ids, messages = read_conversations(path)
    assert (len(ids), len(messages)) == (20, 20)
    names = [f"r{number}" for number in range(20)]
    for rows in (slice(0, 8), slice(8, 16), slice(16, 24), slice(3, 5), slice(None, None, -7), slice(5, 5)):
        assert ids[rows] == names[rows]
        assert [turns[0]["content"] for turns in messages[rows]] == [f"why {name[1:]}" for name in names[rows]]
    assert (ids[-1], ids[4], messages[4][1]["content"]) == ("r19", "r4", "so")
    assert list(ids) == names
    with pytest.raises(IndexError):
        ids[20]


def test_what_can_be_read_once_is_kept_in_a_file_without_a_name(path, tmp_path, monkeypatch):
    text = path.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(text))
    writer.start()
    expected = list(read_conversations(path)[1])
    for source in ("-", pipe, iter(map(row, range(20)))):
        ids, messages = read_conversations(source)
        assert [messages[12:20], messages[0:12]] == [expected[12:], expected[:12]]
        assert list(ids) == [f"r{number}" for number in range(20)]
    writer.join()
    assert sorted(os.listdir(tmp_path)) == ["pipe", "rows.jsonl"]


def test_ids_of_several_rows_are_named_with_their_lines(tmp_path):
    rows = [*map(row, range(5)), row(1), row(7), row(1), row(4)]
    with pytest.raises(DataError) as error:
        read_conversations(written(tmp_path / "rows.jsonl", rows))
    assert error.value.total == 3
    assert [problem.split("rows.jsonl:")[1] for problem in error.value.problems] == [
        "6: id: 'r1' is also in line 2; expected unique ids",
        "8: id: 'r1' is also in line 2; expected unique ids",
        "9: id: 'r4' is also in line 5; expected unique ids",
    ]


def test_rows_that_are_left_out_are_left_out_of_every_reading(tmp_path):
    rows = [row(0), row(1, completion=" "), row(2), row(0), {"chosen": "a", "rejected": "b", "prompt": "c"}]
    declared = Declarations(on_error="skip", max_errors=0.5)
    with pytest.warns(UserWarning, match="left out 2 of 5 rows"):
        ids, messages = read_conversations(written(tmp_path / "rows.jsonl", rows), declared)
    assert list(ids) == ids[0:4] == ["r0", "r2", "row-5-chosen", "row-5-rejected"]
    assert [turns[-1]["content"] for turns in messages] == ["so", "so", "a", "b"]


def test_a_file_that_becomes_shorter_is_an_error(path):
    ids, _ = read_conversations(path)
    written(path, map(row, range(15)))
    assert ids[0:8][-1] == "r7"
    with pytest.raises(DataError, match=r"rows\.jsonl: file: changed since it was checked: 15 rows, of 20 then"):
        ids[8:16], ids[16:20]


def test_texts_are_not_kept(tmp_path):
    path = written(tmp_path / "rows.jsonl", (row(number, completion="so " * 10_000) for number in range(1600)))
    assert path.stat().st_size > 48e6
    tracemalloc.start()
    ids, messages = read_conversations(path)
    for start in range(0, 1600, 20):
        assert len(ids[start : start + 20]) == len(messages[start : start + 20]) == 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
