import json

import numpy as np
import pytest

from irm_fast.data.reading.blocks import LineBlock
from irm_fast.data.reading.json_rows import object_of
from irm_fast.data.reading.key_places import KeyPlaces
from irm_fast.data.reading.line_tables import LineTables

KNOWN = {"a": 1, "b": "x", "c": {"x": 1, "y": 0.5}, "d": 0.5, "e": True, "l": [1]}
PLAIN = [
    b'{"a":1}', b'{"d":1e5}\n{"d":12}', b'{"b":"\\ud83d\\ude00 \\u0000 \\/"}', b'{"c":{}}\n{"c":null}\n{}',
    b'{"a":9223372036854775807}',
    b'{"b":"\xc3\xa9"}\r\n{"b":"y"}\r\n', b'{"l":[1,null]}\n{"l":[]}', b'{"b":"}\\n{"}', b'{"e":false,"a":-0}',
]  # fmt: skip
OTHERS = [  # which Arrow refuses, or takes and our parser does not, or takes otherwise
    b'{"a":1,"a":2}', b'{"c":{"x":1,"x":2}}', b'{"d":NaN}', b'{"d":-Infinity}', b'{"d":Inf}', b'{"d":1e999}',
    b'{"b":"\\ud800"}',
    b'{"b":"\xff"}', b'{"a":12345678901234567890}', b'{"a":1.0}', b'{"a":true}', b'{"e":1}', b'{"a":1} {"a":2}',
    b'{"a":1} {"a":2}\n{"c":\n{"x":1}}', b'{"a":\n1}', b'{"b":"x\ny"}', b'{"b":"x\ty"}', b'{"zz":1}', b"[1]",
    b'{"c":{"zz":1}}',
    b'{"a":1}x', b'{"a":01}', b'{"a":1,}', b'{"d":.5}', b'{"d":-0}', b"{'a':5}", b'{"a":5}//c', b'{"b":5}',
    b'{"b":"a\x00b"}',
    b'{"a":1}\n\n{"a":2}', b'{"a":1}\r{"a":2}', b'\xef\xbb\xbf{"a":1}', b' {"a":1}', b'{"a":1}\x0b', b"\n",
    b"{}\n\x00{}",
]  # fmt: skip


def _table(raw: bytes):
    tables = LineTables()
    tables.learn([KNOWN])
    return tables.table_of(LineBlock(1, raw, raw.count(b"\n")))


@pytest.mark.parametrize("raw", PLAIN)
def test_plain_lines_are_a_table_of_what_our_parser_gives(raw):
    for found, line in zip(_table(raw).batch.to_pylist(), raw.splitlines(), strict=True):
        expected = object_of(line)
        expected |= {"c": {"x": None, "y": None}} if expected.get("c") == {} else {}
        assert found == {**dict.fromkeys(KNOWN), **expected}


@pytest.mark.parametrize("raw", OTHERS)
def test_other_lines_are_read_one_by_one(raw):
    assert _table(raw) is None
    assert _table(b'{"a":1}\n' + raw) is None


def test_rows_of_two_kinds_or_too_many_fields_have_no_schema():
    for rows in ([{"a": 1}, {"a": "x"}], [{"a": {f"k{i}": 1 for i in range(1000)}}]):
        tables = LineTables()
        tables.learn(rows)
        tables.learn([{"a": 1}])
        assert tables.table_of(LineBlock(1, b'{"a":1}\n', 1)) is None


@pytest.mark.parametrize("style", [(", ", ": "), (",", ":")])
def test_null_and_absent_keys_are_told_apart(style):
    rows = [
        {"feedback": {"copy": None, "e": 1}, "text": 'of "copy": null'},
        {"feedback": {"e": None}, "text": "none"},
        {"feedback": {"copy": 1, "e": 0}, "acted_at": {"copy": None}, "text": "x"},
        {"feedback": None, "acted_at": {"copy": 5}, "text": 'a\\" :'},
        {"feedback": {"copy": None, "e": None}, "acted_at": {"copy": None}, "text": "x"},
        {"feedback": {"copy": None, "e": None}, "acted_at": {}, "text": "x"},
    ]
    raw = "".join(json.dumps(row, separators=style) + "\n" for row in rows).encode()
    tables = LineTables()
    tables.learn(rows)
    table = tables.table_of(LineBlock(1, raw, len(rows)))
    feedback = table.batch.column("feedback")
    within = feedback.is_valid().to_numpy(zero_copy_only=False)
    for name, doubtful in (("copy", [5]), ("e", [])):
        given = feedback.flatten()[feedback.type.get_field_index(name)].is_valid().to_numpy(zero_copy_only=False)
        has, doubt = KeyPlaces(table).has_key(name, within, given)
        assert np.flatnonzero(doubt).tolist() == doubtful
        expected = [name in (row["feedback"] or {}) for row in rows]
        assert [entry for entry, open_ in zip(has, doubt, strict=True) if not open_] == [
            entry for entry, open_ in zip(expected, doubt, strict=True) if not open_
        ]


@pytest.mark.parametrize("line", ['{"f": {"cop\\u0079": null}}', '{"f": {"copy" : null}}', '{"f": {"copy"\\t: null}}'])
def test_keys_that_are_written_otherwise_are_in_doubt(line):
    raw = line.replace("\\t", "\t").encode() + b'\n{"f": {"copy": 1}}\n'
    tables = LineTables()
    tables.learn([{"f": {"copy": 1}}])
    table = tables.table_of(LineBlock(1, raw, 2))
    has, doubt = KeyPlaces(table).has_key("copy", np.array([True, True]), np.array([False, True]))
    assert doubt.tolist() == [True, False] and has[1]
