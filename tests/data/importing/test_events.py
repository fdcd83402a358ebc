"""Impressions and actions are joined into a log: 1, 0, or null where it cannot be known, and an account of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.importing.events import import_events
from irm_fast.data.importing.joining import _NOTHING as NOTHING
from irm_fast.data.importing.windows import Windows
from irm_fast.data.log import Log
from irm_fast.data.problems import DataError
from irm_fast.data.read import read_log

pytest.importorskip("duckdb")
pytestmark = pytest.mark.filterwarnings("ignore:.*fields that are not read")
HOUR, DAY = 3600, 86400
START = 1767225600  # 2026-01-01


def shown(i: int, hours: float = 0, **more: Any) -> dict[str, Any]:
    row = {"response_id": f"r{i}", "prompt": f"question {i}", "completion": f"answer {i}"}
    return {**row, "timestamp": START + hours * HOUR, "user_id": f"u{i}", **more}


def acted(i: object, signal: str, hours: float, **more: Any) -> dict[str, Any]:
    return {"response_id": f"r{i}", "action": signal, "timestamp": START + hours * HOUR, **more}


IMPRESSIONS = [shown(i) for i in range(6)] + [shown(6, 100), shown(7, 119)]
ACTIONS = [
    acted(0, "copy", 1), acted(0, "copy", 0.5), acted(0, "share", 2),  # twice
    acted(1, "copy", 30),  # late
    acted(2, "copy", -1),  # before it was shown
    acted(3, "share", 3),
    acted(6, "copy", 101),  # within reach of the end
    acted(7, "copy", 120),  # younger than the window
    acted("gone", "copy", 1),  # an orphan
]  # fmt: skip
COPY, SHARE = [1, 0, -1, 0, 0, 0], [1, 0, 0, 1, 0, 0]  # nothing is known of the last two


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(rows)
    times = pa.array([int(row["timestamp"] * 1e6) for row in rows], pa.timestamp("us"))
    pa.parquet.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", times), path)
    return path


def csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join([",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]))
    return path


KINDS = {"jsonl": lines, "parquet": parquet, "csv": csv}


def test_an_action_of_an_empty_name_is_one_without_a_name(tmp_path: Path) -> None:
    acts = [*ACTIONS, acted(1, " ", 3), acted(2, "", 4)]
    account = import_events(
        lines(tmp_path / "i.jsonl", IMPRESSIONS), lines(tmp_path / "a.jsonl", acts), tmp_path / "o.jsonl"
    )
    assert account.dropped["actions without a name"] == 2
    assert read_log(tmp_path / "o.jsonl").signals == ("copy", "share")


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_an_action_means_depends_on_its_time(tmp_path: Path, kind: str, end: str) -> None:
    import pyarrow.parquet  # noqa: F401

    given = [KINDS[kind](tmp_path / f"{name}.{kind}", rows) for name, rows in (("i", IMPRESSIONS), ("a", ACTIONS))]
    out = tmp_path / f"log.{end}"
    account = import_events(*given, out)
    log = in_order(out)
    assert log.signals == ("copy", "share") and log.ids == [f"r{i}" for i in range(6)]
    assert log.feedback[:, 0].tolist() == COPY and log.feedback[:, 1].tolist() == SHARE
    assert log.acted_at is not None and log.times is not None
    assert log.acted_at[0].tolist() == [START + 0.5 * HOUR, START + 2 * HOUR]  # the first one
    assert np.isnan(log.acted_at[1:, 0]).all()
    assert log.times.tolist() == [START] * 6
    assert log.messages[1][0]["content"] == "question 1" and log.user_ids == [f"u{i}" for i in range(6)]
    assert account.read == {"actions": 9, "impressions": 8} and account.kept == 6
    short = {reason.partition("(")[2].rstrip(")") or reason: n for reason, n in account.dropped.items() if n}
    before, again = "actions before their impression: null", "actions that repeat an earlier one"
    assert short == {"orphans": 1, "late": 1, NOTHING: 2, before: 1, again: 1}
    assert "copy: 1 acted, 4 silent, 3 not known" in account.notes


def in_order(path: Path) -> Log:
    log = read_log(path)
    return log.subset(np.argsort([int(name[1:]) for name in log.ids]))


def log_of(tmp_path: Path, impressions: list[dict], actions: list[dict], **settings: Any) -> Any:
    given = lines(tmp_path / "i.jsonl", impressions), lines(tmp_path / "a.jsonl", actions)
    account = import_events(*given, tmp_path / "log.jsonl", overwrite=True, **settings)
    return in_order(tmp_path / "log.jsonl"), account


def test_windows_buttons_and_the_end_are_declared(tmp_path: Path) -> None:
    windows = Windows.parse("24h,copy=48h", "share=2026-01-01T01:00:00Z", "2026-01-10")
    log, _ = log_of(tmp_path, IMPRESSIONS, ACTIONS, windows=windows)
    assert log.ids == ["r0", "r1", "r3", "r4", "r5", "r6", "r7"]  # nothing is known of r2
    assert log.feedback[:, 0].tolist() == [1, 1, 0, 0, 0, 1, 1]  # r1 within 48 hours; all is older than its window
    assert log.feedback[:, 1].tolist() == [-1] * 5 + [0, 0]  # acted or not: there was no button


def test_without_a_window_no_time_is_needed(tmp_path: Path) -> None:
    timeless = [[{k: v for k, v in row.items() if k != "timestamp"} for row in rows] for rows in (IMPRESSIONS, ACTIONS)]
    with pytest.raises(DataError, match="--window none"):
        log_of(tmp_path, *timeless)
    log, _ = log_of(tmp_path, *timeless, windows=Windows.parse("none"))
    assert log.feedback[:, 0].tolist() == [1, 1, 1, 0, 0, 0, 1, 1]


def test_rows_of_json_keep_all_that_they_hold(tmp_path: Path) -> None:
    more = {"prompt": [{"role": "user", "content": 'é {"a": 1}'}], "features": {"n": 1.5}, "odd": [1, {"b": None}]}
    rows = [{**row, **more} for row in IMPRESSIONS]
    log, _ = log_of(tmp_path, rows, ACTIONS)
    written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [{k: row[k] for k in rows[0]} for row in sorted(written, key=lambda row: row["id"])] == rows[:6]
    assert log.messages[0][0]["content"] == more["prompt"][0]["content"]
    given = lines(tmp_path / "i.jsonl", rows), lines(tmp_path / "a.jsonl", ACTIONS)
    import_events(*given, tmp_path / "log.parquet")
    other = in_order(tmp_path / "log.parquet")
    assert other.messages == log.messages and np.array_equal(other.feedback, log.feedback)
    assert other.features is not None and other.features[:, 0].tolist() == [1.5] * 6


def test_a_repeated_impression_is_one(tmp_path: Path) -> None:
    again = [{**shown(0, 0.1), "prompt": "later"}, {"prompt": "q", "completion": "a", "timestamp": START}]
    log, account = log_of(tmp_path, [*IMPRESSIONS, *again], ACTIONS)
    assert log.ids == [f"r{i}" for i in range(6)] and account.kept == 6
    assert log.messages[log.ids.index("r0")][0]["content"] == "question 0"
    assert account.dropped["impressions that repeat an earlier one"] == 1
    assert account.dropped["impressions without response_id"] == 1


def test_a_segment_whose_button_never_fires_is_said(tmp_path: Path) -> None:
    impressions = [shown(i, i / 100, platform="ios" if i % 2 else "android") for i in range(400)] + [shown(400, 200)]
    actions = [acted(i, "share", i / 100 + 0.1) for i in range(1, 400, 4)]
    _, account = log_of(tmp_path, impressions, actions)
    [note] = [note for note in account.notes if "never acts" in note]
    assert "share never acts where platform=android, in 200 impressions (100 to be expected)" in note
    assert '"share where platform=android"' in note
    _, account = log_of(tmp_path, impressions, [*actions, acted(0, "share", 0.1)])
    assert not [note for note in account.notes if "never acts" in note]


def test_a_button_that_came_later_is_said(tmp_path: Path) -> None:
    impressions = [shown(i, i) for i in range(400)]
    actions = [acted(i, "share", i + 0.1) for i in range(200, 400, 4)]
    _, account = log_of(tmp_path, impressions, actions)
    [note] = [note for note in account.notes if "--instrumented-since" in note]
    assert "share=2026-01-09" in note and "after 200 impressions" in note


def test_the_command_joins_and_says_what_it_did(tmp_path: Path) -> None:
    for name, rows in (("i", IMPRESSIONS), ("a", ACTIONS)):
        (tmp_path / name).mkdir()
        lines(tmp_path / name / "1.jsonl", rows[:4])
        lines(tmp_path / name / "2.jsonl", rows[4:])
    run = ["import", "events", "--impressions", str(tmp_path / "i"), "--actions", str(tmp_path / "a")]
    run += ["--out", str(tmp_path / "log.jsonl"), "--on", "response_id", "--window", "24h", "--signals", "copy"]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    assert "read: 9 actions, 8 impressions" in done.output and "left out: 2 actions of other kinds" in done.output
    assert in_order(tmp_path / "log.jsonl").feedback[:, 0].tolist() == [c for c in COPY if c >= 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "i", "log.jsonl"]  # nothing else is left


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on": "respons_id"}, "did you mean 'response_id'"),
        ({"on": "prompt"}, "actions: on: got the columns"),
        ({"signals": ("click",)}, "no action 'click'; expected some of copy, share"),
        ({"windows": Windows.parse("click=24h")}, "there is no action 'click'; expected copy, share"),
        ({"memory": "much"}, "import: "),
    ],
)
def test_what_cannot_be_joined_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        log_of(tmp_path, IMPRESSIONS, ACTIONS, **settings)
    assert not (tmp_path / "log.jsonl").exists()


def test_tables_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 1 names an impression"):
        log_of(tmp_path, IMPRESSIONS, [acted("x", "copy", 1)])


@pytest.mark.parametrize("text", ["day", "0h", "24", "-1h"])
def test_a_window_is_a_length(text: str) -> None:
    with pytest.raises(ValueError, match="30min, 24h or 7d, or none"):
        Windows.parse(text)


def test_the_query_for_warehouses_joins_alike(tmp_path: Path) -> None:
    import duckdb

    log, _ = log_of(tmp_path, IMPRESSIONS, ACTIONS)
    page = (Path(__file__).parents[3] / "docs" / "how" / "importing.md").read_text()
    query = page.partition("```sql")[2].partition("```")[0]
    with duckdb.connect() as connection:
        for name, file in (("impressions", "i"), ("actions", "a")):
            rows = f"read_json('{tmp_path / file}.jsonl')"
            made = f"SELECT * EXCLUDE (timestamp), make_timestamp(CAST(timestamp * 1e6 AS BIGINT)) AS time FROM {rows}"
            connection.execute(f"CREATE TABLE {name} AS {made}")
        (tmp_path / "parts").mkdir()
        connection.execute(f"COPY ({query}) TO '{tmp_path}/parts/1.parquet' (FORMAT parquet)")
    other = read_log(tmp_path / "parts", signals=("copy", "share"), absent="missing")
    place = np.argsort([m[-1]["content"] for m in other.messages])
    assert np.array_equal(other.feedback[place], log.feedback)


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
def test_packed_files_are_told_by_what_they_hold(tmp_path: Path, packed: str) -> None:
    pa = pytest.importorskip("pyarrow")
    given = []
    for name, rows in (("i", IMPRESSIONS), ("a", ACTIONS)):
        text = lines(tmp_path / f"{name}.txt", rows).read_bytes()
        with pa.output_stream(str(tmp_path / name), compression=packed) as file:
            file.write(text)
        given.append(tmp_path / name)
    import_events(*given, tmp_path / "log.jsonl")
    assert in_order(tmp_path / "log.jsonl").feedback[:, 0].tolist() == COPY


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty; expected JSON Lines"),
        ('{"response_id": "1"}'.encode("utf-16"), "no text of UTF-8"),
        (b'{"response_id": "1", "timestamp": 1}\n{"response_id": \n', "Malformed JSON"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "i").write_bytes(content)
    with pytest.raises(ValueError, match=said) as raised:
        import_events(tmp_path / "i", lines(tmp_path / "a", ACTIONS), tmp_path / "log.jsonl")
    assert str(tmp_path / "i") in str(raised.value)


def test_a_name_is_no_pattern(tmp_path: Path) -> None:
    given = lines(tmp_path / "i[1]*'.jsonl", IMPRESSIONS), lines(tmp_path / "a?.jsonl", ACTIONS)
    lines(tmp_path / "i1.jsonl", IMPRESSIONS[:1])
    assert import_events(*given, tmp_path / "log.jsonl").read == {"impressions": 8, "actions": 9}


def test_files_of_a_table_are_of_one_kind(tmp_path: Path) -> None:
    given = [str(lines(tmp_path / "i", IMPRESSIONS)), str(csv(tmp_path / "j", IMPRESSIONS))]
    with pytest.raises(DataError, match="got csv, json; expected files of one kind"):
        import_events(given, lines(tmp_path / "a", ACTIONS), tmp_path / "log.jsonl")


def test_the_join_is_what_its_words_say(tmp_path: Path) -> None:
    """On random tables, against the rules said row by row."""
    rng = np.random.default_rng(0)
    impressions = [shown(i, float(rng.integers(0, 240))) for i in range(300)]
    names = [str(name) for name in rng.choice(["copy", "share"], 600)]
    actions = [acted(int(rng.integers(0, 330)), name, float(rng.integers(0, 260))) for name in names]
    windows = Windows.parse("48h,share=12h", "share=2026-01-03", "2026-01-10T12:00:00Z")
    log, account = log_of(tmp_path, impressions, actions, windows=windows)

    def feedback(row: dict[str, Any], signal: str) -> tuple[int, float]:
        start, window = row["timestamp"], {"copy": 48 * HOUR, "share": 12 * HOUR}[signal]
        times = [a["timestamp"] for a in actions if (a["response_id"], a["action"]) == (row["response_id"], signal)]
        within = [time for time in times if start <= time <= start + window]
        if start + window > START + 9.5 * DAY or (signal == "share" and start < START + 2 * DAY):
            return -1, np.nan
        early = any(time < start for time in times)
        return (1, min(within)) if within else (-1 if early else 0, np.nan)

    known = {row["response_id"]: [feedback(row, signal) for signal in ("copy", "share")] for row in impressions}
    expected = {name: pair for name, pair in known.items() if any(value >= 0 for value, _ in pair)}
    assert log.ids == list(expected) and 0 < len(log) < 300
    assert log.feedback.tolist() == [[value for value, _ in pair] for pair in expected.values()]
    assert np.array_equal(log.acted_at, [[t for _, t in pair] for pair in expected.values()], equal_nan=True)
    assert all((log.feedback == value).sum() > 20 for value in (1, 0, -1))
    orphans = sum(int(a["response_id"][1:]) >= 300 for a in actions)
    assert account.dropped["actions that name no impression (orphans)"] == orphans > 0
