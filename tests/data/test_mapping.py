"""Fields that stand elsewhere: paths and comparisons, given in Python, in YAML or on the command line."""

from typing import Any

import pytest

from irm_fast.data.conversations import read_conversations
from irm_fast.data.declarations import Declarations
from irm_fast.data.mapping import Expression, FieldMap
from irm_fast.data.read import DataError, read_log
from irm_fast.training.log_settings import LogSettings

ROW = {
    "input": {"messages": [{"role": "user", "content": "q"}], "raw": '{"deep": [1, 2]}'},
    "output": "a",
    "n_copies": 3,
    "rating": "up",
    "a.b": 7,
    "user": {"id": "u1"},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("output", "a"),
        ("input.messages[0].content", "q"),
        ("input.messages[-1].role", "user"),
        ("input.raw.deep[1]", 2),
        ('input["raw"].deep[-2]', 1),
        ("a.b", 7),
        ("none.at.all", None),
        ("input.messages[5]", None),
        ("n_copies>0", True),
        ("n_copies >= 4", False),
        ("n_copies!=3", False),
        ('rating=="up"', True),
        ("rating==up", True),
        ("rating != 'down'", True),
        ("none>0", None),
        ("none==null", None),
    ],
)
def test_expressions(text: str, value: Any) -> None:
    found = Expression.parse(text).of(ROW)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["", "a..b", "a[", "__import__('os')", "a > ", "a.b()", "a[x]"])
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match=r"map: got .*expected a path"):
        Expression.parse(text)


def test_rows_are_mapped() -> None:
    given = {"prompt": "input.messages", "completion": "output", "feedback.copy": "n_copies>0", "user_id": "user.id"}
    new = FieldMap.of(given | {"feedback.up": 'rating=="up"'}).apply(ROW)
    assert new["prompt"] == [{"role": "user", "content": "q"}] and new["completion"] == "a" and new["user_id"] == "u1"
    assert new["feedback"] == {"copy": True, "up": True}
    assert set(new) == {"prompt", "completion", "user_id", "feedback", "a.b"}  # what is mapped is read once


def test_a_log_of_another_layout() -> None:
    rows = [
        {"trace": {"in": f"q{i}", "out": f"a{i}"}, "copies": i % 3, "shared": "yes" if i % 2 else "no"}
        for i in range(6)
    ]
    given = {
        "prompt": "trace.in",
        "completion": "trace.out",
        "feedback.copy": "copies>0",
        "feedback.share": "shared==yes",
    }
    log = read_log(rows, map=given)
    assert log.signals == ("copy", "share") and log.feedback[:3].tolist() == [[0, 0], [1, 1], [1, 0]]
    text = ",".join(f"{name}={path}" for name, path in given.items())
    assert LogSettings(map=text).map == given  # as the command line has it
    assert list(read_conversations(rows, Declarations(map=given))[1]) == log.messages


def test_what_cannot_be_compared_is_a_problem_of_the_row() -> None:
    rows = [{"prompt": "q", "completion": "a", "n": n} for n in (1, "many", 0)]
    with pytest.raises(DataError, match=r"rows:2: n: got 'many', in 'n>0'; expected what 0 can be compared with"):
        read_log(rows, map={"feedback.copy": "n>0"})
