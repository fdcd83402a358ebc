"""What tracing tools export: spans of calls, and scores that users gave, in files of their own or among other events.

A reader of a product takes a record apart: a `Span` that may be the answer of its trace, an `Action` of a user, or why
it is neither. Each trace is one impression, its answer the span of the highest rank, of these the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from irm_fast.data.importing.conversations import given, held
from irm_fast.data.importing.texts import conversation
from irm_fast.data.importing.thumbs import DOWN, UP, is_liked
from irm_fast.data.messages import as_json
from irm_fast.data.rows import plain_name
from irm_fast.data.times import time_of

Record = Mapping[str, Any]


class Span(NamedTuple):
    """A call, which may be the answer that a user saw.

    Attributes:
        key: Its name.
        trace: The name of its trace.
        rank: The greater the likelier it is the answer; 0: it is none.
        time: When it began, in seconds since 1970.
        row: The row of a log, without feedback.
    """

    key: str
    trace: str
    rank: int
    time: float | None
    row: dict[str, Any]


class Action(NamedTuple):
    """What a user did.

    Attributes:
        key: The name of the span, or None.
        trace: The name of the trace, or None.
        signal: The name of the action.
        time: When, in seconds since 1970, or None.
    """

    key: str | None
    trace: str | None
    signal: str
    time: float | None


_RATINGS = {  # names of scores, without separators, that are thumbs
    "feedback", "userfeedback", "userrating", "userscore", "rating", "thumbs", "thumb", "thumbsupdown", "userthumbs",
    "helpful", "helpfulness", "like", "liked", "satisfaction", "usersatisfaction", "quality", "score", "vote",
}  # fmt: skip


def signal_of(name: str, values: tuple[object, ...]) -> str | None:
    """Return the signal that a score is, None if it is that of no action.

    Args:
        name: The name of the score.
        values: What it says, the first that says something counts: 1 and 0, true and false, "thumbs_up", 0.7.

    Returns:
        thumbs_up or thumbs_down of a rating; of another score that is 1 or true, its name.

    Examples:
        >>> signal_of("user-feedback", (0,)), signal_of("copied", (1,)), signal_of("copied", (0,))
        ('thumbs_down', 'copied', None)
    """
    liked = next((side for value in values if (side := is_liked(value, zero=False)) is not None), None)
    plain = plain_name(name)
    if liked is None:
        return None
    if plain in _RATINGS:
        return UP if liked else DOWN
    if plain in ("thumbsup", "thumbsdown"):
        return (UP if plain == "thumbsup" else DOWN) if liked else None
    return name if liked else None


def _any(record: Record, *names: str) -> Any:
    """Return the first field that is given, by any of its names."""
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _time(value: object) -> float | None:
    return None if value is None else time_of(value, "timestamp")


def _score(
    record: Record, name: object, values: tuple[object, ...], key: object, trace: object, time: object, source: object
) -> Action | str:
    """Return the action of a score, or why it is none."""
    if str(source).lower() in ("eval", "model", "llm", "code", "auto_eval"):
        return "scores that a program gave"
    if key is None and trace is None:
        return "scores that name neither a trace nor a call"
    if not isinstance(name, str) or not name.strip():
        return "scores without a name"
    if (signal := signal_of(name, values)) is None:
        return f"scores {name!r} that are no action, such as numbers between 0 and 1, and 0 where nothing happened"
    return Action(_text(key), _text(trace), signal, _time(time))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _span(key: object, trace: object, rank: int, time: object, inputs: object, outputs: object, **more: object) -> Span:
    """Return a span; it is no answer if it holds no conversation."""
    found, began = conversation(inputs, outputs), _time(time)
    row = given(**more)
    if found is not None:
        row |= {"prompt": found[0], "completion": found[1]}
    return Span(str(key), str(trace if trace is not None else key), rank if found else 0, began, row)


def langfuse(record: Record) -> Span | Action | str:
    """Read a trace, an observation or a score of Langfuse, of the API, the interface or a blob storage."""
    kind = str(_any(record, "type") or "").upper()
    trace = _any(record, "trace_id", "traceId")
    said = _any(record, "string_value", "stringValue"), record.get("value")
    if "name" in record and not {"input", "output"} & set(record) and any(value is not None for value in said):
        key = _any(record, "observation_id", "observationId")
        time = _any(record, "timestamp", "created_at", "createdAt")
        return _score(record, record["name"], said, key, trace, time, record.get("source"))
    if record.get("id") is None or not ({"input", "output"} & set(record) or kind):
        return "records that are no trace, observation or score"
    own = trace is None  # a trace itself
    parent = _any(record, "parent_observation_id", "parentObservationId")
    rank = 3 if own else 2 if kind == "GENERATION" else 1 if parent is None else 0
    return _span(
        record["id"], trace, rank, _any(record, "timestamp", "start_time", "startTime", "created_at", "createdAt"),
        record.get("input"), record.get("output"),
        user_id=_any(record, "user_id", "userId"),
        session_id=_any(record, "session_id", "sessionId"),
        model=_any(record, "model", "provided_model_name", "providedModelName", "model_id"),
        version=_any(record, "release", "version"),
    )  # fmt: skip


def langsmith(record: Record) -> Span | Action | str:
    """Read a run or a feedback of LangSmith. Its session_id is a project, no session of a user."""
    if "run_id" in record and "key" in record:
        source = held(as_json(record.get("feedback_source")), "type")
        values = (record.get("score"), record.get("value"))
        trace = record.get("trace_id")
        return _score(record, record["key"], values, record["run_id"], trace, record.get("created_at"), source)
    if record.get("id") is None or "inputs" not in record:
        return "records that are no run or feedback"
    metadata = held(as_json(record.get("extra")), "metadata") or {}
    root = record.get("parent_run_id") is None
    return _span(
        record["id"], record.get("trace_id"), 2 if root else 1 if record.get("run_type") == "llm" else 0,
        record.get("start_time"), record["inputs"], record.get("outputs"),
        user_id=_any(metadata, "user_id", "userId"),
        session_id=_any(metadata, "session_id", "thread_id", "conversation_id"),
        model=_any(metadata, "ls_model_name", "model_name", "model"),
        version=_any(metadata, "revision_id"),
    )  # fmt: skip


def phoenix(record: Record) -> Span | Action | str:
    """Read a span or an annotation of Phoenix: rows of its data frames, or objects of its API."""
    flat = _flat(record)
    if (name := _any(flat, "annotation_name", "name")) and (
        "result.label" in flat or "result.score" in flat or "annotation_name" in flat
    ):
        values = (_any(flat, "result.label", "label"), _any(flat, "result.score", "score"))
        key = _any(flat, "span_id", "context.span_id")
        return _score(
            record, name, values, key, flat.get("trace_id"), _any(flat, "created_at", "updated_at"),
            flat.get("annotator_kind"),
        )  # fmt: skip
    key = _any(flat, "context.span_id", "span_id", "id")
    if key is None:
        return "records that are no span or annotation"
    a = "attributes."
    kind, root = str(_any(flat, "span_kind", f"{a}openinference.span.kind")).upper(), _any(flat, "parent_id") is None
    return _span(
        key, _any(flat, "context.trace_id", "trace_id"), 2 if root else 1 if kind == "LLM" else 0,
        _any(flat, "start_time"),
        _any(flat, f"{a}llm.input_messages", f"{a}input.value"),
        _any(flat, f"{a}llm.output_messages", f"{a}output.value"),
        user_id=_any(flat, f"{a}user.id"),
        session_id=_any(flat, f"{a}session.id"),
        model=_any(flat, f"{a}llm.model_name"),
    )  # fmt: skip


def _flat(record: Record, prefix: str = "") -> dict[str, Any]:
    """Return a record whose objects within each other have one name each, with dots."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        value = as_json(value) if name in ("attributes", "context", "result") else value
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def posthog(record: Record) -> Span | Action | str:
    """Read an event of PostHog: generations, metrics, answers to surveys, and events of one's own with a trace."""
    event = record.get("event")
    properties = as_json(record.get("properties"))
    if not isinstance(event, str) or not isinstance(properties, Mapping):
        return "records without event and properties"
    trace, time = properties.get("$ai_trace_id"), record.get("timestamp")
    if trace is None:
        return "events without $ai_trace_id"
    if event == "$ai_generation":
        return _span(
            _any(properties, "$ai_generation_id", "$ai_span_id") or record.get("uuid", trace), trace, 1, time,
            properties.get("$ai_input"), properties.get("$ai_output_choices", properties.get("$ai_output")),
            user_id=_any(record, "distinct_id") or properties.get("distinct_id"),
            session_id=_any(properties, "$ai_session_id", "$session_id"),
            model=properties.get("$ai_model"),
            platform=_any(properties, "$os", "$lib"),
        )  # fmt: skip
    if event == "$ai_metric":
        values = (properties.get("$ai_metric_value"),)
        return _score(record, properties.get("$ai_metric_name"), values, None, trace, time, None)
    if event == "survey sent":  # of thumbs 1 is up, 2 is down
        answers = [v for k, v in properties.items() if k.startswith("$survey_response")]
        sides = [UP if str(v) == "1" else DOWN for v in answers if str(v) in ("1", "2")]
        return Action(None, str(trace), sides[0], _time(time)) if sides else "answers to surveys that are no thumb"
    if event.startswith("$") or event in ("survey shown", "survey dismissed"):
        return f"events {event!r} that are no action"
    return Action(None, str(trace), event, _time(time))


READERS: dict[str, Callable[[Record], Span | Action | str]] = {
    "langfuse": langfuse,
    "langsmith": langsmith,
    "phoenix": phoenix,
    "posthog": posthog,
}
