"""Messages as interfaces and products write them."""

import json
from typing import Any

import pytest

from irm_fast.data.groups import prompt_key
from irm_fast.data.messages import fold_system, join_turns, messages_of
from irm_fast.data.rated import read_rated
from irm_fast.data.read import DataError, read_log

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}


def user(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def said(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def log_of(prompt: Any, completion: Any = "a", **options: Any) -> Any:
    rows = [{"id": str(i), "prompt": prompt, "completion": completion, "feedback": {"copy": i}} for i in (0, 1)]
    return read_log(rows, **options).messages[0]


MESSAGES = {
    "parts": ([user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], [user("a\nb")]),
    "developer": ([{"role": "developer", "content": "x"}, user("q")], [{"role": "system", "content": "x"}, user("q")]),
    "ShareGPT": ([{"from": "human", "value": "q"}], [user("q")]),
    "capitals": ([{"role": "User", "content": "q"}], [user("q")]),
    "names": ([user("q", name="sam")], [user("q", name="sam")]),
    "calls": (
        [user("q"), said(None, tool_calls=[CALL]), {"role": "tool", "tool_call_id": "c1", "content": "42"}],
        [
            user("q"),
            said("", tool_calls=[{**CALL, "function": {"name": "look", "arguments": {"at": 1}}}]),
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
        ],
    ),
    "one message": (user("q"), [user("q")]),
    "empty entries": ([user("q", name=None, tool_calls=[])], [user("q")]),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    given, expected = MESSAGES[name]
    assert messages_of(given, "prompt") == expected
    assert log_of(given)[:-1] == expected
    assert log_of(json.dumps(given))[:-1] == expected  # as warehouses write it


def test_text_that_looks_like_json_is_text() -> None:
    for text in ('{"a": 1}', "[1, 2]", "[not json", '[{"content": "x"}]'):
        assert log_of(text)[0] == user(text)


def test_what_is_thought_before_an_answer_is_kept() -> None:
    answer = said("a", reasoning_content="hm", id="x", refusal=None)
    with pytest.warns(UserWarning, match="fields that are not read: messages: id"):
        assert log_of("q", [answer])[-1] == said("a", reasoning_content="hm")


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"prompt\[0\].content\[1\]: got a part of the kind 'image_url'; expected text"):
        log_of([user([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {}}])])


def test_calls_make_prompts_differ() -> None:
    one, other = ([user("q"), said("", tool_calls=[{"name": name}]), said("a")] for name in "ab")
    assert prompt_key(one) != prompt_key(other)
    assert prompt_key([user("q", name="sam"), said("a")]) != prompt_key([user("r", name="sam"), said("a")])


def test_forms_for_templates_that_want_them() -> None:
    turns = [{"role": "system", "content": "s"}, user("a"), user("b"), said("c"), said("d")]
    assert fold_system(turns)[0] == user("s\n\na") and fold_system(turns[1:]) == turns[1:]
    assert join_turns(turns) == [turns[0], user("a\n\nb"), said("c\n\nd")]
    assert log_of(turns[:3], fold_system=True, join_turns=True) == [user("s\n\na\n\nb"), said("a")]


def test_instruction_and_input_are_one_prompt() -> None:
    rows = [{"instruction": "Sum up.", "input": "x" * i, "output": "a", "feedback": {"copy": i}} for i in (0, 1)]
    assert [turns[0]["content"] for turns in read_log(rows).messages] == ["Sum up.", "Sum up.\n\nx"]


def test_labels_of_unpaired_preferences() -> None:
    rated = read_rated([{"prompt": f"q{i}", "completion": "a", "label": bool(i % 2)} for i in range(4)])
    assert rated.preference.tolist() == [0, 1, 0, 1]
