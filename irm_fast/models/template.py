"""The chat template of a tokenizer, made ready: its text ends in EOS, and the date that it prints is fixed."""

from __future__ import annotations

import re
from datetime import date as Date
from pathlib import Path
from typing import TYPE_CHECKING

from irm_fast.common.warning import warn_caller
from irm_fast.models.tokens import Refused, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For tokenizers without a chat template. Ends in EOS, as every template must: the reward is read there.
DEFAULT_TEMPLATE = (
    "{%- if bos_token and bos_token != eos_token -%}{{ bos_token }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize + ': ' + message['content'] -}}"
    "{%- if message['tool_calls'] -%}{{- message['tool_calls'] | tojson -}}{%- endif -%}"
    "{{- '' if loop.last else '\\n\\n' -}}"
    "{%- endfor -%}{{- eos_token -}}"
)
SAMPLE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
_CLOCK = "strftime_now"  # the function of templates that gives the date
_DIRECTIVE = re.compile(r"%[-_^#]?[A-Za-z%]")
# A macro of that name comes before it. The line break that ends it is dropped, as after every block.
_FIXED = re.compile(r"{%- macro strftime_now\(format\) -%}{#- (\d{4}-\d\d-\d\d) -#}.*?{%- endmacro %}\n", re.DOTALL)


def set_template(tokenizer: PreTrainedTokenizerBase, date: str | None = None) -> None:
    """Give a tokenizer its own chat template, or the default one, changed where it has to be.

    A text ends in EOS, and a template that prints the date of the day prints one and the same on all days.

    Args:
        tokenizer: The tokenizer.
        date: The date to print, such as "2026-01-31". None or "": the one that was fixed before, or else today.

    Raises:
        ValueError: The tokenizer does not read its EOS token as one token.
    """
    tokenizer.chat_template = with_date(template_ending_in_eos(tokenizer), date)


def template_ending_in_eos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, or the default one, changed where a text would not end in EOS.

    Raises:
        ValueError: The tokenizer does not read its EOS token as one token.
    """
    own = tokenizer.get_chat_template() if tokenizer.chat_template else DEFAULT_TEMPLATE
    trimmed = "{%- filter trim -%}" + own + "{%- endfilter -%}"
    for template in (own, trimmed, trimmed + "{{- eos_token -}}"):
        tokenizer.chat_template = template
        ids = tokenizer(render(tokenizer, SAMPLE), add_special_tokens=False)["input_ids"]
        if ids and ids[-1] == tokenizer.eos_token_id:
            return template
    raise ValueError(f"the tokenizer does not read its EOS token {tokenizer.eos_token!r} as one token")


def bos_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS token that the text of a chat template begins with, or ""."""
    bos = tokenizer.bos_token
    try:
        return str(bos) if bos and render(tokenizer, SAMPLE).startswith(bos) else ""
    except Refused:  # of a template that takes no such conversation
        return ""


def with_date(template: str, date: str | None = None) -> str:
    """A chat template that prints one date on all days; it stays as it is if it prints none.

    Args:
        template: The template.
        date: As of `set_template`.

    Examples:
        >>> with_date("{{ strftime_now('%Y') }}", "2026-01-31").splitlines()[-1]
        "{{ strftime_now('%Y') }}"
    """
    if not _asks_for_the_date(template):
        return template
    day = Date.fromisoformat(date or date_of(template) or Date.today().isoformat())
    template = _FIXED.sub("", template)
    known = dict.fromkeys(_DIRECTIVE.findall(" ".join(_tokens(template, "string"))))
    shown = {directive: day.strftime(directive) for directive in known}
    replaced = "".join(f" | replace({key!r}, {value!r})" for key, value in sorted(shown.items(), reverse=True))
    macro = "{%- macro strftime_now(format) -%}{#- " + day.isoformat() + " -#}{{- format" + replaced + " -}}"
    return macro + "{%- endmacro %}\n" + template


def date_of(template: str) -> str:
    """The date that was fixed in a chat template by `with_date`, or ""."""
    found = _FIXED.search(template)
    return found[1] if found else ""


def warn_of_dates(tokenizer: PreTrainedTokenizerBase, directory: str | Path) -> None:
    """Warn if the chat template of a saved model prints the date of the day, as earlier versions saved it."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    if _asks_for_the_date(template) and not date_of(template):
        warn_caller(
            f"{directory}: the chat template prints the date of the day, so that rewards change from day to day; train "
            f"the model anew, or write the day of its training in the place of {_CLOCK}(...) in chat_template.jinja"
        )


def _asks_for_the_date(template: str) -> bool:
    return _CLOCK in template and _CLOCK in _tokens(template, "name")


def _tokens(template: str, kind: str) -> list[str]:
    """The tokens of a kind in a template."""
    from jinja2 import Environment

    return [value for _, found, value in Environment().lex(template) if found == kind]
