"""The conversation in what tracing tools keep of a call: its inputs and its outputs, of whatever shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irm_fast.data.messages import OTHER_ROLES, ROLES, as_json

_INSIDE = (  # fields that hold messages or texts, the likeliest first
    "messages", "chat_history", "generations", "choices", "message", "kwargs", "data",
    "input", "inputs", "question", "query", "prompt", "user_input", "output", "outputs", "answer", "response", "result",
    "completion", "generation", "content", "text", "value",
)  # fmt: skip
_LANGCHAIN = {
    "human": "user", "humanmessage": "user", "ai": "assistant", "aimessage": "assistant", "aimessagechunk": "assistant",
    "system": "system", "systemmessage": "system", "tool": "tool", "toolmessage": "tool", "function": "tool",
}  # fmt: skip
DEPTH = 12


def messages_in(value: object, role: str, depth: int = 0) -> list[dict[str, Any]]:
    """Return the messages that a value holds, none if it holds none.

    Args:
        value: A text; messages; or an object or a list that holds them, such as `{"messages": [...]}`, the
            generations of LangChain or the choices of OpenAI; all of it also as text of JSON.
        role: The role of a text without one, "user" or "assistant".
        depth: How deep the value lies within another.

    Examples:
        >>> messages_in({"question": "Hi"}, "user")
        [{'role': 'user', 'content': 'Hi'}]
        >>> messages_in('{"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}', "assistant")
        [{'role': 'assistant', 'content': 'Hello'}]
    """
    value = as_json(value)
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value.strip() else []
    if depth > DEPTH:
        return []
    if isinstance(value, list):
        turns = [_message(entry) for entry in value]
        if value and all(turn is not None for turn in turns):
            return [turn for turn in turns if turn is not None]
        if all(isinstance(entry, Mapping) and isinstance(entry.get("text"), str) for entry in value) and len(value) > 1:
            return messages_in("\n".join(entry["text"] for entry in value), role, depth + 1)
        return messages_in(value[0], role, depth + 1) if value else []
    if not isinstance(value, Mapping):
        return []
    if (turn := _message(value)) is not None:
        return [turn]
    for name in _INSIDE:
        if name in value and (found := messages_in(value[name], role, depth + 1)):
            return found
    alone = [entry for entry in value.values() if isinstance(entry, str) and entry.strip()]
    return [{"role": role, "content": alone[0]}] if len(alone) == 1 == len(value) else []


def _message(value: object) -> dict[str, Any] | None:
    """Return a message, as OpenAI or LangChain write one, or None if the value is none."""
    if not isinstance(value, Mapping):
        return None
    kwargs = value.get("kwargs")
    if isinstance(kwargs, Mapping) and isinstance(value.get("id"), list):  # LangChain's serialisation
        kind = _LANGCHAIN.get(str(value["id"][-1]).lower())
        return None if kind is None else _turn(kind, kwargs)
    if isinstance(value.get("message"), Mapping) and "role" in value["message"]:
        return _message(value["message"])
    if "message.role" in value:  # as OpenInference flattens it
        value = {name.removeprefix("message."): entry for name, entry in value.items()}
    role = value.get("role", value.get("type") if "content" in value else None)
    role = str(role).lower()
    role = _LANGCHAIN.get(role, OTHER_ROLES.get(role, role))
    return _turn(role, value) if role in ROLES else None


def _turn(role: str, value: Mapping[str, Any]) -> dict[str, Any]:
    content = value.get("content", value.get("parts"))
    turn = {"role": role, "content": content if content is not None else ""}
    return turn | {name: value[name] for name in ("tool_calls", "tool_call_id", "name") if value.get(name)}


def conversation(inputs: object, outputs: object) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Return the prompt and the completion of a call, or None if there is no text of either.

    Outputs that begin with the inputs, as graphs keep them, hold the completion at their end.
    """
    prompt, answer = messages_in(inputs, "user"), messages_in(outputs, "assistant")
    while prompt and prompt[-1]["role"] == "assistant":  # the answer itself, in a log of whole conversations
        prompt = prompt[:-1]
    start = len(answer)
    while start and answer[start - 1]["role"] in ("assistant", "tool"):
        start -= 1
    answer = answer[start:]
    while answer and answer[-1]["role"] == "tool":
        answer = answer[:-1]
    return (prompt, answer) if prompt and answer and (answer[-1]["content"] or "tool_calls" in answer[-1]) else None
