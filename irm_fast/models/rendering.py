"""What a chat template makes of the rows of a log, checked before anything expensive starts."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.data.groups import prompt_key
from irm_fast.data.messages import fold_system, join_turns
from irm_fast.data.problems import row_named
from irm_fast.models.processes import is_first
from irm_fast.models.tokens import CHUNK, Refused, render, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from irm_fast.data.messages import Messages

_MARK = "irm-fast-0f3a9c"  # a response that no other text holds
_FORMS: Mapping[str, Callable[[Messages], Messages]] = {
    "--fold-system": fold_system,
    "--join-turns": join_turns,
    "--fold-system --join-turns": lambda messages: join_turns(fold_system(messages)),
}


class RenderingCheck:
    """A check that a chat template takes rows and shows their responses, and tells different ones apart.

    Of the rows it keeps two numbers each.

    Args:
        tokenizer: The tokenizer, whose template `set_template` has made ready.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._texts, self._responses, self._hidden = array("q"), array("q"), array("q")
        self._refused: list[tuple[int, str]] = []  # the first row that is refused, and why
        self._refusals, self._forms = 0, dict(_FORMS)

    def add(self, rows: Sequence[Messages]) -> list[str]:
        """Render further rows, and return the text of each; "" where the template refuses it."""
        return [
            self._added(messages, text) for messages, text in zip(rows, rendered(self.tokenizer, rows), strict=True)
        ]

    def _added(self, messages: Messages, text: str | Refused) -> str:
        number = len(self._texts)
        if isinstance(text, Refused):
            self._refused = self._refused or [(number, str(text))]
            self._refusals += 1
            self._forms = {name: form for name, form in self._forms.items() if _takes(self.tokenizer, form(messages))}
            text = ""
        elif not _is_shown(self.tokenizer, messages, text):
            self._hidden.append(number)
        self._texts.append(hash((text, prompt_key(messages))))
        self._responses.append(hash(_response(messages)))
        return text

    def report(self, ids: Sequence[str]) -> None:
        """Say what is wrong with the rows.

        A warning counts the rows whose response the template does not show, or which it makes the same text of as of
        a row with the same prompt and another response, and names one, if they are not most.

        Args:
            ids: The ids of all N rows.

        Raises:
            ValueError: The template refuses a row, with its id and what would help; or most rows are as above.
        """
        if self._refused:
            raise ValueError(self._refusal(ids))
        hidden = np.asarray(self._hidden, np.int64)
        _report(ids, hidden, "its response is not in the text that the model's chat template makes of it")
        alike = np.setdiff1d(_alike(np.asarray(self._texts), np.asarray(self._responses)), hidden)
        _report(ids, alike, "the model's chat template makes the same text of it and of another response to its prompt")

    def check(self, ids: Sequence[str], rows: Sequence[Messages]) -> None:
        """Add all N rows, of which slices are read, and report.

        Raises:
            ValueError: As `report`.
        """
        for start in range(0, len(rows), CHUNK):
            self.add(list(rows[start : start + CHUNK]))
        self.report(ids)

    def _refusal(self, ids: Sequence[str]) -> str:
        """Say which rows a template refuses, why the first, and which form of all of them it would take."""
        [(first, why)] = self._refused
        option = next(iter(self._forms), None)
        remedy = (
            f"{option} makes them what it takes (in Python an argument of read_log, or a setting of the config)"
            if option is not None
            else "leave such rows out, or give the model's folder a chat_template.jinja that takes them"
        )
        return f"{row_named(ids[first], first)}: {why} ({self._refusals} of {len(ids)} rows are refused); {remedy}"


def _is_shown(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str) -> bool:
    """Whether the text of a conversation depends on the last turn."""
    last = messages[-1]
    content = last["content"].strip()
    if content and content in text:
        return True
    other: dict[str, Any] = {"role": last["role"], "content": _MARK if content else ""}  # and no calls of tools
    try:
        return render(tokenizer, [*messages[:-1], other]) != text
    except Refused:
        return True


def _alike(texts: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """The rows of a text and prompt that rows of another response have, too, by hashes (N,) of these."""
    order = np.sort(texts)
    rows = np.flatnonzero(np.isin(texts, order[1:][order[1:] == order[:-1]]))  # few of a log, as a rule
    group = np.unique(texts[rows], return_inverse=True)[1]
    pairs = np.unique(np.column_stack([group, responses[rows]]), axis=0)
    alike: np.ndarray = rows[np.bincount(pairs[:, 0])[group] > 1] if len(rows) else rows
    return alike


def _response(messages: Messages) -> tuple[str, str]:
    """What a response says: its text, and its calls of tools."""
    calls = messages[-1].get("tool_calls")
    return messages[-1]["content"].strip(), json.dumps(calls, sort_keys=True) if calls else ""


def _takes(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> bool:
    try:
        render(tokenizer, messages)
    except Refused:
        return False
    return True


def _report(ids: Sequence[str], wrong: np.ndarray, what: str) -> None:
    """Raise ValueError if most rows are wrong in some way, and warn if there are some."""
    if not len(wrong):
        return
    first = int(wrong[0])
    text = (
        f"{row_named(ids[first], first)}: {what} ({len(wrong)} of {len(ids)} rows are such): a reward of it says "
        "nothing of the response; leave such rows out, or put a chat_template.jinja that shows all of a response into "
        "the model's folder"
    )
    if 2 * len(wrong) > len(ids):
        raise ValueError(text)
    if is_first():
        warn_caller(text)
