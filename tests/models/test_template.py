"""Chat templates made ready: one date on all days, without another change of the text."""

import datetime

import pytest
import transformers.utils.chat_template_utils as transformers_templates

from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.models.backbone import load_backbone
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.template import date_of, with_date
from irm_fast.models.tokens import render

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "good answer"}]
TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
LLAMA = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}' + TURNS
)
IN_A_MACRO = (
    "{% macro head() %}{{ strftime_now('%A, %-d.%m.') }}{% endmacro %}\n {% if 1 %}{{ head() }}{% endif %}" + TURNS
)


@pytest.fixture
def clock(monkeypatch):
    """A function that sets the date that templates print."""

    def set_to(year, month, day):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(year, month, day)

        monkeypatch.setattr(transformers_templates, "datetime", Clock)

    return set_to


@pytest.fixture
def dated(tmp_path, save_tokenizer, save_llama):
    """A function that saves a model whose chat template is given."""

    def save(template):
        save_llama(tmp_path / "dated", save_tokenizer(tmp_path / "dated", template=template))
        return tmp_path / "dated"

    return save


@pytest.mark.parametrize("template", [LLAMA, IN_A_MACRO, "\n {% if 1 %}x{% endif %}\n{{ strftime_now('%Y') }}" + TURNS])
def test_a_fixed_date_changes_nothing_on_its_day_and_stays_on_others(template, dated, clock):
    _, tokenizer = load_backbone(dated(template), date="2026-01-05")
    clock(2026, 1, 5)
    fixed, tokenizer.chat_template = tokenizer.chat_template, template
    expected = render(tokenizer, MESSAGES)
    clock(2031, 11, 23)
    assert render(tokenizer, MESSAGES) != expected  # the template as it was prints the date of the day
    tokenizer.chat_template = fixed
    assert render(tokenizer, MESSAGES) == expected
    assert date_of(fixed) == "2026-01-05"


def test_a_date_is_fixed_once_and_replaced_by_one_that_is_given(clock):
    once = with_date(LLAMA)
    assert date_of(once) == datetime.date.today().isoformat()
    assert with_date(once) == once
    assert with_date(with_date(LLAMA, "2020-02-02")) == with_date(LLAMA, "2020-02-02")
    assert with_date(once, "2020-02-02") == with_date(LLAMA, "2020-02-02")


def test_a_template_without_a_date_stays_as_it_is():
    for template in (TURNS, TURNS + "{# strftime_now #}", TURNS + "{{ 'strftime_now' }}"):
        assert with_date(template, "2026-01-05") == template
        assert date_of(template) == ""


def test_a_saved_model_keeps_its_date_and_one_of_an_earlier_version_is_warned_of(dated, tmp_path, clock):
    from irm_fast.data.signals import RewardSpec

    model = ImplicitRewardModel.from_backbone(dated(LLAMA), RewardSpec("constant", ("copy",), (1,)), date="2026-01-05")
    model.save(tmp_path / "saved")
    clock(2031, 11, 23)
    again = ImplicitRewardModel.load(tmp_path / "saved")
    assert "05 Jan 2026" in render(again.tokenizer, MESSAGES)
    (tmp_path / "saved" / "chat_template.jinja").write_text(LLAMA)
    (tmp_path / "saved" / MANIFEST).unlink()  # which earlier versions did not write
    with pytest.warns(UserWarning, match="prints the date of the day.*train the model anew, or write the day"):
        ImplicitRewardModel.load(tmp_path / "saved")
