import pytest

from irm_fast.data.declarations import Declarations
from irm_fast.data.log_rows import log_row
from irm_fast.data.problems import Problems
from irm_fast.data.rows import LOG_FIELDS

GOOD = {"id": "a", "prompt": "why", "completion": "because", "feedback": {"click": 1}}
VALUES = GOOD | {
    "propensity": {"click": 0.5},
    "preference": 1,
    "weight": 2,
    "user_id": "u",
    "session_id": "s",
    "timestamp": 1.7e9,
    "position": 2,
    "label_probability": 0.1,
    "acted_at": {"click": 1.7e9},
    "platform": "ios",
    "version": 3,
    "model": "m",
    "features": {"x": 1},
}


def parse(raw):
    problems = Problems("log.jsonl")
    return log_row(7, raw, Declarations(), problems), problems.kept


@pytest.mark.parametrize(("alias", "name"), sorted(LOG_FIELDS.items()))
def test_aliases(alias, name):
    renamed = {alias if key == name else key: value for key, value in VALUES.items()}
    assert parse(renamed) == parse(VALUES)
    assert parse(renamed)[0] is not None


@pytest.mark.parametrize("alias", ["messages", "question", "instruction", "input", "context"])
def test_two_names_of_one_field(alias):
    row, problems = parse({alias: "x"} | GOOD)
    assert row is None
    assert problems == [f"log.jsonl:7: prompt: means the same as {alias!r} in this row; expected one of them"]
    assert parse({alias: None} | GOOD)[0] is not None


def test_messages_are_prompt_and_completion():
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "because"},
    ]
    whole, _ = parse({"id": "a", "messages": turns, "feedback": {"click": 1}})
    parted, _ = parse({"id": "a", "prompt": turns[:2], "response": turns[2:], "feedback": {"click": 1}})
    text, _ = parse({"id": "a", "messages": turns[:2], "response": "because", "feedback": {"click": 1}})
    assert whole == parted == text
    assert whole.messages == turns


def test_messages_that_end_with_the_user_need_a_completion():
    turns = [{"role": "user", "content": "why"}]
    assert parse({"messages": turns, "feedback": {"click": 1}})[1] == [
        "log.jsonl:7: completion: missing; expected text, or messages that end with the assistant's turn"
    ]


def test_null_entries_of_a_message_are_absent():
    turns = [{"role": "user", "content": "why", "name": None}]
    assert parse(GOOD | {"prompt": turns})[0].messages[0] == {"role": "user", "content": "why"}


def test_a_line_names_a_row_without_an_id():
    assert parse(GOOD | {"id": None})[0].id == "row-7"
    assert parse(GOOD | {"id": 12})[0].id == "12"


def test_strange_names_are_shown_safely():
    _, problems = parse(GOOD | {"weigh\n\ud800t": -1, "weight\n\ud800": -1})
    assert len(problems) == 2
    assert "\n" not in problems[0] and problems[0].encode()
    _, problems = parse(GOOD | {"x" * 10_000: 1, "id": ["y" * 10_000]})
    assert all(len(problem) < 300 for problem in problems)
