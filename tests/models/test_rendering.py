"""Rows that a chat template refuses, hides or makes alike are found before anything else is done."""

import warnings

import pytest

from irm_fast.models.backbone import ready_tokenizer
from irm_fast.models.rendering import RenderingCheck

TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}" + TURNS
)
QUESTIONS = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
NO_THOUGHTS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
)


@pytest.fixture
def tokenizer_of(tmp_path, save_tokenizer, save_llama):
    """A function that loads a tokenizer with a chat template."""

    def load(template):
        save_llama(tmp_path, save_tokenizer(tmp_path, template=template))
        return ready_tokenizer(tmp_path)

    return load


def row(answer, *before, **more):
    turns = before or (("user", "Hi"),)
    turns = [{"role": role, "content": content} for role, content in turns]
    return [*turns, {"role": "assistant", "content": answer, **more}]


def check(tokenizer, rows):
    RenderingCheck(tokenizer).check([f"id {number}" for number in range(len(rows))], rows)


@pytest.mark.parametrize(
    ("before", "why", "remedy"),
    [
        (
            [("user", "Hello"), ("user", "Hi")],
            "roles user, user, assistant: Conversation roles",
            "--join-turns",
        ),
        ([("system", "Be kind"), ("user", "Hi")], "system, user, assistant: System role not", "--fold-system"),
        ([("system", "Be kind"), ("user", "a"), ("user", "b")], "System role not", "--fold-system --join-turns makes"),
        ([("assistant", "Hello"), ("user", "Hi")], "must alternate", "leave such rows out"),
    ],
)
def test_a_row_that_is_refused_is_named_with_what_helps(tokenizer_of, before, why, remedy):
    tokenizer = tokenizer_of(STRICT)
    check(tokenizer, [row("good"), row("bad")])
    with pytest.raises(ValueError, match=f"row 'id 1': the model's chat template refuses.*{why}.*1 of 2.*{remedy}"):
        check(tokenizer, [row("good"), row("bad", *before)])


def test_a_remedy_is_one_that_helps_all_refused_rows(tokenizer_of):
    rows = [row("a", ("user", "b"), ("user", "c")), row("a", ("system", "b"), ("user", "c"))]
    with pytest.raises(ValueError, match=r"2 of 2 rows are refused.*; --fold-system --join-turns makes"):
        check(tokenizer_of(STRICT), rows)


def test_responses_that_do_not_show_are_an_error_and_few_of_them_a_warning(tokenizer_of):
    tokenizer = tokenizer_of(
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"row 'id 0': its response is not in the text.*3 of 3 rows"):
        check(tokenizer, [row("good"), row("bad"), row("", tool_calls=[{"function": {"name": "f"}}])])
    calls = row("", ("user", "b"), tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}])
    with pytest.warns(UserWarning, match=r"row 'id 1': its response is not in the text.*1 of 3 rows") as warned:
        check(tokenizer_of(TURNS), [row("good"), calls, row("bad")])
    assert len(warned) == 1


def test_the_default_template_shows_calls_of_tools(tokenizer_of):
    calls = [row("", tool_calls=[{"type": "function", "function": {"name": name}}]) for name in ("look", "stop")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(tokenizer_of(None), [*calls, row("look at that")])


def test_different_responses_that_render_alike_are_an_error_and_few_of_them_a_warning(tokenizer_of):
    thought, other = row("<think>a</think>good"), row("<think>b</think>good")
    tokenizer = tokenizer_of(NO_THOUGHTS)
    with pytest.raises(ValueError, match=r"row 'id 0': .*makes the same text of it and of another response.*2 of 3"):
        check(tokenizer, [thought, other, row("bad")])
    with pytest.warns(UserWarning, match=r"row 'id 1': .*2 of 4 rows"):
        check(tokenizer, [row("bad"), thought, other, row("fair")])
    with warnings.catch_warnings():  # the same response twice, white space alone, or another prompt: nothing is lost
        warnings.simplefilter("error")
        check(tokenizer, [thought, thought])
        check(tokenizer_of(TURNS), [row("good"), row("good "), row("good", ("user", "Why"))])
