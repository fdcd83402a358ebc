"""What a chat template makes of the rows of a log, checked before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from irm_fast.data.messages import fold_system, join_turns
from irm_fast.data.warning import warn_caller
from irm_fast.models.processes import is_first
from irm_fast.models.tokens import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from irm_fast.data.messages import Messages

_MARK = "irm-fast-0f3a9c"  # a response that no other text holds
_FORMS: Mapping[str, Callable[[Messages], Messages]] = {
    "--fold-system": fold_system,
    "--join-turns": join_turns,
    "--fold-system --join-turns": lambda messages: join_turns(fold_system(messages)),
}


def check_rendering(tokenizer: PreTrainedTokenizerBase, ids: Sequence[str], rows: Sequence[Messages]) -> None:
    """Check that a chat template takes all rows and shows their responses, and tells different ones apart.

    A warning counts the rows whose response it does not show, or which it makes the same text of as of a row with the
    same prompt and another response, and names one, if they are not most.

    Args:
        tokenizer: The tokenizer, whose template `set_template` has made ready.
        ids: The ids of N rows.
        rows: Their conversations.

    Raises:
        ValueError: The template refuses a row, with its id and what would help; or most rows are as above.
    """
    hashes, refused, hidden = np.empty(len(rows), np.int64), dict[int, str](), list[int]()
    for number, messages in enumerate(rows):
        try:
            text = render(tokenizer, messages)
        except ValueError as error:
            refused[number] = str(error)
            continue
        hashes[number] = hash(text)
        if not _is_shown(tokenizer, messages, text):
            hidden.append(number)
    if refused:
        raise ValueError(_refusal(tokenizer, ids, rows, refused))
    _report(ids, hidden, "its response is not in the text that the model's chat template makes of it")
    alike = np.setdiff1d(_alike(hashes, rows), hidden).tolist()
    _report(ids, alike, "the model's chat template makes the same text of it and of another response to its prompt")


def _is_shown(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str) -> bool:
    """Whether the text of a conversation depends on the last turn."""
    last = messages[-1]
    content = last["content"].strip()
    if content and content in text:
        return True
    other: dict[str, Any] = {"role": last["role"], "content": _MARK if content else ""}  # and no calls of tools
    try:
        return render(tokenizer, [*messages[:-1], other]) != text
    except ValueError:
        return True


def _alike(hashes: np.ndarray, rows: Sequence[Messages]) -> list[int]:
    """The rows with the same text, by its hash, as an earlier row of another response to the same prompt, and that."""
    order = np.argsort(hashes, kind="stable")
    found = []
    for one, other in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        if hashes[one] == hashes[other] and rows[one][:-1] == rows[other][:-1]:
            found += [one, other] if _response(rows[one]) != _response(rows[other]) else []
    return found


def _response(messages: Messages) -> tuple[str, object]:
    return messages[-1]["content"].strip(), messages[-1].get("tool_calls")


def _refusal(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[str], rows: Sequence[Messages], refused: Mapping[int, str]
) -> str:
    """Say which rows a template refuses, why the first, and which form of all of them it would take."""
    first, why = next(iter(refused.items()))
    forms = (option for option, form in _FORMS.items() if all(_takes(tokenizer, form(rows[row])) for row in refused))
    option = next(forms, None)
    remedy = (
        f"{option} makes them what it takes (in Python an argument of read_log, or a setting of the config)"
        if option is not None
        else "leave such rows out, or give the model's folder a chat_template.jinja that takes them"
    )
    return f"row {ids[first]!r}: {why} ({len(refused)} of {len(rows)} rows are refused); {remedy}"


def _takes(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> bool:
    try:
        render(tokenizer, messages)
    except ValueError:
        return False
    return True


def _report(ids: Sequence[str], wrong: Sequence[int], what: str) -> None:
    """Raise ValueError if most rows are wrong in some way, and warn if there are some."""
    if not wrong:
        return
    text = (
        f"row {ids[wrong[0]]!r}: {what} ({len(wrong)} of {len(ids)} rows are such): a reward of it says nothing of the "
        "response; leave such rows out, or put a chat_template.jinja that shows all of a response into the model's "
        "folder"
    )
    if 2 * len(wrong) > len(ids):
        raise ValueError(text)
    if is_first():
        warn_caller(text)
