"""Conversations whose answers users rate: of Open WebUI, LibreChat and ShareGPT.

Each record gives a row for every answer, with the turns before it as the prompt. An answer that nobody rated, in a
layout that holds all answers, is one that both thumbs were silent about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from irm_fast.data.importing.thumbs import thumb_of, thumb_signals
from irm_fast.data.messages import OTHER_ROLES
from irm_fast.data.problems import FieldError, shown

Record = Mapping[str, Any]
Row = dict[str, Any]


def held(record: object, *path: str) -> Any:
    """Return what a path of names leads to in objects within each other, or None."""
    for name in path:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


def given(**fields: object) -> Row:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


# Open WebUI


def is_open_webui(record: Record) -> bool:
    """Return whether a record is a feedback, or a chat, as the administration of Open WebUI exports them."""
    if isinstance(held(record, "chat", "history", "messages"), Mapping):
        return True
    return isinstance(record.get("data"), Mapping) and "meta" in record and "snapshot" in record


def open_webui_rows(record: Record, name: str) -> Iterator[Row]:
    """Yield the row of a feedback, or the rows of all answers of a chat."""
    if "snapshot" not in record:
        yield from _chat_rows(record, name)
        return
    data, meta = record["data"], record["meta"]
    liked = thumb_of(data.get("rating"), "data.rating")
    if liked is None:  # a comment alone
        return
    messages = held(record, "snapshot", "chat", "chat", "history", "messages")
    if not isinstance(messages, Mapping):
        raise FieldError("snapshot", "holds no chat; expected snapshot.chat.chat.history.messages, of a full export")
    chain = _chain(messages, str(held(meta, "message_id")), "parentId")
    if not chain:
        raise FieldError("meta.message_id", f"got {shown(held(meta, 'message_id'))}; expected a message of the chat")
    yield given(
        id=record.get("id", name),
        prompt=[_turn(message) for message in chain[:-1]],
        completion=[_turn(chain[-1])],
        feedback=thumb_signals(liked),
        user_id=record.get("user_id"),
        session_id=held(meta, "chat_id"),
        timestamp=chain[-1].get("timestamp", record.get("created_at")),
        model=data.get("model_id"),
    )


def _chat_rows(record: Record, name: str) -> Iterator[Row]:
    messages = held(record, "chat", "history", "messages")
    for key, message in messages.items():
        if message.get("role") == "assistant" and message.get("content"):
            chain = _chain(messages, key, "parentId")
            yield given(
                id=f"{record.get('id', name)}.{key}",
                prompt=[_turn(entry) for entry in chain[:-1]],
                completion=[_turn(message)],
                feedback=thumb_signals(thumb_of(held(message, "annotation", "rating"), "annotation.rating")),
                user_id=record.get("user_id"),
                session_id=record.get("id"),
                timestamp=message.get("timestamp"),
                model=message.get("model"),
            )


def _chain(messages: Mapping[str, Record], key: str | None, parent: str) -> list[Record]:
    """Return a message and all before it, the first one first."""
    chain, seen = list[Record](), set[str]()
    while key is not None and key in messages and key not in seen:
        seen.add(key)
        chain.append(messages[key])
        key = messages[key].get(parent)
    return chain[::-1]


def _turn(message: Record) -> Row:
    """Return a message with its role and its text, as interfaces name them."""
    role = message.get("role", message.get("from"))
    return {"role": role, "content": next((message[k] for k in ("content", "value", "text") if message.get(k)), "")}


# LibreChat


def is_librechat(record: Record) -> bool:
    """Return whether a record is a conversation as LibreChat exports it."""
    messages = record.get("messages")
    return isinstance(messages, Sequence) and any("messageId" in m for m in messages if isinstance(m, Mapping))


def librechat_rows(record: Record, name: str) -> Iterator[Row]:
    """Yield a row for each answer of a conversation."""
    messages = {str(message.get("messageId")): message for message in _with_children(record["messages"])}
    for key, message in messages.items():
        if message.get("isCreatedByUser") or not _text_of_librechat(message):
            continue
        chain = _chain(messages, key, "parentMessageId")
        turns = [
            {"role": "user" if m.get("isCreatedByUser") else "assistant", "content": _text_of_librechat(m)}
            for m in chain
        ]
        yield given(
            id=key,
            prompt=turns[:-1],
            completion=turns[-1:],
            feedback=thumb_signals(thumb_of(held(message, "feedback", "rating"), "feedback.rating")),
            user_id=message.get("user", record.get("user")),
            session_id=record.get("conversationId"),
            timestamp=message.get("createdAt"),
            model=message.get("model"),
        )


def _with_children(messages: Sequence[Record]) -> Iterator[Record]:
    """Yield messages and those within them, as a recursive export has them."""
    for message in messages:
        yield message
        yield from _with_children(message.get("children") or ())


def _text_of_librechat(message: Record) -> str:
    """Return the text of a message, which may stand in parts."""
    if message.get("text"):
        return str(message["text"])
    texts = []
    for part in message.get("content") or ():
        text = part.get("text") if isinstance(part, Mapping) else None
        texts.append(text.get("value") if isinstance(text, Mapping) else text)
    return "\n".join(text for text in texts if isinstance(text, str))


# ShareGPT


def is_sharegpt(record: Record) -> bool:
    """Return whether a record is a conversation in the layout of ShareGPT, or of messages that are rated one by one."""
    if "feedback" in record or "completion" in record:
        return False
    turns = record.get("conversations", record.get("conversation"))
    if isinstance(turns, list):
        return bool(turns) and all(isinstance(t, Mapping) and ("from" in t or "role" in t) for t in turns)
    turns = record.get("messages")
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and "feedback" in turn for turn in turns)


def sharegpt_rows(record: Record, name: str) -> Iterator[Row]:
    """Yield a row for each answer of a conversation."""
    turns = next(record[key] for key in ("conversations", "conversation", "messages") if key in record)
    name = str(record.get("id", name))
    plain = [{key: value for key, value in turn.items() if key not in _RATINGS} for turn in turns]
    if isinstance(system := record.get("system"), str) and system.strip():
        plain, turns = [{"role": "system", "content": system}, *plain], [{}, *turns]
    for number, turn in enumerate(turns):
        role = str(turn.get("from", turn.get("role"))).lower()
        if OTHER_ROLES.get(role, role) != "assistant" or not number:
            continue
        yield given(
            id=f"{name}.{number}",
            prompt=plain[:number],
            completion=plain[number : number + 1],
            feedback=thumb_signals(_rated(turn)),
            user_id=record.get("user_id"),
            session_id=record.get("session_id", name),
            timestamp=turn.get("timestamp", record.get("timestamp")),
            model=turn.get("model", record.get("model")),
        )


_RATINGS = ("feedback", "rating", "annotation")


def _rated(turn: Record) -> bool | None:
    """Return whether a turn is rated up or down, None if it is not rated."""
    for name in _RATINGS:
        value = turn.get(name)
        if isinstance(value, Mapping):
            value = value.get("rating", value.get("value"))
        if (liked := thumb_of(value, name)) is not None:
            return liked
    return None
