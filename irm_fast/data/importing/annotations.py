"""Answers that people labelled: of Argilla, Label Studio, Open Assistant and TRL's KTO. Labels are no actions of users.

Two kinds of labels are a `preference`; stars and other numbers a `rating`, which `irm-fast evaluate` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from irm_fast.data.importing.conversations import Record, Row, given, held
from irm_fast.data.importing.thumbs import is_liked, thumb_signals
from irm_fast.data.log_rows import ACTIONS
from irm_fast.data.problems import FieldError
from irm_fast.data.rows import TEXT_FIELDS, plain_name

_OTHERS = ("feedback", "preference", "rating")  # which say themselves what users thought
PROMPT, COMPLETION = TEXT_FIELDS["prompt"], (*TEXT_FIELDS["completion"], "text")


def is_kto(record: Record) -> bool:
    """Return whether a record is a response that TRL's KTO takes: with a label that is true or false."""
    if not isinstance(record.get("label"), bool) or "prompt" not in record:
        return False
    return not any(name in _OTHERS or plain_name(name) in ACTIONS for name in record)


def kto_rows(record: Record, name: str) -> Iterator[Row]:
    """Yield the row of a response, its label as thumbs."""
    yield {**{k: v for k, v in record.items() if k != "label"}, "feedback": thumb_signals(record["label"])}


def is_label_studio(record: Record) -> bool:
    """Return whether a record is a task of Label Studio with its annotations."""
    annotations = record.get("annotations")
    return isinstance(record.get("data"), Mapping) and isinstance(annotations, list)


def label_studio_rows(record: Record, name: str) -> Iterator[Row]:
    """Yield the row of a task, if it is annotated."""
    values = []
    for annotation in record["annotations"]:
        if held(annotation, "was_cancelled"):
            continue
        for result in held(annotation, "result") or ():
            value = held(result, "value") or {}
            values += [*(value.get("choices") or ()), *([value["rating"]] if "rating" in value else ())]
    yield from _labelled(record["data"], values, f"{record.get('id', name)}", record.get("created_at"))


def is_argilla(record: Record) -> bool:
    """Return whether a record is one of Argilla, with its responses."""
    return isinstance(record.get("fields"), Mapping) and isinstance(record.get("responses"), (Mapping, list))


def argilla_rows(record: Record, name: str) -> Iterator[Row]:
    """Yield the row of a record, if it has responses that are submitted."""
    responses = record["responses"]
    answers: list[Any]
    if isinstance(responses, Mapping):  # by question, as version 2 has them
        answers = [answer for entries in responses.values() for answer in entries or ()]
    else:
        answers = [
            {**answer, "status": response.get("status")}
            for response in responses
            for answer in (response.get("values") or {}).values()
        ]
    values = [held(a, "value") for a in answers if held(a, "status") in (None, "submitted")]
    yield from _labelled(record["fields"], values, str(record.get("id") or name), record.get("inserted_at"))


def _labelled(fields: Record, values: list[Any], name: str, time: object) -> Iterator[Row]:
    """Yield the row of an answer, from the values that people gave it; nothing if there are none."""
    texts = {kind: next((fields[n] for n in names if n in fields), None) for kind, names in _TEXTS.items()}
    for kind, text in texts.items():
        if text is None:
            raise FieldError(f"{kind}", f"missing among {', '.join(fields)}; expected one of {', '.join(_TEXTS[kind])}")
    sides = [liked for value in values if (liked := is_liked(value, zero=False)) is not None]
    stars = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if any(star not in (0, 1, -1) for star in stars):
        yield given(id=name, **texts, rating=sum(stars) / len(stars), timestamp=time)
    elif sides and 2 * sum(sides) != len(sides):  # of as many for as against, nothing follows
        yield given(id=name, **texts, preference=int(2 * sum(sides) > len(sides)), timestamp=time)


# Open Assistant


def is_oasst(record: Record) -> bool:
    """Return whether a record is a tree of replies of Open Assistant."""
    return "message_tree_id" in record and isinstance(held(record, "prompt", "replies"), list)


def oasst_rows(record: Record, name: str) -> Iterator[Row]:
    """Yield a row for each answer of a tree that was labelled: by more thumbs, or else by its mean quality."""
    yield from _replies(record["prompt"], [], str(record["message_tree_id"]))


def _replies(message: Record, before: list[Row], tree: str) -> Iterator[Row]:
    turns = [*before, {"role": message.get("role"), "content": message.get("text", "")}]
    side = _side(message)
    if message.get("role") == "assistant" and before and not message.get("deleted") and side:
        yield given(
            id=message.get("message_id"),
            prompt=before,
            completion=turns[-1:],
            preference=int(side > 0),
            session_id=tree,
            timestamp=message.get("created_date"),
            model=message.get("model_name") or None,
        )
    for reply in message.get("replies") or ():
        yield from _replies(reply, turns, tree)


def _side(message: Record) -> float:
    """Return a number above 0 if a message is liked by its labels, below if it is not, 0 if nothing follows."""
    emojis = message.get("emojis") or {}
    votes = float((emojis.get("+1") or 0) - (emojis.get("-1") or 0))
    quality = held(message, "labels", "quality", "value")
    return votes or (float(quality) - 0.5 if quality is not None else 0.0)


_TEXTS = {"prompt": PROMPT, "completion": COMPLETION}
