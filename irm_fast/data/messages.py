"""Conversations: parsing messages as products and interfaces write them, into the form that chat templates read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from irm_fast.data.problems import FieldError, Problems, shown
from irm_fast.data.reading.json_rows import parse_json

Messages = list[dict[str, Any]]  # role and content, which is text; perhaps some of `KEPT`

ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")  # templates may show them
_JSON = re.compile(r"\s*[\[{]")
_ROLE, _CONTENT = ("role", "from"), ("content", "value", "text")


def text_of(value: object, field: str) -> str:
    """Parse a text that can be encoded."""
    if not isinstance(value, str):
        raise FieldError(field, f"got {shown(value)}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FieldError(field, f"got {shown(value)}; expected text without a lone surrogate") from None
    return value


def as_json(value: object) -> object:
    """Return what a text holds that is a list or an object in JSON, as warehouses write them; else the value itself."""
    if not isinstance(value, str) or not _JSON.match(value):
        return value
    try:
        return parse_json(value)
    except FieldError:
        return value


def prompt_of(value: object, field: str) -> Messages:
    """Parse a prompt: a text of the user, or a list of messages, also as JSON."""
    if not isinstance(value, str):
        return messages_of(value, field)
    if not value.strip():
        raise FieldError(field, "empty; expected the text that the response answers")
    held = as_json(value)
    if held is not value and is_messages(held):
        return messages_of(held, field)
    return [{"role": "user", "content": text_of(value, field)}]


def completion_of(value: object, field: str) -> Messages:
    """Parse a completion: a text of the assistant, or messages that end with the assistant's turn, also as JSON."""
    held = as_json(value)
    if isinstance(value, str) and (held is value or not is_messages(held)):
        turns = [{"role": "assistant", "content": text_of(value, field)}]
    else:
        turns = messages_of(held, field)
    if turns[-1]["role"] != "assistant" or any(turn["role"] in ("system", "user") for turn in turns):
        raise FieldError(field, "expected turns of the assistant (and tools) only, the assistant's last")
    if not says_something(turns[-1]):
        raise FieldError(field, "empty; expected the text of the response")
    return turns


def says_something(turn: Mapping[str, Any]) -> bool:
    """Return whether a turn has text, or calls a tool."""
    return bool(turn["content"].strip() or turn.get("tool_calls"))


def is_messages(value: object) -> bool:
    """Return whether a value is meant as one message or a list of them."""
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(isinstance(turn, dict) and any(name in turn for name in _ROLE) for turn in turns)


def messages_of(value: object, field: str) -> Messages:
    """Parse a list of messages, or one."""
    value = [value] if isinstance(value, dict) and is_messages(value) else value
    if not isinstance(value, list) or not value:
        raise FieldError(field, f"got {shown(value)}; expected text or a list of messages")
    return [_message_of(message, f"{field}[{i}]") for i, message in enumerate(value)]


def _message_of(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError(field, f"got {shown(value)}; expected an object with role and content")
    role = next((value[name] for name in _ROLE if value.get(name) is not None), None)
    role = OTHER_ROLES.get(role.lower(), role.lower()) if isinstance(role, str) else role
    if role not in ROLES:
        raise FieldError(f"{field}.role", f"got {shown(role)}; expected one of {', '.join((*ROLES, *OTHER_ROLES))}")
    name = next((name for name in _CONTENT if value.get(name) is not None), "content")
    turn: dict[str, Any] = {"role": role, "content": _content_of(value.get(name), f"{field}.{name}", value)}
    for key in KEPT:
        if value.get(key) not in (None, "", []):
            turn[key] = _PARSERS.get(key, text_of)(value[key], f"{field}.{key}")
    return turn


def _content_of(value: object, field: str, message: Mapping[str, Any]) -> str:
    """Parse the content of a message: text, or parts that are texts; none beside calls of tools."""
    if value is None and message.get("tool_calls"):
        return ""
    if isinstance(value, list):
        return "\n".join(text for i, part in enumerate(value) if (text := _part_of(part, f"{field}[{i}]")))
    return text_of(value, field)


def _part_of(value: object, field: str) -> str:
    if isinstance(value, dict):
        kind = value.get("type", "text")
        if isinstance(text := value.get("text", value.get("refusal")), str):
            return text_of(text, field)
        raise FieldError(
            field, f"got a part of the kind {shown(kind)}; expected text: the language model reads no other"
        )
    return text_of(value, field)


def _calls_of(value: object, field: str) -> list[Any]:
    """Parse the calls of tools; arguments that are JSON become objects, as templates expect them."""
    if not isinstance(value, list):
        raise FieldError(field, f"got {shown(value)}; expected a list of calls")
    calls = []
    for call in value:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(arguments := as_json(function.get("arguments")), dict):
            call = {**call, "function": {**function, "arguments": arguments}}
        calls.append(call)
    return calls


_PARSERS: dict[str, Callable[[object, str], Any]] = {"tool_calls": _calls_of}


def note_unread(value: object, problems: Problems) -> None:
    """Note the fields of messages that are not read."""
    for turn in value if isinstance(value, list) else ():
        for key, entry in turn.items() if isinstance(turn, dict) else ():
            if entry is not None and key not in (*_ROLE, *_CONTENT, *KEPT):
                problems.ignored[f"messages: {key}"] += 1


def fold_system(messages: Messages) -> Messages:
    """Return a conversation whose system turn stands at the beginning of the first user turn."""
    if not messages or messages[0]["role"] != "system":
        return messages
    first, *rest = messages
    if not rest or rest[0]["role"] != "user":
        return [{**first, "role": "user"}, *rest]
    return [{**rest[0], "content": f"{first['content']}\n\n{rest[0]['content']}".strip()}, *rest[1:]]


def join_turns(messages: Messages) -> Messages:
    """Return a conversation in which neighbouring turns of one speaker are one turn."""
    joined: Messages = []
    for turn in messages:
        if joined and joined[-1]["role"] == turn["role"] and turn["role"] != "tool":
            last = joined.pop()
            turn = {**last, **turn, "content": f"{last['content']}\n\n{turn['content']}".strip()}
        joined.append(turn)
    return joined
