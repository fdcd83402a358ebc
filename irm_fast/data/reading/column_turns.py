"""Conversations of columns: prompts and completions that are texts, or prompts that are lists of plain messages."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from irm_fast.data.messages import ROLES
from irm_fast.data.reading import column_values as check

_ASSISTANT = ROLES.index("assistant")
_FORM = ("role", "content")
_NAMES = ("prompt", "completion")


def is_messages(column: Any) -> bool:
    """Return whether a column holds lists of messages."""
    import pyarrow.types as t

    return bool(t.is_list(column.type) and t.is_struct(column.type.value_type))


def texts_of(prompt: Any, completion: Any | None) -> tuple[Any, np.ndarray]:
    """Return conversations as `texts.Conversations` holds them, and a mask of the rows that are in doubt.

    Args:
        prompt: The prompts; lists of messages may end with the completion.
        completion: The completions, or None.
    """
    import pyarrow as pa

    nothing = pa.nulls(len(prompt), pa.string())
    said = check.texts(nothing if completion is None else completion)
    if not is_messages(prompt):
        asked = check.texts(prompt)
        return pa.record_batch([asked.values, said.values], [*_NAMES]), asked.doubt | said.doubt
    return _of_messages(prompt, said)


def _of_messages(prompt: Any, said: check.Checked) -> tuple[Any, np.ndarray]:
    """Return what `texts_of` does of prompts that are lists of messages.

    Plain messages have a role of `ROLES` and a text, and nothing else; the last one is the assistant's if there is no
    completion beside it, and only then.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = len(prompt)
    fields = {field.name: number for number, field in enumerate(prompt.type.value_type)}
    entries = prompt.values.flatten()
    if not set(_FORM) <= fields.keys() or not all(pa.types.is_string(entries[fields[name]].type) for name in _FORM):
        return pa.record_batch([pa.nulls(rows, pa.string())] * 2, [*_NAMES]), np.ones(rows, bool)
    contents = entries[fields["content"]]
    roles = pc.index_in(entries[fields["role"]], pa.array(ROLES)).fill_null(-1).to_numpy(zero_copy_only=False)
    odd = (roles < 0) | ~check.is_given(contents)
    for name, number in fields.items():
        if name not in _FORM:
            odd |= check.is_given(entries[number])
    offsets = prompt.offsets.to_numpy()
    starts, ends = offsets[:-1], offsets[1:]
    odds = np.concatenate([[0], np.cumsum(odd)])
    listed = check.is_given(prompt) & (ends > starts)
    last = np.where(listed, ends - 1, 0)
    ends_so = listed & (np.append(roles, -1)[last] == _ASSISTANT)
    alone = ends_so & (ends - starts > 1) & ~said.given
    shown = np.zeros(rows, bool)
    shown[alone] = check.is_visible(contents.take(pa.array(last[alone])))
    fine = listed & (odds[ends] == odds[starts]) & (alone & shown | said.given & ~said.doubt & ~ends_so)

    # Two plain turns are texts, others are JSON
    turns = ends - starts + said.given
    plain = fine & (turns == 2) & (np.append(roles, -1)[np.where(listed, starts, 0)] == ROLES.index("user"))
    asked = contents.take(pa.array(starts, mask=~plain))
    answers = contents.take(pa.array(last, mask=~(plain & alone)))
    held = pc.if_else(pa.array(plain & ~alone), said.values, answers)
    others = np.flatnonzero(fine & ~plain)
    if len(others):
        written = _as_json(others, starts, ends, roles, contents, said)
        held = pc.replace_with_mask(held, pa.array(fine & ~plain), pa.array(written, pa.string()))
    return pa.record_batch([asked, held], [*_NAMES]), ~fine


def _as_json(
    rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, roles: np.ndarray, contents: Any, said: check.Checked
) -> list[str]:
    """Return the turns of rows as JSON."""
    texts, answers, numbers = contents.to_pylist(), said.values.to_pylist(), roles.tolist()
    written = []
    for row, start, end in zip(rows.tolist(), starts[rows].tolist(), ends[rows].tolist(), strict=True):
        turns = [{"role": ROLES[numbers[i]], "content": texts[i]} for i in range(start, end)]
        if said.given[row]:
            turns.append({"role": "assistant", "content": answers[row]})
        written.append(json.dumps(turns))
    return written
