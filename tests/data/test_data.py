import gzip
import json
import math
from datetime import datetime, timezone

import numpy as np
import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.groups import group_rows, hold_out, numbered
from irm_fast.data.read import DataError, read_log, signal_notes
from irm_fast.data.reading.sources import Source
from irm_fast.data.signals import check_design, keep_signals
from irm_fast.data.validation import format_validation, validate
from irm_fast.evaluation import rewards_file


def row(i=1, **fields):
    """A good row of a log; a field given as `...` is left out."""
    base = {"id": f"r{i}", "prompt": f"question {i}", "completion": f"answer {i}"}
    base |= {"feedback": {"click": i % 2, "copy": 0}}
    return {key: value for key, value in (base | fields).items() if value is not ...}


def write(path, rows):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def log_of(tmp_path):
    def read(*rows, **options):
        return read_log(write(tmp_path / "log.jsonl", rows), **options)

    return read


def with_row(**fields):
    """A log whose third line has these fields."""
    return [row(1), row(2), row(3, **fields), row(4)]


LONE_SURROGATE = json.dumps(row(3, completion="\ud800"))
USER = {"role": "user", "content": "x"}
DEEP = '{"id": ' + "[" * 100_000

# (rows of the file, line or None, field, fragments of the message)
BAD = {
    "broken JSON": (['{"id": "a", ', row(2)], 1, "json", ["column"]),
    "deep JSON": ([row(1), DEEP], 2, "json", []),
    "a number of 9999 digits": ([row(1), '{"weight": ' + "9" * 9999 + "}"], 2, "json", []),
    "NaN in JSON": ([row(1), '{"id": "a", "weight": NaN}'], 2, "json", ["NaN", "finite"]),
    "key twice": ([row(1), '{"id": "a", "id": "b"}'], 2, "id", ["twice"]),
    "not an object": ([row(1), "[1, 2]"], 2, "row", ["[1, 2]", "object"]),
    "unknown field": (with_row(fedback={}), 3, "fedback", ["unknown", "did you mean 'feedback'"]),
    "prompt missing": (with_row(prompt=...), 3, "prompt", ["missing"]),
    "prompt null": (with_row(prompt=None), 3, "prompt", ["missing"]),
    "prompt empty": (with_row(prompt="  "), 3, "prompt", ["empty"]),
    "prompt a number": (with_row(prompt=7), 3, "prompt", ["got 7"]),
    "prompt an empty list": (with_row(prompt=[]), 3, "prompt", ["got []"]),
    "completion missing": (with_row(completion=...), 3, "completion", ["missing"]),
    "completion empty": (with_row(completion=" \n"), 3, "completion", ["empty"]),
    "completion a list of users": (
        with_row(completion=[USER]), 3, "completion", ["assistant"],
    ),
    "last message empty": (
        with_row(prompt=[USER, {"role": "assistant", "content": ""}], completion=...),
        3, "prompt", ["empty"],
    ),
    "two completions": (
        with_row(prompt=[USER, {"role": "assistant", "content": "y"}]),
        3, "prompt", ["beside a completion"],
    ),
    "role": (with_row(prompt=[{"role": "narrator", "content": "x"}]), 3, "prompt[0].role", ["'narrator'", "user"]),
    "content": (with_row(prompt=[{"role": "user"}]), 3, "prompt[0].content", ["null"]),
    "message": (with_row(prompt=["hi"]), 3, "prompt[0]", ["'hi'"]),
    "an image": (
        with_row(prompt=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        3, "prompt[0].content[0]", ["'image_url'", "expected text"],
    ),
    "lone surrogate": ([row(1), row(2), LONE_SURROGATE], 3, "completion", ["surrogate"]),
    "two aliases": (with_row(response="x"), 3, "response", ["'completion'", "one of them"]),
    "feedback a number": (with_row(feedback=1), 3, "feedback", ["got 1", "object"]),
    "feedback 2": (with_row(feedback={"click": 2, "copy": 0}), 3, "feedback.click", ["got 2; expected 1, 0"]),
    "feedback -1": (with_row(feedback={"click": -1, "copy": 0}), 3, "feedback.click", ["got -1"]),
    "feedback text": (with_row(feedback={"click": "1", "copy": 0}), 3, "feedback.click", ["got '1'"]),
    "feedback 0.5": (with_row(feedback={"click": 0.5, "copy": 0}), 3, "feedback.click", ["got 0.5"]),
    "signal without a name": (with_row(feedback={"": 1}), 3, "feedback", ["not empty"]),
    "nothing recorded": (with_row(feedback={"click": None, "copy": None}), 3, "feedback", ["no preference"]),
    "no feedback": (with_row(feedback=...), 3, "feedback", ["nothing recorded"]),
    "absent key": (
        with_row(feedback={"click": 1}), 3, "feedback.copy", ["--absent silent", "--absent missing"],
    ),
    "no recorded 0": (
        [row(1, feedback={"click": 1, "copy": 1}), row(2, feedback={"click": 0, "copy": None})],
        None, "feedback.copy", ["not a single 0", "only the actions that happened"],
    ),
    "deep feedback": ([row(1), '{"feedback": ' + "[" * 50 + "]" * 50 + "}"], 2, "feedback", ["got [["]),
    "very deep feedback": ([row(1), '{"feedback": ' + "[" * 500 + "]" * 500 + "}"], 2, "json", ["501", "at most 64"]),
    "two sides": (
        with_row(feedback={"click": 1, "copy": 0, "regenerate": 1}), 3, "feedback", ["click, regenerate", "misclick"],
    ),
    "against the preference": (
        with_row(feedback={"click": 1, "copy": 0}, preference=0), 3, "feedback", ["click, preference 0"],
    ),
    "no action": (
        [row(2), row(4)], None, "feedback", ["no action (1)", "no preference"],
    ),
    "id twice": (with_row(id="r1"), 3, "id", ["'r1'", "line 1"]),
    "id a list": (with_row(id=[1]), 3, "id", ["got [1]"]),
    "id true": (with_row(id=True), 3, "id", ["got true"]),
    "id empty": (with_row(id=""), 3, "id", ["not empty"]),
    "preference 2": (with_row(preference=2), 3, "preference", ["got 2"]),
    "propensity 0": (with_row(propensity={"click": 0}), 3, "propensity.click", ["got 0", "above 0"]),
    "propensity 1.5": (with_row(propensity={"click": 1.5}), 3, "propensity.click", ["got 1.5"]),
    "propensity too small": (with_row(propensity={"click": 1e-50}), 3, "propensity.click", ["got 1e-50"]),
    "propensity true": (with_row(propensity={"click": True}), 3, "propensity.click", ["got true"]),
    "propensity of no signal": (
        with_row(propensity={"clik": 0.5}), 3, "propensity.clik", ["did you mean 'click'"],
    ),
    "weight -1": (with_row(weight=-1), 3, "weight", ["got -1", "not negative"]),
    "weight 1e999": ([row(1), row(2), '{"weight": 1e999}'], 3, "weight", ["got inf", "finite"]),
    "weight beyond float32": (with_row(weight=1e39), 3, "weight", ["got 1e+39"]),
    "weight true": (with_row(weight=True), 3, "weight", ["got true"]),
    "weights all 0": ([row(1, weight=0), row(2, weight=0)], None, "weight", ["0 in every row"]),
    "feature text and number": (
        [row(1, features={"n": 1}), row(2, features={"n": "one"}), row(3, features={"n": 2})],
        2, "features.n", ["got 'one'; expected a finite number, as in line 1"],
    ),
    "feature number and text": (
        [row(1, features={"os": "ios"}), row(2), row(3, features={"os": 2})],
        3, "features.os", ["got 2.0; expected text, as in line 1"],
    ),
    "feature empty": (with_row(features={"os": " "}), 3, "features.os", ["not empty"]),
    "feature a list": (with_row(features={"os": []}), 3, "features.os", ["got []", "number"]),
    "feature null": (
        [row(1, features={"n": 1}), row(2, features={"n": None})], 2, "features.n", ["got null; expected a finite"],
    ),
    "segment twice": (
        with_row(platform="ios", features={"platform": "web"}), 3, "features.platform", ["also a field"],
    ),
    "segment a flag": (with_row(platform=True), 3, "platform", ["got true", "whole number"]),
    "segment misspelt": (with_row(platfrom="ios"), 3, "platfrom", ["did you mean 'platform'"]),
    "feature true": (with_row(features={"code": True}), 3, "features.code", ["got true", "1 or 0"]),
    "features in one row": (with_row(features={"length": 1}), 1, "features", ["none", "length"]),
    "user": (with_row(user_id=1.5), 3, "user_id", ["got 1.5"]),
    "session": (with_row(session_id={}), 3, "session_id", ["got {}"]),
    "timestamp": (with_row(timestamp=[]), 3, "timestamp", ["got []"]),
    "timestamp text": (with_row(created_at="yesterday"), 3, "created_at", ["'yesterday'", "seconds", "12:00:00Z"]),
    "position text": (with_row(position="top"), 3, "position", ["got 'top'", "number"]),
    "label probability": (with_row(label_probability=0), 3, "label_probability", ["got 0", "above 0"]),
    "acted_at of a silent signal": (
        with_row(acted_at={"copy": 1.7e9}), 3, "acted_at.copy", ["did not act", "feedback is 1"],
    ),
    "acted_at of a missing signal": (
        with_row(feedback={"click": None, "copy": 1}, acted_at={"click": 1.7e9}), 3, "acted_at.click", ["did not act"],
    ),
    "acted_at of no signal": (with_row(acted_at={"clik": 1.7e9}), 3, "acted_at.clik", ["did you mean 'click'"]),
    "acted_at no time": (with_row(acted_at={"click": "soon"}), 3, "acted_at.click", ["'soon'", "time"]),
    "17 signals": ([row(1, feedback={f"s{k}": 0 for k in range(17)})], None, "feedback", ["17", "16"]),
    "empty file": ([""], None, "file", ["empty"]),
}  # fmt: skip

# Every key twice, and many of them: no search may be quadratic.
BAD["many keys twice"] = ([row(1), "{" + '"a": 1, ' * 100_000 + '"b": 2}'], 2, "a", ["twice"])


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(tmp_path, name):
    rows, line, field, fragments = BAD[name]
    path = write(tmp_path / "log.jsonl", rows)
    with pytest.raises(DataError) as raised:
        read_log(path)
    start = f"{path}:{line}: {field}: " if line else f"{path}: {field}: "
    matching = [problem for problem in raised.value.problems if problem.startswith(start)]
    assert len(matching) == 1, raised.value.problems
    for fragment in fragments:
        assert fragment in matching[0]
    assert matching[0] in validate(path)["problems"]


def test_all_problems_are_collected(tmp_path):
    rows = [row(1, weight=-1, preference=3), row(2), "{", row(3, prompt=...)]
    with pytest.raises(DataError) as raised:
        read_log(write(tmp_path / "log.jsonl", rows))
    assert [problem.split(": ")[:2] for problem in raised.value.problems] == [
        [f"{tmp_path}/log.jsonl{where}", field]
        for where, field in [
            ("", "feedback"),
            (":1", "preference"),
            (":1", "weight"),
            (":3", "json"),
            (":4", "prompt"),
        ]
    ]


def test_problems_are_capped_and_cut(tmp_path):
    path = write(tmp_path / "log.jsonl", [row(i, weight=-1) for i in range(1500)])
    with pytest.raises(DataError) as raised:
        read_log(path)
    assert len(raised.value.problems) == 1000 and raised.value.total == 1500
    assert str(raised.value).count("\n") == 20 and "1480 more" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("absent.jsonl", None, "not found"),
        ("log.csv", b"a,b", "empty"),
        ("log.json", b"[]", "empty"),
        ("log.json", b"[{}", "no whole JSON array.*or Parquet"),
        (
            "log.parquet",
            b"nothing of that kind" * 30,
            "file: got text that begins 'nothing .*expected JSON Lines.*Parquet",
        ),
        ("log.jsonl", b"PK\x03\x04", "a ZIP archive"),
        ("log.jsonl", b"\x00\x01" * 9, "no text"),
        ("log.jsonl.gz", gzip.compress(json.dumps(row()).encode() * 50)[:-12], "cannot be read"),
        ("log.jsonl", b"", "empty"),
        ("log.jsonl", b'{"id": "a\xff"}', "byte 10 is not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, fragment):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=fragment) as raised:
        read_log(path)
    assert str(path) in str(raised.value)


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    (tmp_path / "log.jsonl" / "_SUCCESS").touch()
    with pytest.raises(DataError, match="a folder without files"):
        read_log(tmp_path / "log.jsonl")


def test_arrays(log_of):
    both, other = {"a": 0, "b": 0}, {"b": 2, "a": 3}
    log = log_of(
        row(1, feedback={"click": True, "thumbs_down": 0}, weight=2, user_id=7, features={"a": 1, "b": -0.5}),
        row(2, feedback={"thumbs_down": 1.0, "click": None}, propensity={"click": 0.25}, features=other),
        row(3, feedback=..., preference=1, id=..., features=both, timestamp="2026-01-01"),
        row(4, feedback={"click": 0, "thumbs_down": 0}, preference=None, features=both, session_id=3),
    )
    assert len(log) == 4 and log.ids == ["r1", "r2", "row-3", "r4"]
    assert log.signals == ("click", "thumbs_down") and log.polarity == (1, -1)
    assert log.feedback.dtype == np.int8 and log.feedback.tolist() == [[1, 0], [-1, 1], [-1, -1], [0, 0]]
    assert log.preference.dtype == np.int8 and log.preference.tolist() == [-1, -1, 1, -1]
    assert log.weight.dtype == np.float32 and log.weight.tolist() == [2, 1, 1, 1]
    assert log.propensity.dtype == np.float32 and log.propensity.shape == (4, 2)
    assert log.propensity[1, 0] == 0.25 and np.isnan(log.propensity).sum() == 7
    assert log.feature_names == ("a", "b") and log.features[:2].tolist() == [[1, -0.5], [3, 2]]
    assert log.user_ids == ["7", None, None, None]
    assert log.messages[0] == [
        {"role": "user", "content": "question 1"},
        {"role": "assistant", "content": "answer 1"},
    ]


def test_context(log_of):
    log = log_of(
        row(1, session_id=7, timestamp="2026-01-31T12:00:00Z", position=2, acted_at={"click": 1769860805.5}),
        row(2, time=1769860801000, position=0.5, label_probability=0.25, preference=1, acted_at={"copy": None}),
        row(3, session="b", label_probability=1, preference=0, feedback={"click": 0, "copy": 0}),
    )
    assert log.session_ids == ["7", None, "b"]
    for values in (log.times, log.positions, log.label_probability, log.acted_at):
        assert values.dtype == np.float64
    np.testing.assert_array_equal(log.times, [1769860800, 1769860801, np.nan])
    np.testing.assert_array_equal(log.positions, [2, 0.5, np.nan])
    np.testing.assert_array_equal(log.label_probability, [np.nan, 0.25, 1])
    np.testing.assert_array_equal(log.acted_at, [[1769860805.5, np.nan], [np.nan, np.nan], [np.nan, np.nan]])


def test_segments_are_texts(log_of):
    log = log_of(
        row(1, platform="ios", features={"length": 3, "surface": "chat"}),
        row(2, version=12, features={"length": 4, "surface": None}),
        row(3, version="12", model="m", features={"length": 5, "theme": "dark"}),
    )
    assert log.segments == {
        "surface": ["chat", None, None],
        "platform": ["ios", None, None],
        "version": [None, "12", "12"],
        "theme": [None, None, "dark"],
        "model": [None, None, "m"],
    }
    assert log.feature_names == ("length",) and log.features.tolist() == [[3], [4], [5]]
    alone = log_of(row(1, features={"surface": "chat"}), row(2))
    assert alone.segments == {"surface": ["chat", None]} and alone.features is None
    with pytest.raises(ValueError, match=r"none that are numbers \(texts: surface\)"):
        check_design("features", alone)


def test_optional_columns_are_none(log_of):
    log = log_of(row(1), row(2, acted_at={"click": None}))
    assert log.weight is log.propensity is log.features is log.user_ids is None and log.feature_names == ()
    assert log.session_ids is log.times is log.positions is log.label_probability is log.acted_at is None
    assert log.segments == {}


def test_preferences_alone(log_of):
    log = log_of(row(1, feedback=..., preference=1), row(2, feedback=None, preference=0))
    assert log.signals == () and log.feedback.shape == (2, 0) and log.preference.tolist() == [1, 0]


@pytest.mark.parametrize(("absent", "fill"), [("silent", 0), ("missing", -1)])
def test_absent_keys(log_of, absent, fill):
    rows = [
        row(1, feedback={"click": 1}),
        row(2, feedback={"copy": 0, "click": 0}),
        row(3, feedback={}, preference=1),
        row(4, feedback={"copy": None}, preference=1),
        row(5, feedback=..., preference=1),
    ]
    log = log_of(*rows, absent=absent)
    assert log.feedback.tolist() == [[1, fill], [0, 0], [fill, fill], [fill, -1], [-1, -1]]


def test_silent_reads_a_log_of_actions_that_happened(log_of):
    log = log_of(row(1, feedback={"click": 1}), row(2, feedback={}), absent="silent")
    assert log.feedback.tolist() == [[1], [0]]
    with pytest.raises(DataError, match=r"log\.jsonl:2: feedback: nothing recorded"):
        log_of(row(1, feedback={"click": 1}), row(2, feedback={}), absent="missing")


def test_absent_is_checked(log_of):
    with pytest.raises(ValueError, match="absent: got 'zero'"):
        log_of(row(1), absent="zero")


def test_polarity(log_of):
    names = ["thumbs_down", "regenerate", "dislike", "downvote", "report", "Thumbs-Down", "like", "reports"]
    declared = {"dislike": -1, "downvote": -1, "report": 1, "Thumbs-Down": -1, "like": -1}
    log = log_of(row(1, feedback=dict.fromkeys(names, 0), preference=1), polarity=declared)
    assert log.polarity == (-1, -1, -1, -1, 1, -1, -1, 1)


@pytest.mark.parametrize(
    "name",
    [
        "thumbsDown",
        "Thumbs Down",
        "THUMBS_DOWN",
        "disliked",
        "bad_response",
        "negative_feedback",
        "downvoted",
        "\U0001f44e",
        "-1",
    ],
)
def test_names_of_displeasure_have_to_be_declared(log_of, tmp_path, name):
    rows = [row(i, feedback={"click": i % 2, name: 0 if i < 3 else i % 2}) for i in range(4)]
    with pytest.raises(DataError, match=r"speaks of displeasure.*--polarity"):
        log_of(*rows, misclick=True)
    assert validate(tmp_path / "log.jsonl", misclick=True)["signals"][name]["acted"] == 1
    assert log_of(*rows, polarity={name: 1}).polarity == (1, 1)


def test_polarity_is_checked(log_of):
    for sign in (0, 2, "+", True):
        with pytest.raises(ValueError, match=r"polarity: got .* for 'click'; expected 1 or -1"):
            log_of(row(1), row(2), polarity={"click": sign})
    with pytest.raises(DataError, match="polarity: the log has no signal 'clik'; did you mean 'click'"):
        log_of(row(1), row(2), polarity={"clik": 1})


def test_misclick_allows_contradictions(log_of):
    rows = [row(1, preference=0), row(2, feedback={"click": 1, "copy": 1}), row(4, preference=1)]
    with pytest.raises(DataError) as raised:
        log_of(*rows, polarity={"copy": -1})
    assert raised.value.total == 2
    assert len(log_of(*rows, polarity={"copy": -1}, misclick=True)) == 3


def test_contradictions_are_left_out_with_the_rate_that_they_imply(log_of):
    """Two of five labels speak against a click that was recorded, one of two against a dislike."""
    labels = [{"preference": 0, "feedback": {"click": i % 2, "regenerate": None}} for i in range(5)]
    labels += [{"preference": 1, "feedback": {"click": None, "regenerate": i}} for i in range(2)]
    silent = [
        {"preference": 0, "feedback": {"click": None, "regenerate": 1}},
        {"feedback": {"click": 1, "regenerate": 1}},
    ]
    rows = [row(i, **fields) for i, fields in enumerate(labels + silent)]
    with pytest.warns(UserWarning) as said:
        log = log_of(*rows, drop_contradictions=True)
    assert log.ids == ["r0", "r2", "r4", "r5", "r7"]
    assert [str(warning.message) for warning in said] == [
        "left out 4 of 9 rows that contradict themselves; if the labels are right, misclick rates are: "
        "click at least 0.4 (2 of 5 labels against it), regenerate at least 0.5 (1 of 2 labels against it)"
    ]
    assert said[0].filename == __file__


def test_contradictions_without_labels_imply_no_rate(log_of):
    rows = [row(i, feedback={"click": i % 2, "regenerate": int(i == 1)}) for i in range(4)]
    with pytest.warns(UserWarning, match=r"^left out 1 of 4 rows that contradict themselves$"):
        assert log_of(*rows, drop_contradictions=True).ids == ["r0", "r2", "r3"]


def test_dropping_contradictions_says_nothing_where_there_are_none(log_of, recwarn):
    assert len(log_of(row(1), row(2), drop_contradictions=True)) == 2 and not recwarn.list
    with pytest.raises(ValueError, match="all 2 rows contradict themselves"):
        log_of(*[row(i, feedback={"click": i, "copy": 1 - i}, preference=0) for i in (0, 1)], drop_contradictions=True)


def test_gzip_bom_blank_lines_and_carriage_returns(tmp_path):
    text = "\ufeff" + json.dumps(row(1)) + "\r\n\r\n" + json.dumps(row(2, id=...)) + "\r\n"
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert read_log(path).ids == ["r1", "row-3"]


def test_parquet_is_read_as_jsonl_is(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = [
        row(1, feedback={"click": 1, "copy": None}, weight=2.0, propensity={"click": 0.5}, user_id="u"),
        row(2, prompt="q", weight=None, user_id=None),
        row(4, feedback=None, preference=1),
    ]
    path = tmp_path / "log[1].parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([{"preference": None} | entry for entry in rows]), path)
    one, other = read_log(path, absent="missing"), read_log(write(tmp_path / "log.jsonl", rows))
    assert one.messages == other.messages and one.ids == other.ids and one.user_ids == other.user_ids
    for name in ("feedback", "preference", "weight", "propensity"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_parquet_has_times_of_its_own(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    moment = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
    columns = {
        "ns": pa.array([moment, None], pa.timestamp("ns", "UTC")),
        "ms": pa.array([moment.replace(tzinfo=None), None], pa.timestamp("ms")),
        "day": pa.array([moment.date(), None], pa.date32()),
        "text": pa.array(["2026-01-31T12:00:00Z", None]),
    }
    texts, acted = pa.array(["q", "r"]), [{"click": moment}, {"click": None}]
    for name, values in columns.items():
        table = {"prompt": texts, "completion": texts, "feedback": [{"click": 1}, {"click": 0}], "time": values}
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pa.table({**table, "acted_at": acted}), path)
        log, seconds = read_log(path), moment.timestamp() - (43200 if name == "day" else 0)
        np.testing.assert_array_equal(log.times, [seconds, np.nan])
        np.testing.assert_array_equal(log.acted_at, [[moment.timestamp()], [np.nan]])


def test_parquet_times_need_no_pandas(tmp_path):
    """Python's datetimes hold no nanoseconds; pyarrow would take those of pandas, or fail where it is not installed."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    nanoseconds = pa.array([1_769_860_800_000_001_001, None], pa.timestamp("ns", "UTC"))
    table = pa.table({"time": nanoseconds, "acted_at": pa.StructArray.from_arrays([nanoseconds], ["click"])})
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    first, second = (entry.content for entry in Source(tmp_path / "log.parquet"))
    for value in (first["time"], first["acted_at"]["click"]):
        assert type(value) is datetime and value.timestamp() == 1769860800.000001
    assert second == {"acted_at": {}}


def test_parquet_errors_name_the_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = [row(1, weight=1.0), row(2, weight=-2.0), row(3, weight=1.0)]
    path = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"log\.parquet:2: weight: got -2.0"):
        read_log(path)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows).slice(0, 0), path)
    with pytest.raises(DataError, match=r"log\.parquet: file: empty"):
        read_log(path)


def test_subset(log_of):
    given = ("weight", "user_id", "session_id", "timestamp", "position", "version")
    more = [{"features": {"a": i}, "acted_at": {"click": i} if i % 2 else None} for i in range(6)]
    more = [{**more[i], "label_probability": i / 5 or None, **dict.fromkeys(given, i)} for i in range(6)]
    log = log_of(*[row(i, **more[i]) for i in range(6)])
    for index in (np.array([4, 1]), np.array([False, True, False, False, True, False])):
        part = log.subset(index)
        assert sorted(part.ids) == ["r1", "r4"]
        assert part.weight.tolist() == part.features[:, 0].tolist() == [int(name) for name in part.user_ids]
        assert [turns[0]["content"][-1] for turns in part.messages] == part.user_ids
        assert part.feedback.shape == (2, 2) and len(part.preference) == 2
        assert part.session_ids == part.segments["version"] == part.user_ids
        assert part.times.tolist() == part.positions.tolist() == part.weight.tolist()
        np.testing.assert_allclose(part.label_probability * 5, part.times)
        np.testing.assert_array_equal(part.acted_at[:, 0], np.where(part.times % 2, part.times, np.nan))
        swapped = keep_signals(part, ["copy", "click"])
        np.testing.assert_array_equal(swapped.acted_at, part.acted_at[:, ::-1])


def test_split_keeps_prompts_and_users_together(log_of):
    rng = np.random.default_rng(0)
    prompts, users = rng.integers(0, 150, 300), rng.integers(0, 60, 300)
    rows = [row(i, prompt=f"q{prompts[i]}", user_id=int(users[i])) for i in range(300)]
    log = log_of(*rows)
    with pytest.warns(UserWarning, match="^users share too many prompts"):  # chance ties most rows together here
        train, held = log.split(0.2, seed=1)
    assert not {m[0]["content"] for m in train.messages} & {m[0]["content"] for m in held.messages}

    log = log_of(*[entry | {"user_id": f"u{prompts[i] // 3}"} for i, entry in enumerate(rows)])
    train, held = log.split(0.2, seed=1)
    assert not set(train.user_ids) & set(held.user_ids)
    assert not {m[0]["content"] for m in train.messages} & {m[0]["content"] for m in held.messages}
    assert sorted(train.ids + held.ids) == sorted(log.ids) and 50 <= len(held) <= 60
    assert held.ids == log.split(0.2, seed=1)[1].ids != log.split(0.2, seed=2)[1].ids


def test_an_instruction_that_nearly_all_rows_have_ties_none_of_them(log_of):
    rows = [row(i, prompt="Summarise.", completion=f"text {i // 2}", user_id=i // 6) for i in range(60)]
    for log in (log_of(*rows), log_of(*rows, row(60, prompt="Translate."), row(61, prompt="Translate."))):
        with pytest.warns(UserWarning, match=r"60 of 6. rows have one prompt, 'Summarise\.'.*heldout=") as given:
            train, held = log.split(0.2, seed=0)
        assert len(given) == 1 and 6 <= len(held) <= 14
        assert not set(train.user_ids) & set(held.user_ids)
        assert log.groups().tolist() == log.groups(0.9).tolist() and log.groups().max() >= 9
    nine_in_ten = log_of(*rows[:54], *[row(i, prompt=f"q{i}") for i in range(54, 60)])
    assert (nine_in_ten.groups(apart=0)[:54] == 0).all()


def test_rows_of_one_instruction_and_one_text_stay_together(log_of):
    log = log_of(*[row(i, prompt="Summarise.", completion=f"text {i // 4}") for i in range(40)])
    assert np.array_equal(log.groups(), np.arange(40) // 4)


def test_split_that_cannot_be(log_of):
    log = log_of(*[row(i, prompt="the same", completion="the same") for i in range(10)])
    with pytest.raises(ValueError, match=r"all belong together.*--validation-fraction 0 trains on all rows"):
        log.split(0.1, seed=0)
    with pytest.raises(ValueError, match="fraction"):
        log.split(1.5, seed=0)


def test_groups_keep_users_together_where_enough_rows_lie_outside_the_largest(log_of):
    log = log_of(*[row(i, prompt=f"q{i}", user_id="often" if i < 6 else i) for i in range(10)])
    with pytest.warns(UserWarning, match="^users share too many prompts to be parted: they may be in both groups"):
        assert len(set(log.groups().tolist())) == 10  # 4 of 10 rows lie outside the largest group
    assert len(set(log.groups(apart=0.4).tolist())) == 5
    _, held = log.split(0.4, seed=0)
    assert len(held) == 4 and "often" not in held.user_ids


def test_groups_keep_sessions_together_where_the_user_is_unknown(log_of):
    """A session's name may be known within its user alone: there it ties no rows of different users."""
    people = [{"user_id": "a", "session_id": 1}, {"user_id": "b", "session_id": 1}, {"session_id": 1}]
    log = log_of(*[row(i, prompt=f"q{i}", **people[i % 3]) for i in range(6)], row(6), row(7, user_id="1"))
    assert log.groups().tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert log.subset(np.arange(7)).groups().tolist() == [0, 1, 2, 0, 1, 2, 3]


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_groups_keep_the_turns_of_a_conversation_together(log_of):
    system = {"role": "system", "content": "Be brief."}
    prompts = [
        [system, *_turns("a", "A", "b", "B", "c")],
        [system, *_turns("a")],
        [system, *_turns("a", "another answer", "d")],  # the same prompt at its first turn
        [system, *_turns("e")],  # the system's turn alone is no beginning
        _turns("a", "A", "b"),
        _turns("f", "F", "g"),
        _turns("f", "F", "h"),  # no row has the turn that the two share
    ]
    log = log_of(*[row(i, prompt=prompt) for i, prompt in enumerate(prompts)], row(7, prompt="e", session_id=1))
    assert log.groups().tolist() == [0, 0, 0, 1, 2, 3, 4, 5]
    sessions = log_of(*[row(i, prompt=prompt, session_id=i // 4) for i, prompt in enumerate(prompts)])
    assert sessions.groups(apart=0).tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_session_is_that_of_the_user_who_signs_in_during_it(log_of):
    people = [{"session_id": "s"}, {"session_id": "s", "user_id": "a"}, {"user_id": "a"}, {"user_id": "b"}]
    log = log_of(*[row(i, prompt=f"q{i}", **people[i]) for i in range(4)])
    assert log.groups(apart=0).tolist() == [0, 0, 0, 1]


def test_split_keeps_sessions_together_where_users_cannot_be(log_of):
    rng = np.random.default_rng(0)
    prompts, users = rng.integers(0, 150, 300), rng.integers(0, 8, 300)
    rows = [row(i, prompt=f"q{prompts[i]}", user_id=int(users[i]), session_id=int(prompts[i] // 3)) for i in range(300)]
    log = log_of(*[entry | {"session_id": f"{entry['user_id']}-{entry['session_id']}"} for entry in rows])
    with pytest.warns(UserWarning, match=r"^users share too many prompts to be parted.*heldout=") as given:
        train, held = log.split(0.2, seed=1)
    assert len(given) == 1 and 50 <= len(held) <= 60
    assert not set(train.session_ids) & set(held.session_ids) and set(train.user_ids) & set(held.user_ids)
    assert not {m[0]["content"] for m in train.messages} & {m[0]["content"] for m in held.messages}


def test_split_parts_conversations_that_begin_alike_only_if_it_has_to(log_of):
    greeting = [_turns("Hi", "Hello", f"q{i}") for i in range(58)]
    log = log_of(*[row(i, prompt=prompt, session_id=i // 3) for i, prompt in enumerate([_turns("Hi"), *greeting])])
    with pytest.warns(UserWarning, match="^sessions and conversations share too many prompts"):
        _, held = log.split(0.2, seed=1)
    assert len(held) == 12


def test_split_says_if_the_held_out_part_has_another_size_than_it_was_to_have(log_of):
    log = log_of(*[row(i, prompt="popular" if i < 90 else f"q{i}") for i in range(100)])
    with pytest.warns(UserWarning, match=r"held out 10 of 100 rows, where 30% were asked for.*up to 90.*heldout="):
        assert len(log.split(0.3, seed=0)[1]) == 10
    with pytest.warns(UserWarning, match=r"held out 50 of 100 rows, where 10%"):
        log_of(*[row(i, prompt=f"q{i % 2}") for i in range(100)]).split(0.1, seed=0)


def test_names_are_numbered():
    assert numbered(["b", None, "a", "b", 3]).tolist() == [0, -1, 1, 0, 2]
    assert group_rows(["b", None, "a", "b", 3]).tolist() == [0, 1, 2, 0, 3]  # without a name, and yet a group


def test_group_rows():
    groups = group_rows(["a", "b", "a", None, None], [None, 1, None, 1, 2])
    assert groups[0] == groups[2] and groups[1] == groups[3] and len(set(groups.tolist())) == 3


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.5, 0.999])
def test_hold_out_leaves_both_sides(fraction):
    groups = np.repeat(np.arange(7), 3)
    held = hold_out(groups, fraction, seed=3)
    assert 0 < held.sum() < len(held)
    assert all(len(set(held[groups == g].tolist())) == 1 for g in range(7))
    if 0.2 < fraction < 0.8:
        assert abs(held.mean() - fraction) <= 3 / 21


def test_validate(tmp_path):
    rows = [
        row(1, user_id="u"),
        row(2, user_id="u", prompt="question 1", completion="answer 1"),
        row(3, id="r1", user_id="v"),
        row(4, feedback={"click": None, "copy": 1, "regenerate": 1}),
        row(5, weight=-1),
        row(6, feedback={"click": 0}, preference=1),
    ]
    report = validate(write(tmp_path / "log.jsonl", rows))
    assert json.loads(json.dumps(report)) == report
    assert report["rows"] == 6 and report["valid_rows"] == 5
    assert report["signals"]["click"] == {
        "polarity": 1, "declared": False, "acted": 2, "silent": 2, "missing": 1, "absent": 0, "rate": 0.5,
    }  # fmt: skip
    assert report["signals"]["copy"]["absent"] == 1
    assert report["signals"]["regenerate"]["polarity"] == -1
    assert report["rows_with_preference"] == report["preferred"] == 1
    assert report["contradictions"] == report["duplicate_ids"] == report["duplicate_texts"] == 1
    assert report["users"] == 2 and report["rows_per_user"] == {"min": 1, "median": 1.5, "max": 2}
    fields = [problem.split(": ")[1] for problem in report["problems"]]
    assert sorted(fields) == [
        "feedback", "feedback.copy", "feedback.regenerate", "feedback.regenerate", "id", "weight",
    ]  # fmt: skip
    text = format_validation(report)
    assert "click" in text and "50.00%" in text and "problems: 6" in text
    assert report["problems"][-1] in text


def test_validate_says_who_when_and_where(tmp_path):
    rows = [row(i, user_id=i // 4, session_id=i // 3, platform="ios" if i % 2 else "web") for i in range(8)]
    rows[0] |= {"timestamp": "2026-01-31T12:00:00Z", "position": 1}
    rows[5] |= {"timestamp": "2026-02-01T12:00:00.5Z", "platform": None, "features": None}
    report = validate(write(tmp_path / "log.jsonl", rows))
    assert json.loads(json.dumps(report)) == report
    assert report["problems"] == []
    assert report["sessions"] == 3 and report["rows_per_session"] == {"min": 2, "median": 3, "max": 3}
    assert report["times"] == {"rows": 2, "first": 1769860800.0, "last": 1769947200.5}
    assert report["segments"]["platform"] == {"values": 2, "rows_per_value": {"min": 3, "median": 3.5, "max": 4}}
    lines = format_validation(report).splitlines()
    assert "users: 2 (4 to 4 rows each, median 4)" in lines
    assert "sessions: 3 (2 to 3 rows each, median 3)" in lines
    assert "times: 2026-01-31 12:00:00 to 2026-02-01 12:00:00 UTC (2 rows)" in lines
    assert "platform: 2 (3 to 4 rows each, median 3.5)" in lines


def test_validate_a_good_log(tmp_path):
    report = validate(write(tmp_path / "log.jsonl", [row(1), row(2)]))
    assert report["problems"] == [] and report["rows_per_user"] is report["rows_per_session"] is report["times"] is None
    assert report["users"] == report["sessions"] == 0 and report["segments"] == {}
    assert "no problems found" in format_validation(report)


def test_validate_an_empty_file(tmp_path):
    report = validate(write(tmp_path / "log.jsonl", []))
    assert report["rows"] == 0 and "empty" in format_validation(report)
    with pytest.raises(DataError, match="not found"):
        validate(tmp_path / "absent.jsonl")


def test_signal_notes(log_of):
    def rows(*columns):
        table = zip(*(6 * column for column in columns), strict=True)  # five actions a column make the 30 needed
        return [row(i, feedback=dict(zip("abc", entry, strict=False)), preference=1) for i, entry in enumerate(table)]

    outer, inner = [1] * 6 + [0] * 4, [1] * 5 + [0] * 5
    assert signal_notes(log_of(*rows(outer, inner[::-1]))) == []
    assert signal_notes(log_of(*rows(outer, [1] * 4 + [0] * 6))) == [], "24 actions are too few"
    [note] = signal_notes(log_of(*rows(inner, outer)))
    assert note.startswith("a acts only where b acts (30 times): independence given the response cannot hold")
    [same] = signal_notes(log_of(*rows(outer, outer)))
    assert same.startswith("a and b act in the same rows (36 times)")
    # Where the other is not recorded, nothing is known of it.
    assert len(signal_notes(log_of(*rows([1] * 6 + [0, 0, 0, 1], [1] * 8 + [0, None])))) == 1
    dead, *nested = signal_notes(log_of(*rows(inner, [0] * 10, outer)))
    assert dead == "b: never acts: it says nothing, and train leaves it out" and len(nested) == 1
    assert signal_notes(log_of(row(1, feedback=..., preference=1))) == []


def test_notes_are_no_problems(tmp_path):
    path = write(tmp_path / "log.jsonl", [row(1), row(2)])
    report = validate(path)
    assert report["problem_count"] == 0 and [note.split(":")[0] for note in report["notes"]] == ["copy"]
    assert "note: copy: never acts" in format_validation(report)
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code == 0 and "note: copy: never acts" in result.stdout


def test_the_command_allows_misclicks(tmp_path):
    path = write(tmp_path / "log.jsonl", [row(1, preference=0), row(2)])
    assert CliRunner().invoke(app, ["validate", str(path)]).exit_code == 1
    result = CliRunner().invoke(app, ["validate", str(path), "--misclick"])
    assert result.exit_code == 0 and "contradictions: 1 rows" in result.stdout


def score_command(data, out):
    return CliRunner().invoke(app, ["score", "--model", "nowhere", "--data", str(data), "--out", str(out)])


def test_score_checks_its_output_first(tmp_path):
    path = write(tmp_path / "log.jsonl", [row(1)])
    before = path.read_bytes()
    assert "is the input" in score_command(path, path).stderr and path.read_bytes() == before
    assert "no such folder" in score_command(path, tmp_path / "none" / "out.jsonl").stderr


def test_score_writes_null_for_nan(tmp_path, monkeypatch):
    monkeypatch.setattr(rewards_file, "load", lambda *_, **__: None)
    monkeypatch.setattr(rewards_file, "folder_fingerprint", lambda folder: "none")
    monkeypatch.setattr(rewards_file, "declared_for", lambda folder, declared: None)
    monkeypatch.setattr(rewards_file, "rendering_of", lambda model: None)
    monkeypatch.setattr(rewards_file, "_precision_of", lambda model: "float32")
    monkeypatch.setattr(rewards_file, "rewards", lambda *_: {"reward": np.array([math.nan, 0.5], np.float32)})
    out = tmp_path / "out.jsonl"
    result = score_command(write(tmp_path / "log.jsonl", [row(1), row(2)]), out)
    assert result.exit_code == 1
    assert "1 of 2 rewards are not finite" in result.stderr
    assert out.read_text().splitlines() == ['{"id": "r1", "reward": null}', '{"id": "r2", "reward": 0.5}']
