"""A chat template is a program that may come from a stranger: what it takes has limits, what it says is a line."""

import os
import time

import pytest

from irm_fast.models import tokens
from irm_fast.models.backbone import ready_tokenizer
from irm_fast.models.rendering import RenderingCheck
from irm_fast.models.template import set_template
from irm_fast.models.tokens import Refused, encode, render

ROW = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
BEYOND = {
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "endless in C": "{{ 10 ** (10 ** 9) }}",
    "exponential": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "memory": "{{ ('a' * 1000000000) * 10 }}",
    "memory by doubling": "{% set t = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set t.x = t.x ~ t.x %}"
    "{% endfor %}{{ t.x }}",
    "memory of a list": "{% set t = namespace(x=[1]) %}{% for i in range(40) %}{% set t.x = t.x + t.x %}{% endfor %}",
    "memory of a format": "{{ '%1999999999d' % 1 }}{{ '%1999999999d' % 1 }}",
    "length": "{{ 'a' * 20000000 }}{{ eos_token }}",
}
REFUSED = {
    "division": "{{ 1 / 0 }}",
    "type": "{{ messages + 1 }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "syntax": "{% if %}",
    "attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "undefined": "{{ nothing.at.all }}",
    "raised": "{{ raise_exception('only\\n\\x1b[2Jsystem') }}",
    "encoding": "{{ messages[0]['content'].encode('no such') }}",
}


def tokenizer_with(folder, template, monkeypatch, seconds=0.5):
    monkeypatch.setattr(tokens, "RENDER_SECONDS", seconds)
    (folder / "chat_template.jinja").write_text(template)


@pytest.fixture
def folder(tmp_path, save_tokenizer, save_llama):
    save_llama(tmp_path, save_tokenizer(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", BEYOND)
def test_a_template_beyond_its_limits_is_refused_when_the_model_is_read(folder, monkeypatch, kind):
    tokenizer_with(folder, BEYOND[kind], monkeypatch)
    started = time.process_time()
    with pytest.raises(ValueError, match=r"chat template (takes more than|makes .* characters)") as refused:
        ready_tokenizer(folder)
    assert time.process_time() - started < 30 and "\n" not in str(refused.value)
    assert not isinstance(refused.value, Refused)  # no row is at fault


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_template_does_wrong_is_said_in_a_line(folder, monkeypatch, kind):
    monkeypatch.chdir(folder)
    tokenizer_with(folder, REFUSED[kind], monkeypatch)
    with pytest.raises(ValueError, match=r"the model's chat template refuses the roles user, assistant: .") as refused:
        ready_tokenizer(folder)
    assert "\n" not in str(refused.value) and "pwned" not in os.listdir(folder)


def test_a_template_that_hangs_on_some_rows_stops_at_the_first(folder, monkeypatch):
    slow = "{% if messages|length > 2 %}" + BEYOND["endless"] + "{% endif %}"
    tokenizer_with(folder, slow + "{{ messages[-1]['content'] }}{{ eos_token }}", monkeypatch)
    tokenizer = ready_tokenizer(folder)
    rows = [ROW] * 200 + [ROW + ROW] * 200
    for work in (lambda: RenderingCheck(tokenizer).add(rows), lambda: encode(tokenizer, rows, 64)):
        started = time.process_time()
        with pytest.raises(ValueError, match=r"takes more than 0.5 s"):
            work()
        assert time.process_time() - started < 20


def test_texts_are_the_same_as_by_transformers(folder):
    tokenizer = ready_tokenizer(folder)
    set_template(tokenizer)
    rows = [[{"role": "user", "content": f"{i}"}, *ROW[1:]] for i in range(3 * tokens.TOGETHER + 1)]
    expected = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    assert [*tokens.rendered(tokenizer, rows)] == expected == [render(tokenizer, row) for row in rows]


def test_a_redacted_refusal_shows_nothing_that_the_template_says(folder, monkeypatch):
    tokenizer_with(folder, "{{ raise_exception(messages[0]['content']) }}", monkeypatch)
    monkeypatch.setenv("IRM_FAST_REDACT", "1")
    with pytest.raises(ValueError, match=r"refuses the roles user, assistant: TemplateError$"):
        ready_tokenizer(folder)


def test_conversations_that_take_too_much_together_are_rendered_one_by_one(folder, monkeypatch):
    """None of them takes more than a template may take for one."""
    tokenizer_with(folder, "{{ messages[-1]['content'] }}{{ eos_token }}", monkeypatch)
    tokenizer = ready_tokenizer(folder)
    rows = [[{"role": "user", "content": f"{i}"}, *ROW[1:]] for i in range(tokens.TOGETHER)]
    expected, text, times = [render(tokenizer, row) for row in rows], tokens._text, []

    def busy(*args):
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        times.append(until)
        return text(*args)

    monkeypatch.setattr(tokens, "_text", busy)
    assert [*tokens.rendered(tokenizer, rows)] == expected
    assert len(times) > tokens.TOGETHER, "the test needs rows that take too much together"
