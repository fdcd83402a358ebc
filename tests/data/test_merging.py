"""Ratings merged into a log: whose they are, what they change, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.merging import Merged, merge_ratings
from irm_fast.data.read import DataError, read_log

LOG = [
    {"id": "a", "prompt": "é?", "completion": "1", "feedback": {"copy": 1, "share": 0}, "own": 1e-05},
    {"row_id": 7, "question": "why", "answer": "2", "feedback": {"copy": 0, "share": None}, "preferred": None},
    {"id": "c", "prompt": [{"role": "user", "content": "x"}], "completion": "3", "feedback": {"copy": 1, "share": 1}},
    {"prompt": "no id", "completion": "4", "feedback": {"copy": 0, "share": 0}, "preference": 1},
]


def rated(name: str, preference: int | None, **more: object) -> dict[str, object]:
    return {"id": name, "preference": preference, "label_probability": 0.25, **more}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def merge(tmp_path: Path):
    """A function that merges ratings into the log above, and returns what became of them and the lines."""

    def make(*ratings: dict, log: list[dict] = LOG) -> tuple[Merged, list[dict]]:
        data, out = write(tmp_path / "log.jsonl", log), tmp_path / "new.jsonl"
        found = merge_ratings(write(tmp_path / "rated.jsonl", list(ratings)), data, out)
        return found, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    return make


def test_ratings_go_to_their_rows_and_all_else_stays(merge) -> None:
    ratings = [rated("7", 0, comment="short"), rated("a", 1), rated("c", None)]
    found, rows = merge(*ratings)
    assert found == Merged(rows=4, merged=2, had=0, unrated=1, without_chance=0)
    assert rows[0] == LOG[0] | {"preference": 1, "label_probability": 0.25}
    assert rows[1] == LOG[1] | {"preferred": 0, "label_probability": 0.25}  # by the name that the field has there
    assert rows[2:] == LOG[2:]


def test_lines_that_no_rating_changes_keep_their_bytes(tmp_path: Path) -> None:
    lines = [
        '\ufeff{"prompt":"ä","completion":"\\ud83d","id":"a","preference":null}\r\n',
        "\n",
        '{ "prompt": "ö",  "completion": "b", "n": 1.50, "cut": "\\ud83d" }\n',
        '{"prompt": "ü", "completion": "c"}',
    ]
    data, out = tmp_path / "log.jsonl.gz", tmp_path / "new.jsonl.gz"
    data.write_bytes(gzip.compress("".join(lines).encode()))
    rating = rated("row-3", 1, prompt="ö", completion="b")
    merge_ratings(write(tmp_path / "rated.jsonl", [rating]), data, out)
    got = gzip.decompress(out.read_bytes()).decode().splitlines(keepends=True)
    assert [got[i] for i in (0, 1, 3)] == [lines[i] for i in (0, 1, 3)]
    assert json.loads(got[2]) == json.loads(lines[2]) | {"preference": 1, "label_probability": 0.25}


@pytest.mark.parametrize("kind", [None, "bool", "double"])
def test_parquet_keeps_its_columns_and_types(tmp_path: Path, kind: str | None, monkeypatch) -> None:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr("irm_fast.data.writing.rewriting.ROWS", 3)  # several batches
    table = pyarrow.table(
        {
            "id": [f"r{i}" for i in range(8)],
            "prompt": ["p"] * 8,
            "completion": [str(i) for i in range(8)],
            "feedback": [{"copy": i % 2} for i in range(8)],
            "timestamp": pyarrow.array(range(8), pyarrow.timestamp("ns")),
            "platform": pyarrow.array(["ios", "web"] * 4).dictionary_encode(),
        }
    )
    if kind:
        label = pyarrow.array([1.0] + [None] * 7).cast({"bool": pyarrow.bool_(), "double": pyarrow.float64()}[kind])
        table = table.append_column("preferred", label)
    parquet.write_table(table, tmp_path / "log.parquet")
    ratings = [rated("r0", 1), rated("r7", 0), rated("r4", 1)]
    found = merge_ratings(write(tmp_path / "rated.jsonl", ratings), tmp_path / "log.parquet", tmp_path / "new.parquet")
    assert found == Merged(rows=8, merged=3 - bool(kind), had=int(bool(kind)), unrated=0, without_chance=0)
    new = parquet.read_table(tmp_path / "new.parquet")
    assert new.select(table.column_names[:6]).equals(table.select(table.column_names[:6]))
    label = "preferred" if kind else "preference"
    assert new.column(label).to_pylist() == [1, None, None, None, 1, None, None, 0]
    assert kind is None or new.schema.field(label).type == table.schema.field(label).type
    assert new.column("label_probability").to_pylist() == [0.25, None, None, None, 0.25, None, None, 0.25]
    assert read_log(tmp_path / "new.parquet", misclick=True).preference.tolist() == [1, -1, -1, -1, 1, -1, -1, 0]


def test_merging_again_adds_what_is_new(merge) -> None:
    found, rows = merge(rated("a", 1), rated("c", None))
    again, more = merge(rated("a", 1), rated("c", 0), log=rows)
    assert again == Merged(rows=4, merged=1, had=1, unrated=0, without_chance=0)
    assert more[0] == rows[0] and more[2]["preference"] == 0
    # A row rated twice alike, once not, and by a person who chose it
    found, rows = merge(rated("a", 1), rated("a", 1), rated("a", None), {"id": "c", "preference": True})
    assert found == Merged(rows=4, merged=2, had=0, unrated=0, without_chance=1)
    assert rows[2]["preference"] == 1 and "label_probability" not in rows[2]


REFUSED = {
    "rated.jsonl:2: preference: got 0, but line 1 rates the same row 1; expected one answer": [
        rated("a", 1),
        rated("a", 0),
    ],
    "rated.jsonl:1: id: the log has no row 'z' (it has 4); expected the log from which it was drawn": [rated("z", 1)],
    "log.jsonl:1: completion: prompt or response is not what": [rated("a", 1, prompt="é?", completion="one")],
    "log.jsonl:4: preference: got 1, but": [rated("row-4", 0, prompt="no id", completion="4")],
    "has no text to tell the row by; expected either": [rated("row-4", 1)],
    "rated.jsonl:1: preference: missing; did you mean 'preferense'?": [{"id": "a", "preferense": 1}],
    "rated.jsonl:1: preference: got 'yes'; expected 1, 0, or null": [rated("a", "yes")],  # type: ignore[arg-type]
    "rated.jsonl:1: id: missing": [{"preference": 1}],
    "rated.jsonl: preference: none in 2 rows; expected 1 or 0 in some": [rated("a", None), rated("c", None)],
    "rated.jsonl:1: label_probability: got 2; expected a probability": [rated("a", 1) | {"label_probability": 2}],
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused_leaves_no_file(merge, tmp_path: Path, words: str) -> None:
    with pytest.raises(DataError) as error:
        merge(*REFUSED[words])
    assert words in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "rated.jsonl"}


def test_the_log_is_refused_where_it_is_wrong(merge, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log.jsonl:5: id: 'a' is also in line 1; expected unique ids"):
        merge(rated("a", 1), log=[*LOG, LOG[0]])
    with pytest.raises(DataError, match=r"log.jsonl:1: label_probability: got 0.5, but .*:1 says 0.25; expected one"):
        merge(rated("a", 1), log=[LOG[0] | {"label_probability": 0.5}])
    (tmp_path / "cut.jsonl").write_text('{"id": "a", "prompt": ')
    with pytest.raises(DataError, match=r"cut.jsonl:1: json"):
        merge_ratings(tmp_path / "rated.jsonl", tmp_path / "cut.jsonl", tmp_path / "new.jsonl")
    with pytest.raises(ValueError, match=r"out: got 'new.parquet'; expected a name that ends in .jsonl or .jsonl.gz"):
        merge_ratings(tmp_path / "rated.jsonl", tmp_path / "cut.jsonl", tmp_path / "new.parquet")
    with pytest.raises(DataError, match=r"none.jsonl: file: not found"):
        merge_ratings(tmp_path / "rated.jsonl", tmp_path / "none.jsonl", tmp_path / "new.jsonl")


def test_the_command_says_what_became_of_the_ratings_and_overwrites_nothing(tmp_path: Path) -> None:
    data, ratings = write(tmp_path / "log.jsonl", LOG), [rated("a", 1), rated("7", None), {"id": "c", "preference": 0}]
    path, out = write(tmp_path / "rated.jsonl", ratings), tmp_path / "new.jsonl"

    def run(*options: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["label", "--data", str(data), *map(str, options)])
        assert result.exit_code == code, result.output
        return result.output + result.stderr

    shown = run("--merge", path, "--out", out)
    assert "2 ratings merged into 4 rows" in shown and f"1 rows of {path} have no preference" in shown
    assert "1 have no label_probability: they count as drawn at random" in shown and "in the log already" not in shown
    assert "exists already; --overwrite replaces it" in run("--merge", path, "--out", out, code=2)
    for own in (data, path):
        assert "is the input" in run("--merge", path, "--out", own, "--overwrite", code=2)
    assert "no effect with --merge" in run("--merge", path, "--next", 3, "--out", out, "--overwrite", code=2)
    assert "got neither" in run("--out", out, "--overwrite", code=2)
    assert "model: none given" in run("--next", 3, "--out", out, "--overwrite", code=2)
    assert [json.loads(line) for line in data.read_text().splitlines()] == LOG
