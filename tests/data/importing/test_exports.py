"""Exports of tracing tools become logs: an impression a trace, scores of users its actions."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.importing.texts import conversation
from irm_fast.data.importing.traces import signal_of
from irm_fast.data.read import read_log

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fields that are not read"),
    pytest.mark.skipif(find_spec("duckdb") is None, reason="the join needs duckdb"),
]
N = 8
UP, DOWN, COPIED = (0, 1), (2, 7), (0, 3)  # traces; the last is rated up first, then down
END = ["--until", "2026-01-20"]
Rows = list[dict[str, Any]]


def turns(i: int) -> Rows:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"question {i}"}]


def hour(h: int) -> str:
    return f"2026-01-{1 + h // 24:02d}T{h % 24:02d}:00:00Z"


def langfuse() -> tuple[Rows, Rows]:
    """Enriched observations and scores, as blob storages have them: a step and the answer of each trace."""
    calls = []
    for i in range(N):
        common = {"trace_id": f"t{i}", "user_id": f"u{i % 3}", "session_id": f"s{i}", "type": "GENERATION"}
        step = {"id": f"o{i}", "start_time": f"2026-01-01 {i:02d}:00:00.000000", "input": "rewrite", "output": "x"}
        answer = {"id": f"p{i}", "start_time": f"2026-01-01 {i:02d}:00:01.000000", "parent_observation_id": f"o{i}"}
        output = {"choices": [{"message": {"role": "assistant", "content": f"answer {i}"}}]}
        answer |= {"input": json.dumps(turns(i)), "output": json.dumps(output), "provided_model_name": "m"}
        calls += [{**common, **step}, {**common, **answer}]
    calls.append({"id": "late", "trace_id": "t99", "type": "SPAN", "start_time": "2026-01-09 00:00:00.000000"})

    def score(i: int, name: str, value: float, at: int, **more: Any) -> dict[str, Any]:
        time = f"2026-01-01 {i:02d}:{at:02d}:00.000000"
        row = {"id": f"{name}{i}{at}", "trace_id": f"t{i}", "name": name, "value": value, "timestamp": time}
        return {**row, "data_type": "NUMERIC", "source": "API", "observation_id": None, **more}

    scores = [score(i, "user-feedback", 1, 5) for i in (*UP, 7)] + [score(i, "user-feedback", 0, 6) for i in DOWN]
    scores += [score(i, "copied", 1, 7, observation_id=f"o{i}") for i in COPIED]
    scores += [score(4, "relevance", 0.7, 5), score(5, "user-feedback", 1, 5, source="EVAL")]
    scores += [score(6, "copied", 0, 5)]
    del scores[0]["value"]  # as of a category in a table
    scores[0]["string_value"] = "thumbs-up"
    return calls, scores


def langsmith() -> tuple[Rows, Rows]:
    """Runs and feedback; inputs as LangChain serialises them."""
    calls = []
    for i in range(N):
        kinds = ("SystemMessage", "HumanMessage")
        serialised = zip(kinds, turns(i), strict=True)
        messages = [
            {"lc": 1, "id": ["langchain", "schema", kind], "kwargs": {"content": turn["content"]}}
            for kind, turn in serialised
        ]
        extra = {"metadata": {"thread_id": f"s{i}", "user_id": f"u{i % 3}", "ls_model_name": "m"}}
        row = {"trace_id": f"t{i}", "session_id": "project", "start_time": hour(i), "extra": json.dumps(extra)}
        out = {"generations": [[{"text": f"answer {i}", "message": {"kwargs": {"content": f"answer {i}"}}}]]}
        calls.append({**row, "id": f"t{i}", "run_type": "chain", "inputs": {"messages": [messages]}, "outputs": out})
        step = {"id": f"o{i}", "parent_run_id": f"t{i}", "run_type": "llm", "inputs": "x", "outputs": "y"}
        calls.append({**row, **step})
    calls.append({**row, "id": "late", "trace_id": "late", "start_time": hour(200), "inputs": None})

    def feedback(i: int, key: str, score: float, at: int, kind: str = "app") -> dict[str, Any]:
        time = hour(i).replace("00:00Z", f"{at:02d}:00Z")
        return {"run_id": f"t{i}", "key": key, "score": score, "created_at": time, "feedback_source": {"type": kind}}

    scores = [feedback(i, "user_score", 1, 5) for i in (*UP, 7)] + [feedback(i, "user_score", 0, 6) for i in DOWN]
    scores += [{**feedback(i, "copied", 1, 7), "run_id": f"o{i}"} for i in COPIED]
    return calls, [*scores, feedback(5, "user_score", 1, 5, "model"), feedback(4, "correctness", 0.5, 5)]


def phoenix() -> tuple[Rows, Rows]:
    """Rows of the data frames of spans and of annotations."""
    calls = []
    for i in range(N):
        inputs = [{"message.role": turn["role"], "message.content": turn["content"]} for turn in turns(i)]
        outputs = [{"message.role": "assistant", "message.content": f"answer {i}"}]
        row = {"context.span_id": f"t{i}", "context.trace_id": f"trace{i}", "span_kind": "LLM", "start_time": hour(i)}
        row |= {"attributes.llm.input_messages": inputs, "attributes.llm.output_messages": outputs}
        row |= {"attributes.session.id": f"s{i}", "attributes.user.id": f"u{i % 3}", "attributes.llm.model_name": "m"}
        step = {"context.span_id": f"o{i}", "context.trace_id": f"trace{i}", "parent_id": f"t{i}", "span_kind": "TOOL"}
        calls += [row, {**step, "start_time": hour(i), "attributes.input.value": "x", "attributes.output.value": "y"}]
    calls.append({"context.span_id": "late", "context.trace_id": "late", "start_time": hour(200)})

    def note(i: int, name: str, label: str, at: int, kind: str = "HUMAN") -> dict[str, Any]:
        time = hour(i).replace("00:00Z", f"{at:02d}:00Z")
        row = {"span_id": f"t{i}", "annotation_name": name, "annotator_kind": kind, "created_at": time}
        return {**row, "result.label": label, "result.score": None}

    scores = [note(i, "user_feedback", "thumbs-up", 5) for i in (*UP, 7)]
    scores += [note(i, "user_feedback", "thumbs-down", 6) for i in DOWN]
    scores += [{**note(i, "copied", "yes", 7), "span_id": f"o{i}"} for i in COPIED]
    return calls, [*scores, note(5, "user_feedback", "thumbs-up", 5, "LLM"), note(4, "topic", "bikes", 5)]


def posthog() -> tuple[Rows, Rows]:
    """Events, their properties as objects or as text of JSON."""
    calls = []
    for i in range(N):
        output = [{"role": "assistant", "content": [{"type": "text", "text": f"answer {i}"}]}]
        own = {"$ai_trace_id": f"t{i}", "$ai_input": turns(i), "$ai_output_choices": output, "$ai_session_id": f"s{i}"}
        properties = {**own, "$ai_model": "m"}
        row = {"event": "$ai_generation", "distinct_id": f"u{i % 3}", "timestamp": hour(i), "uuid": f"e{i}"}
        calls.append({**row, "properties": json.dumps(properties) if i % 2 else properties})
    calls.append({"event": "$pageview", "timestamp": hour(200), "properties": {}})
    calls.append(
        {**row, "uuid": "last", "timestamp": hour(200), "properties": {"$ai_trace_id": "end", "$ai_input": "x"}}
    )

    def event(i: int, name: str, at: int, **more: Any) -> dict[str, Any]:
        time = hour(i).replace("00:00Z", f"{at:02d}:00Z")
        return {"event": name, "timestamp": time, "properties": {"$ai_trace_id": f"t{i}", **more}}

    up, down = {"$survey_response": 1}, {"$survey_response_abc": "2"}
    scores = [event(i, "survey sent", 5, **up) for i in (*UP, 7)] + [event(i, "survey sent", 6, **down) for i in DOWN]
    scores += [event(i, "copied", 7) for i in COPIED] + [event(4, "$ai_metric", 5, **{"$ai_metric_name": "bleu"})]
    return calls, [*scores, event(5, "survey shown", 5)]


EXPORTS = {"langfuse": langfuse, "langsmith": langsmith, "phoenix": phoenix, "posthog": posthog}


def written(folder: Path, product: str) -> list[str]:
    calls, scores = EXPORTS[product]()
    (folder / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in calls))
    (folder / "scores.json").write_text(json.dumps(scores))
    return [str(folder / "calls.jsonl"), str(folder / "scores.json")]


@pytest.mark.parametrize("product", EXPORTS)
def test_an_export_becomes_a_log(tmp_path: Path, product: str) -> None:
    files, out = written(tmp_path, product), tmp_path / "log.jsonl"
    done = CliRunner().invoke(app, ["import", product, *files, "--out", str(out), *END])
    assert done.exit_code == 0, done.output
    log = read_log(out)
    number = [int(m[-1]["content"].split()[1]) for m in log.messages]
    assert sorted(number) == list(range(N)), done.output
    acted = {name: {number[i] for i in range(N) if log.feedback[i, k] == 1} for k, name in enumerate(log.signals)}
    assert acted == {"copied": set(COPIED), "thumbs_down": set(DOWN), "thumbs_up": set(UP)}, done.output
    assert (log.feedback >= 0).all()
    first = number.index(3)
    assert [turn["content"] for turn in log.messages[first]] == ["be brief", "question 3", "answer 3"]
    assert log.user_ids is not None and log.user_ids[first] == "u0"
    assert log.session_ids is not None and log.session_ids[first] == "s3"
    assert log.segments["model"] == ["m"] * N
    assert log.times is not None and len(set(log.times)) == N and log.acted_at is not None
    assert "left out: 1 thumbs that a later one replaces" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls.jsonl", "log.jsonl", "scores.json"]


def test_the_account_says_what_scores_were_no_actions(tmp_path: Path) -> None:
    files = written(tmp_path, "langfuse")
    done = CliRunner().invoke(app, ["import", "langfuse", *files, "--out", str(tmp_path / "log.jsonl"), *END])
    assert "left out: 1 scores that a program gave" in done.output
    assert "left out: 1 scores 'relevance' that are no action" in done.output
    assert "left out: 8 calls that are steps of a trace, not its answer" in done.output
    assert "left out: 1 traces without a text of input and of output" in done.output
    assert "note: 2 scores name a step of their trace" in done.output


def test_traces_and_scores_are_both_needed(tmp_path: Path) -> None:
    calls, scores = written(tmp_path, "langfuse")
    for file, said in ((calls, "no action of a user; expected the file of scores"), (scores, "expected traces")):
        done = CliRunner().invoke(app, ["import", "langfuse", file, "--out", str(tmp_path / "log.jsonl")])
        assert done.exit_code == 2 and said in done.output, done.output


@pytest.mark.parametrize(
    ("name", "values", "signal"),
    [
        ("User Feedback", (1,), "thumbs_up"), ("user_feedback", (-1,), "thumbs_down"),
        ("thumbs_down", (1,), "thumbs_down"), ("thumbs", ("thumbs-down", 0), "thumbs_down"),
        ("thumbsUp", (0,), None), ("shared", (True,), "shared"),
        ("shared", (False,), None), ("rating", (4,), None), ("bleu", (0.3,), None),
    ],
)  # fmt: skip
def test_scores_are_thumbs_or_actions(name: str, values: tuple[object, ...], signal: str | None) -> None:
    assert signal_of(name, values) == signal


ANSWER = {"role": "assistant", "content": "a"}
PARTS = [{"type": "text", "text": "a"}]


@pytest.mark.parametrize(
    ("inputs", "outputs", "texts"),
    [
        ("q", "a", ["q", "a"]),
        ({"question": "q", "k": 3}, {"answer": "a", "sources": []}, ["q", "a"]),
        ({"messages": turns(0)}, {"messages": [*turns(0), ANSWER]}, ["be brief", "question 0", "a"]),
        ({"args": ["q"]}, "a", None),
        (None, "a", None),
        ({"input": [{"role": "user", "content": "q"}, ANSWER]}, "a", ["q", "a"]),
        ("q", {**ANSWER, "content": PARTS}, ["q", PARTS]),
        ("q", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], ["q", "a\nb"]),
    ],
)  # fmt: skip
def test_a_conversation_is_found_in_what_tools_keep(
    inputs: object, outputs: object, texts: list[object] | None
) -> None:
    found = conversation(inputs, outputs)
    assert (None if found is None else [turn["content"] for part in found for turn in part]) == texts
