"""What a log is read from: files of all kinds, told by what they hold, folders, patterns, and rows in memory."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from irm_fast.data.conversations import read_conversations
from irm_fast.data.declarations import Declarations
from irm_fast.data.pairs import read_pairs
from irm_fast.data.rated import read_rated
from irm_fast.data.read import DataError, read_log
from irm_fast.data.reading import compression, json_lines
from irm_fast.data.reading.sources import Source, check_not_input
from irm_fast.data.validation import format_validation, validate


def rows(count: int = 8) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{i}",
            "prompt": f'question {i}, "quoted"\nand over two lines',
            "completion": f"Antwort {i} \N{EURO SIGN}",
            "feedback": {"click": i % 2, "copy": int(i % 3 == 0)},
        }
        for i in range(count)
    ]


def lines(entries: Iterable[object]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def table(separator: str = ",") -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(["id", "prompt", "completion", "click", "copy", "latency"])
    for row in rows():
        writer.writerow([row["id"], row["prompt"], row["completion"], *row["feedback"].values(), 0.5])
    return text.getvalue()


def parquet(entries: list[dict[str, Any]], path: Path, **columns: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    held = {name: [entry.get(name) for entry in entries] for name in entries[0]} | columns
    write_table(pa.table(held), path)
    return path


TEXT = lines(rows())
FILES: dict[str, bytes] = {
    "lines": TEXT.encode(),
    "lines with a mark and carriage returns": b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode(),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, the other end first": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "array": json.dumps(rows()).encode(),
    "array over many lines": b"\n " + json.dumps(rows(), indent=2).encode(),
    "gzip": gzip.compress(TEXT.encode()),
    "bzip2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "array in gzip": gzip.compress(json.dumps(rows()).encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_by_what_they_hold(tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.data"  # a name that says nothing
    path.write_bytes(FILES[name])
    log, other = read_log(path), read_log(rows())
    assert log.ids == other.ids and log.messages == other.messages
    np.testing.assert_array_equal(log.feedback, other.feedback)


def test_zstd(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    with pa.CompressedOutputStream(str(tmp_path / "log.zst"), "zstd") as file:
        file.write(TEXT.encode())
    assert read_log(tmp_path / "log.zst").messages == read_log(rows()).messages


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_tables_of_text(tmp_path: Path, separator: str) -> None:
    (tmp_path / "log").write_text(table(separator), encoding="utf-8-sig")
    with pytest.warns(UserWarning, match="fields that are not read: latency"):
        log = read_log(tmp_path / "log", signals=["click", "copy"])
    other = read_log(rows())
    assert log.messages == [[{**t, "content": t["content"]} for t in turns] for turns in other.messages]
    assert log.signals == ("click", "copy")
    np.testing.assert_array_equal(log.feedback, other.feedback)


def test_columns_of_well_known_actions_are_signals(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(table())
    with pytest.warns(UserWarning, match=r"copy: a column that is read as a signal; --signals chooses \(8 rows\)"):
        log = read_log(tmp_path / "log.csv")
    np.testing.assert_array_equal(log.feedback, read_log(rows()).feedback)
    flags = [{k: v for k, v in row.items() if k != "feedback"} | {"toxic": i % 2} for i, row in enumerate(rows())]
    with pytest.raises(DataError, match="feedback: no action"):
        read_log(flags)


def test_cells_of_tables(tmp_path: Path) -> None:
    text = "id,prompt,completion,click,copy,user\n007,1,2,true,,u\n008,3,4,FALSE,1,\n009,5,6,0,0,nan\n"
    (tmp_path / "log.csv").write_text(text)
    with pytest.warns(UserWarning, match=r"user_id: 'nan' is taken as not known \(1 rows\)"):
        log = read_log(tmp_path / "log.csv", signals=["click", "copy"], absent="missing")
    assert log.ids == ["007", "008", "009"] and log.messages[0][1]["content"] == "2"
    assert log.feedback.tolist() == [[1, -1], [0, 1], [0, 0]] and log.user_ids == ["u", None, None]
    (tmp_path / "log.csv").write_text(text + "010,7\n")
    with pytest.raises(DataError, match=r"log.csv:5: row: got 2 cells; expected 6, as the header has"):
        read_log(tmp_path / "log.csv", signals=["click", "copy"], absent="missing")


def test_columns_of_warehouses(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    made = rows()
    feedback = [row["feedback"] for row in made]
    columns = {
        "bytes": {"prompt": pa.array([row["prompt"].encode() for row in made])},
        "decimals": {"weight": pa.array([Decimal("1.5")] * len(made))},
        "text of JSON": {"feedback": [json.dumps(entry) for entry in feedback]},
        "maps": {"feedback": pa.array([[*entry.items()] for entry in feedback], pa.map_(pa.string(), pa.int8()))},
        "dictionary": {"completion": pa.array([row["completion"] for row in made]).dictionary_encode()},
        "large": {"prompt": pa.array([row["prompt"] for row in made], pa.large_string())},
    }
    for name, column in columns.items():
        log = read_log(parquet(made, tmp_path / "log.parquet", **column))
        assert log.messages == read_log(made).messages, name
        np.testing.assert_array_equal(log.feedback, read_log(made).feedback)
        assert name != "decimals" or log.weight.tolist() == [1.5] * len(made)


def test_null_is_absent_in_tables(tmp_path: Path) -> None:
    made = [row | {"feedback": {k: v for k, v in row["feedback"].items() if v}} for row in rows()]
    path = parquet(made, tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"feedback.copy: absent in .*in a table.*--absent silent"):
        read_log(path)
    np.testing.assert_array_equal(read_log(path, absent="silent").feedback, read_log(made, absent="silent").feedback)


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]), tmp_path / "log.parquet")
    with pytest.raises(DataError, match="prompt: 2 columns have this name"):
        read_log(tmp_path / "log.parquet")


def test_what_a_file_notes_for_other_programs_is_not_heeded(tmp_path: Path) -> None:
    """The metadata of a file may name types of other libraries, which could load what they name."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    kinds = {name: {"_type": "Image", "decode": True} for name in ("prompt", "completion")}
    noted = {b"huggingface": json.dumps({"info": {"features": kinds}}).encode(), b"pandas": b"{not json"}
    made = pa.Table.from_pylist(rows()).replace_schema_metadata(noted)
    write_table(made, tmp_path / "log.parquet")
    assert read_log(tmp_path / "log.parquet").messages == read_log(rows()).messages


def test_folders_patterns_and_several_files_are_one_log(tmp_path: Path) -> None:
    made = rows()
    folder = tmp_path / "log" / "month=1"
    folder.mkdir(parents=True)
    parquet([row | {"user_id": "u"} for row in made[:3]], folder / "part-0.parquet")
    (folder / "part-1.jsonl").write_text(lines(made[3:]))
    (folder / "_SUCCESS").touch()
    (folder / ".part-1.crc").write_bytes(b"\x00")
    for given in (tmp_path / "log", str(tmp_path / "log" / "**" / "part-*"), sorted(folder.glob("part-*"))):
        log = read_log(given)
        assert log.ids == [row["id"] for row in made] and log.user_ids == ["u"] * 3 + [None] * 5


def test_problems_name_the_file_of_several(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(rows(2)))
    (tmp_path / "b.jsonl").write_text(lines([*rows(3)[2:], rows(1)[0], {"id": "x", "prompt": 1}]))
    with pytest.raises(DataError) as error:
        read_log(tmp_path)
    assert [text.replace(str(tmp_path), "") for text in error.value.problems] == [
        "/b.jsonl:3: prompt: got 1; expected text or a list of messages",
        "/b.jsonl:2: id: 'r0' is also in /a.jsonl:1; expected unique ids",
    ]
    assert "/a.jsonl:1" in error.value.problems[-1]


def test_rows_that_are_wrong_are_left_out_or_put_apart(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    made = rows(60)
    made[3]["completion"], made[7]["id"] = "", "r1"
    (folder / "a.jsonl").write_text(lines(made[:30]))
    (folder / "b.jsonl").write_text(lines(made[30:]) + "{no json\n")
    with pytest.raises(DataError) as error:
        read_log(folder)
    assert error.value.total == 3
    with pytest.raises(DataError, match=r"3 of 61 rows are wrong; expected at most 2 \(--max-errors\)"):
        read_log(folder, on_error="skip", max_errors=2)
    for how in ("skip", "quarantine", "quarantine"):  # a second run does not read what the first has written
        with pytest.warns(
            UserWarning, match="left out 3 of 61 rows: 1 x completion: expected the text of the response"
        ):
            log = read_log(folder, on_error=how, max_errors=0.05)
        assert len(log) == 58 and not {"r3"} & set(log.ids)
    found = [json.loads(line) for line in (tmp_path / "log.quarantine.jsonl").read_text().splitlines()]
    places = {entry["place"].removeprefix(str(folder)): entry["reason"].split(":")[0] for entry in found}
    assert places == {"/a.jsonl:4": "completion", "/a.jsonl:8": "id", "/b.jsonl:31": "json"}
    assert [entry["row"] and entry["row"]["id"] for entry in found] == ["r3", None, "r1"]
    (tmp_path / "log.quarantine.jsonl").unlink()  # conversations alone are left out and put apart alike
    with pytest.warns(UserWarning, match="left out 3 of 61 rows"):
        assert len(read_conversations(folder, Declarations(on_error="quarantine"))[0]) == 58
    assert len((tmp_path / "log.quarantine.jsonl").read_text().splitlines()) == 3
    report = validate(folder, declared=Declarations(on_error="skip"))
    assert sum(report["skipped"].values()) == 3 and report["problem_count"] == 0
    assert "on error skip" in format_validation(report).splitlines()[0]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(FILES["gzip"]))))
    assert read_log("-").messages == read_log(rows()).messages


@pytest.mark.parametrize("kind", ["input", "generator", "blocks"])
def test_rows_of_a_quarantine_are_read_again(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 2000)
    made = rows(400)
    made[5]["completion"], made[320]["completion"], made[390]["id"] = "", " ", "r1"
    text = io.BytesIO(lines(made).encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(text)))
    (tmp_path / "log.jsonl").write_bytes(text.getvalue())
    source = {"input": "-", "generator": iter(made), "blocks": tmp_path / "log.jsonl"}[kind]
    with pytest.warns(UserWarning, match="left out 3 of 400 rows"):
        log = read_log(source, on_error="quarantine", quarantine=tmp_path / "wrong.jsonl")
    assert len(log) == 397
    found = [json.loads(line)["row"] for line in (tmp_path / "wrong.jsonl").read_text().splitlines()]
    assert found == [made[5], made[320], made[390]]


def _frames() -> dict[str, Callable[[], Any]]:
    def pandas() -> Any:
        return pytest.importorskip("pandas").DataFrame(rows())

    def flat() -> Any:
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame([{**row, **row["feedback"]} for row in rows()]).drop(columns="feedback")
        return frame.assign(copy=frame["copy"].astype("Int64"), click=frame["click"].astype(float))

    def polars() -> Any:
        return pytest.importorskip("polars").DataFrame(rows())

    def dataset() -> Any:
        return pytest.importorskip("datasets").Dataset.from_list(rows())

    return {"pandas": pandas, "flat": flat, "polars": polars, "dataset": dataset, "generator": lambda: iter(rows())}


@pytest.mark.parametrize("name", _frames())
def test_rows_in_memory(name: str) -> None:
    log = read_log(_frames()[name](), signals=["click", "copy"] if name == "flat" else None)
    assert log.messages == read_log(rows()).messages
    np.testing.assert_array_equal(log.feedback, read_log(rows()).feedback)


def test_problems_of_rows_in_memory() -> None:
    with pytest.raises(DataError, match=r"rows:2: weight: got -1; expected"):
        read_log([rows()[0], rows()[1] | {"weight": -1}])
    with pytest.raises(DataError, match=r"^rows:1: row: got 7; expected a mapping of fields, or a path"):
        read_log([7])
    with pytest.raises(DataError, match=r"^rows: file: empty"):
        read_log([])


def test_ratings_pairs_and_conversations_are_read_from_the_same_sources(tmp_path: Path) -> None:
    pairs = [{"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad", "source": "x"}]
    (tmp_path / "pairs").write_bytes(gzip.compress(json.dumps(pairs).encode()))
    with pytest.warns(UserWarning, match="fields that are not read: source"):
        assert len(read_pairs(tmp_path / "pairs")) == 1
    assert list(read_conversations(tmp_path / "pairs")[0]) == ["row-1-chosen", "row-1-rejected"]
    assert len(read_rated([{"prompt": "q", "completion": "a", "rating": i} for i in range(3)])) == 3


WRONG = {
    "a ZIP archive": (b"PK\x03\x04", "a ZIP archive or an Excel workbook.*save the sheet as CSV"),
    "HTML": (b"<!doctype html>", "XML or HTML"),
    "no text": (b"\x00\x01\x02" * 20, "no text"),
    "another text": (b"Dear all,\nplease find\n", "text that begins 'Dear all"),
    "no JSON in any line": (b"{a\n" * 50, "none of its first 20 lines is an object of JSON"),
    "half an array": (b'[{"id": 1', "no whole JSON array"),
    "an array and more": (b"[]\n[]\n", "goes on after it"),
    "Parquet in gzip": (gzip.compress(b"PAR1"), "Parquet within gzip"),
    "half a Parquet": (b"PAR1 and nothing", "cannot be read"),
    "half a gzip": (FILES["gzip"][:-20], "cannot be read"),
    "a quote that does not end": (b'id,prompt\n1,"a\n2,b\n', "expected CSV with quotes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_another_kind_is_one_problem(tmp_path: Path, name: str) -> None:
    content, expected = WRONG[name]
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=expected) as error:
        read_log(tmp_path / "log.jsonl")
    assert error.value.total == 1 and error.value.problems[0].startswith(f"{tmp_path}/log.jsonl: file: ")


def test_limits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE", 500)
    (tmp_path / "log.jsonl").write_text(lines([rows(1)[0], rows(2)[1] | {"completion": "x" * 1000}, *rows(3)[2:]]))
    with pytest.raises(DataError, match=r"log.jsonl:2: row: longer than 500 bytes") as error:
        read_log(tmp_path / "log.jsonl")
    assert error.value.total == 1  # the rows after it are read
    monkeypatch.setattr(compression, "ALWAYS_ALLOWED", 0)
    monkeypatch.setattr(compression, "MAX_GROWTH", 2)
    (tmp_path / "log.jsonl").write_bytes(gzip.compress(TEXT.encode() * 100))
    with pytest.raises(DataError, match=r"unpack to more than .*, 2 times their size; unpack it first"):
        read_log(tmp_path / "log.jsonl")


def test_what_is_not_there(tmp_path: Path) -> None:
    for given in (tmp_path / "none.jsonl", str(tmp_path / "*.parquet"), [tmp_path / "none.jsonl"]):
        with pytest.raises(DataError, match="not found; expected a file, a folder or a pattern"):
            read_log(given)


def test_no_part_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(TEXT)
    with pytest.raises(ValueError, match="is the input"):
        check_not_input(tmp_path / "a.jsonl", tmp_path)
    assert Source.of(source := Source(tmp_path)) is source


def test_a_header_of_csv_that_does_not_end_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b'id,prompt,"completion\nr1,question,answer\n')
    with pytest.raises(DataError, match=r"log\.csv: file: line 1: unexpected end of data; expected CSV"):
        read_log(path)
