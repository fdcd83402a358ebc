"""Rows that are read by columns are those that are read one by one, and so is what is said of them."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from irm_fast.data import log_reader
from irm_fast.data.declarations import Declarations
from irm_fast.data.problems import DataError
from irm_fast.data.read import read_declared
from irm_fast.data.reading import json_lines
from irm_fast.data.texts import Lazy
from irm_fast.data.validation import validate

Row = dict[str, Any]
TIMES = [
    "2026-01-31", "2026-01-31T12:00:00Z", "2026-01-31 12:00:00.25+01:00", "2026-02-30T00:00:00Z",
    "9999-12-31T00:00:00Z", "5138-01-01T00:00:00Z", "5137-12-31T23:59:59-23:00", "1970-01-01T00:00:00+01:00",
    "1969-01-01T00:00:00Z",
    1700000000123, 1700000000123456, 1700000000123456789, 1e17, 1e14, 1e11, 1e20, 1e21, -1e-9,
]  # fmt: skip
VALUES = [
    None, 0, 1, 2, -1, 1.0, 0.0, 1.5, 1e300, 1e-40, 2**53 + 1, 12345678901234567890, True, False, "", "  ", "x", "nan",
    "anonymous", "unKnown", "\u00a0nan", " nan", "u1 ", "[1]", '{"a":1}', " [", "\u00a0", "\u200b", "日本", "👍",
    "\ud83d", [], {}, [1], {"a": 1}, {"a": None}, {"copy": 1}, {"copy": None}, {"copy": "2026-01-31T12:00:00Z"},
    {"zz": 1},
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], *TIMES,
]  # fmt: skip
FIELDS = [
    "id", "prompt", "completion", "feedback", "user_id", "session_id", "timestamp", "position", "platform", "weight",
    "propensity", "preference", "label_probability", "acted_at", "features", "version", "model", "other", "fedback",
    "question", "messages", "label", "copy", "meta",
]  # fmt: skip


def _rows(rng: random.Random, count: int, *, odd: float = 0) -> list[Row]:
    """Rows of a log with habits: fields that all have, or that all write in one way; of the turns some may be odd."""
    rows: list[Row] = []
    sparse, nulls, late = rng.random() < 0.3, rng.random() < 0.3, rng.random() < 0.2
    more = {name: rng.random() < 0.3 for name in ("features", "propensity", "acted_at", "preference", "weight", "meta")}
    chat = rng.choice([None, None, _as_prompt, _as_messages])
    time, id_of = rng.choice([None, "text", 1, 1000, 10**9]), rng.choice([lambda i: f"r{i}", int, lambda i: None])
    for i in range(count):
        feedback = {
            "copy": int(rng.random() < 0.3),
            "share": int(rng.random() < 0.2),
            "click": rng.choice([0, 1, None]),
        }
        if sparse:
            feedback = {name: value for name, value in feedback.items() if value}
        elif nulls and i % 2:
            feedback.pop("click")
        row: Row = {
            "id": id_of(i),
            "prompt": f"p{rng.randrange(9)} ",
            "completion": "x" * (i % 7 + 1),
            "feedback": feedback,
        }
        row |= {
            "user_id": f"u{rng.randrange(9)}",
            "session_id": rng.randrange(20),
            "platform": rng.choice(["ios", "web"]),
        }
        if time is not None:
            text = f"2026-01-{i % 28 + 1:02}T12:{i % 60:02}:00{rng.choice(['Z', '.5Z', '+02:00', '.123456-01:30'])}"
            row["timestamp"] = text if time == "text" else 1700000000 * time + i * 1009
        optional: Row = {
            "features": {"a": rng.random(), "b": i} | ({} if late and i < count / 2 else {"t": rng.choice("pq")}),
            "propensity": {"copy": 0.5, "share": rng.choice([0.25, 1])},
            "acted_at": {name: 1700000000.5 + i for name, value in feedback.items() if value},
            "preference": rng.choice([None, 0, 1]),
            "weight": rng.choice([None, 1, 2.5, 0]),
            "meta": {"k": [i, 2], "n": {"z": None if i % 2 else "w"}, "click": 1},
        }
        row |= {name: value for name, value in optional.items() if more[name]}
        rows.append(row if chat is None else chat(rng, row, odd))
    return rows


def _as_prompt(rng: random.Random, row: Row, odd: float) -> Row:
    """The row with a list of messages as its prompt."""
    system = [{"role": "system", "content": "é\n"}] if rng.random() < 0.5 else []
    return row | {"prompt": [*system, {"content": row["prompt"], "role": "user"}]}


def _as_messages(rng: random.Random, row: Row, odd: float) -> Row:
    """The row with all of its turns in one list."""
    turns = [*_as_prompt(rng, row, odd)["prompt"], {"role": "assistant", "content": row["completion"]}]
    if rng.random() < odd:
        more = [{"role": "Human"}, {"content": " "}, {"content": None}, {"name": "n"}, {"z": 1}, {"feedback": 1}]
        turns.append(turns[-1] | rng.choice(more))
    return {name: value for name, value in row.items() if name not in ("prompt", "completion")} | {"messages": turns}


def _changed(rng: random.Random, row: Row) -> Row:
    """A row with something unusual in it."""
    kind = rng.randrange(6)
    if kind == 0:
        return row | {rng.choice(FIELDS): rng.choice(VALUES)}
    if kind == 1:
        return {name: value for name, value in row.items() if name != rng.choice(FIELDS)}
    if kind == 2:
        name = rng.choice(["copy", "share", "click", "new", "thumbs_down", "", 'q"k', "é"])
        return row | {"feedback": {**(row["feedback"] or {}), name: rng.choice(VALUES)}}
    if kind == 3:
        return row | {"propensity": {rng.choice(["copy", "share", "zz"]): rng.choice([0.5, 1, None, 0, 1e-39])}}
    if kind == 4:
        return row | {
            "features": {rng.choice(["a", "b", "t", "platform"]): rng.choice([1, 2.5, None, "x"]) for _ in "ab"}
        }
    return row | {"acted_at": {rng.choice(["copy", "zz"]): rng.choice([None, *TIMES])}}


def _damaged(rng: random.Random, line: str) -> str:
    """A line with something unusual in its letters."""
    return rng.choice(
        [
            line[:-1] + ',"copy":1}', line.replace('"click"', '"cl\\u0069ck"', 1), line[: len(line) // 2], line + line,
            line + " ", "", line.replace(",", ",\n", 1), line.replace("x", '\\"copy\\": \\" :', 1),
            line.replace("1", "NaN", 1),
            line.replace('"user_id"', '"user_id" ', 1), line.replace("x", "\x00", 1), line.replace("}", "}}", 1),
            line.replace(": 1", ": -0", 1), line.replace("x", "\\ud800", 1), line.replace('"share"', '"share" ', 1),
        ]
    )  # fmt: skip


def _bytes(rng: random.Random, rows: list[Row], share: float) -> bytes:
    separators = rng.choice([(", ", ": "), (", ", ": "), (",", ":"), (" , ", " : ")])
    ascii_only = rng.random() < 0.5 or "\ud83d" in json.dumps(rows, ensure_ascii=False)
    lines = [json.dumps(row, separators=separators, ensure_ascii=ascii_only) for row in rows]
    lines = [_damaged(rng, line) if rng.random() < share else line for line in lines]
    end = rng.choice(["\n", "\n", "\n", "\r\n"])
    raw = bytearray((end.join(lines) + rng.choice(["", end])).encode())
    if share and rng.random() < 0.2:
        raw[rng.randrange(len(raw))] = rng.choice(b'\xff\x00"\\\n\r ')
    return bytes(raw)


def _file(rng: random.Random, folder: Path) -> Path:
    """A file of rows, most of them usual."""
    share = rng.choice([0, 0, 0.005, 0.02, 0.2])
    rows = [_changed(rng, row) if rng.random() < share else row for row in _rows(rng, 80, odd=share)]
    if rng.random() < 0.2:
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "log.parquet")
            return folder / "log.parquet"
        except (pyarrow.ArrowException, UnicodeEncodeError):  # rows that are no table
            pass
    (folder / "log.jsonl").write_bytes(_bytes(rng, rows, rng.choice([0, share])))
    return folder / "log.jsonl"


def _declared(rng: random.Random) -> Declarations:
    return Declarations.of(
        absent=rng.choice(["error", "silent", "missing"]),
        null=rng.choice(["missing", "silent"]),
        misclick=rng.random() < 0.5,
        counts=rng.choice([(), (), ("copy",), ["all"]]),
        signals=rng.choice([None, None, ["click", "copy"]]),
        on_error=rng.choice(["fail", "skip"]),
        max_errors=0.5,
    )


def _found(path: Path, declared: Declarations) -> Any:
    """All that is read of a file, and said of it, in a form that can be compared."""
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        report = validate(path, declared=declared)
        notes = {text for note in report.pop("notes") for text in (note.split(", ") if "not read" in note else [note])}
        try:
            log = vars(read_declared(path, declared))
        except DataError as error:
            return json.dumps(report), notes, error.problems
    columns = []
    for value in log.values():
        if isinstance(value, np.ndarray):
            columns.append((value.dtype, value.shape, value.tobytes()))
        else:
            columns.append(list(value) if isinstance(value, Lazy) else value)
    return json.dumps(report), notes, columns


@pytest.fixture
def by_columns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Read small blocks, and count the rows that are read by columns and all rows."""
    monkeypatch.setattr(json_lines, "FIRST_LINES", 3)
    monkeypatch.setattr(json_lines, "BLOCK", 3000)
    counted, parts = [0, 0], log_reader.LogReader.parts

    def counting(self, blocks):
        for part in parts(self, blocks):
            counted[1] += len(part)
            yield part
        counted[0] += self.by_columns

    monkeypatch.setattr(log_reader, "_FEW", 4)
    monkeypatch.setattr(log_reader.LogReader, "parts", counting)
    return counted


@pytest.mark.parametrize("seed", range(16))
def test_columns_give_what_rows_give(seed, by_columns, monkeypatch, tmp_path):
    rng = random.Random(seed)
    for _ in range(3):
        path, declared = _file(rng, tmp_path), _declared(rng)
        found = _found(path, declared)
        with monkeypatch.context() as patched:
            patched.setattr(log_reader, "can_read", lambda declared: False)
            assert _found(path, declared) == found


def test_usual_rows_are_read_by_columns(by_columns, tmp_path):
    path = tmp_path / "log.jsonl"
    for seed in range(12):
        rng = random.Random(seed)
        path.write_text("".join(json.dumps(row) + "\n" for row in _rows(rng, 200)))
        _found(path, Declarations.of(absent="silent", misclick=True))
    assert by_columns[0] > 0.8 * by_columns[1] > 0


def test_a_line_that_is_no_row_takes_few_with_it(by_columns, tmp_path):
    rows = [json.dumps(row) for row in _rows(random.Random(1), 400)]
    rows[50::100] = ["{no json", '{"id": NaN}', "[]", '{"id": 1, "id": 2}']
    (tmp_path / "log.jsonl").write_text("\n".join(rows))
    report = validate(tmp_path / "log.jsonl", declared=Declarations.of(absent="silent", misclick=True, on_error="skip"))
    assert report["valid_rows"] == 396 == by_columns[1] and by_columns[0] > 320
