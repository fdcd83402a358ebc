"""Records of other layouts are read as rows of a log, at once and by `irm-fast import`, and a note says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.conversations import read_conversations
from irm_fast.data.importing.layouts import layout_of
from irm_fast.data.rated import Rated
from irm_fast.data.read import read_log, read_log_or_rated, read_rated
from irm_fast.data.validation import validate


def open_webui(i: int, rating: object) -> dict[str, Any]:
    messages = {
        "u": {"id": "u", "parentId": None, "role": "user", "content": f"question {i}"},
        "a": {"id": "a", "parentId": "u", "role": "assistant", "content": f"answer {i}"},
        "v": {"id": "v", "parentId": "a", "role": "user", "content": "more"},
        "b": {"id": "b", "parentId": "v", "role": "assistant", "content": f"later {i}", "timestamp": 1730000000 + i},
        "c": {"id": "c", "parentId": "u", "role": "assistant", "content": "another branch"},
    }
    return {
        "id": f"f{i}", "user_id": f"p{i}", "type": "rating", "data": {"rating": rating, "model_id": "m"},
        "meta": {"chat_id": f"c{i}", "message_id": "b"},
        "snapshot": {"chat": {"chat": {"history": {"messages": messages, "currentId": "b"}}}},
    }  # fmt: skip


def open_webui_chat(i: int, rating: object) -> dict[str, Any]:
    messages = open_webui(i, rating)["snapshot"]["chat"]["chat"]["history"]["messages"]
    messages["b"]["annotation"] = {"rating": rating}
    return {"id": f"chat{i}", "user_id": f"p{i}", "chat": {"history": {"messages": messages}}}


def librechat(i: int, rating: object) -> dict[str, Any]:
    turns = [
        {"messageId": f"u{i}", "parentMessageId": "0000", "isCreatedByUser": True, "text": f"question {i}"},
        {"messageId": f"a{i}", "parentMessageId": f"u{i}", "isCreatedByUser": False,
         "content": [{"type": "text", "text": {"value": f"answer {i}"}}], "feedback": {"rating": rating}},
        {"messageId": f"v{i}", "parentMessageId": f"a{i}", "isCreatedByUser": True, "text": "more"},
        {"messageId": f"b{i}", "parentMessageId": f"v{i}", "isCreatedByUser": False, "text": "unrated"},
    ]  # fmt: skip
    return {"conversationId": f"c{i}", "title": "t", "messages": turns}


def sharegpt(i: int, rating: object) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": f"question {i}"},
        {"from": "gpt", "value": f"answer {i}", "feedback": {"rating": rating}},
        {"from": "human", "value": "more"},
        {"from": "gpt", "value": "unrated"},
    ]
    return {"id": f"c{i}", "conversations": turns}


def oasst(i: int, rating: object) -> dict[str, Any]:
    side = {"+1": 2, "-1": 0} if rating in (1, "thumbsUp") else {"+1": 0, "-1": 1}
    reply = {"message_id": f"r{i}", "text": f"answer {i}", "role": "assistant", "emojis": side, "replies": []}
    even = {"message_id": f"s{i}", "text": "neither", "role": "assistant", "emojis": {}, "replies": []}
    prompt = {"message_id": f"m{i}", "text": f"question {i}", "role": "prompter", "replies": [reply, even]}
    return {"message_tree_id": f"t{i}", "prompt": prompt}


def label_studio(i: int, rating: object) -> dict[str, Any]:
    side, other = ("good", "bad") if rating in (1, "thumbsUp") else ("bad", "good")
    given = {"result": [{"type": "choices", "value": {"choices": [side]}}]}
    taken_back = {"was_cancelled": True, "result": [{"type": "choices", "value": {"choices": [other]}}]}
    results = [given, taken_back, taken_back]
    return {"id": i, "data": {"prompt": f"question {i}", "response": f"answer {i}"}, "annotations": results}


def argilla(i: int, rating: object) -> dict[str, Any]:
    side, other = ("yes", "no") if rating in (1, "thumbsUp") else ("no", "yes")
    draft = {"value": other, "user_id": "b", "status": "draft"}
    answers = {"helpful": [{"value": side, "user_id": "a", "status": "submitted"}, draft, draft]}
    return {"id": f"r{i}", "fields": {"prompt": f"question {i}", "response": f"answer {i}"}, "responses": answers}


def kto(i: int, rating: object) -> dict[str, Any]:
    return {"prompt": f"question {i}", "completion": f"answer {i}", "label": rating in (1, "thumbsUp")}


ACTIONS = {"open-webui": open_webui, "librechat": librechat, "sharegpt": sharegpt, "kto": kto}
LABELS = {"oasst": oasst, "label-studio": label_studio, "argilla": argilla}
RATINGS = (1, "-1", "thumbsUp", "thumbsDown", 1, -1)
UP = [1, 0, 1, 0, 1, 0]


def export(path: Path, name: str) -> Path:
    records = [(ACTIONS | LABELS)[name](i, rating) for i, rating in enumerate(RATINGS)]
    path.write_text(json.dumps(records))
    return path


@pytest.mark.filterwarnings("ignore:.*records read as")
@pytest.mark.parametrize("name", [*ACTIONS, *LABELS])
@pytest.mark.parametrize("end", [None, "jsonl", "parquet"])
def test_a_layout_is_read_at_once_and_imported(tmp_path: Path, name: str, end: str | None) -> None:
    path = export(tmp_path / "export.json", name)
    if end is not None:
        done = CliRunner().invoke(app, ["import", name, str(path), "--out", str(tmp_path / f"log.{end}")])
        assert done.exit_code == 0, done.output
        path = tmp_path / f"log.{end}"
    log = read_log(path)
    first = [i for i, m in enumerate(log.messages) if m[-1]["content"] in [f"answer {n}" for n in range(6)]]
    first = [i for i, m in enumerate(log.messages) if m[-1]["content"].startswith("later")] or first
    if name in ACTIONS:
        assert log.signals == ("thumbs_up", "thumbs_down") and log.polarity == (1, -1)
        assert log.feedback[first, 0].tolist() == UP and log.feedback[first, 1].tolist() == [1 - up for up in UP]
        rest = [i for i in range(len(log)) if i not in first]
        assert not log.feedback[rest].any()  # nobody rated them, and could have
        assert len(rest) == (6 if name in ("librechat", "sharegpt") else 0)
    else:
        assert log.preference.tolist() == UP and log.signals == ()
    assert [turn["role"] for turn in log.messages[0]][:2] == ["user", "assistant"]
    assert log.messages[first[0]][0]["content"] == "question 0"
    assert len(set(log.ids)) == len(log)


def test_a_prompt_is_the_branch_before_the_rated_answer(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="records read as those of Open WebUI"):
        log = read_log(export(tmp_path / "export.json", "open-webui"))
    assert [turn["content"] for turn in log.messages[1]] == ["question 1", "answer 1", "more", "later 1"]
    assert log.user_ids == [f"p{i}" for i in range(6)] and log.session_ids == [f"c{i}" for i in range(6)]
    assert log.segments["model"] == ["m"] * 6


@pytest.mark.filterwarnings("ignore:.*records read as")
def test_an_export_of_chats_has_the_answers_that_nobody_rated() -> None:
    log = read_log([open_webui_chat(i, rating) for i, rating in enumerate(RATINGS)])
    assert len(log) == 18 and log.feedback.sum(0).tolist() == [3, 3]


def test_one_note_says_what_a_file_was_read_as(tmp_path: Path) -> None:
    report = validate(export(tmp_path / "chats.json", "sharegpt"))
    notes = [note for note in report["notes"] if "ShareGPT" in note]
    assert report["problem_count"] == 0 and report["rows"] == 12
    assert len(notes) == 1 and notes[0].endswith("(6 rows)") and "silent" in notes[0]


@pytest.mark.filterwarnings("ignore:.*records read as")
def test_all_readers_take_a_record_apart_alike(tmp_path: Path) -> None:
    path = export(tmp_path / "chats.json", "sharegpt")
    ids, conversations = read_conversations(path)
    log = read_log_or_rated(path)
    assert not isinstance(log, Rated)
    assert list(ids) == log.ids and list(conversations) == log.messages
    labelled = export(tmp_path / "tree.json", "oasst")
    assert read_rated(labelled).preference.tolist() == UP
    assert isinstance(read_log_or_rated(labelled), Rated)


def test_rows_of_a_log_are_of_no_other_layout() -> None:
    row = {"prompt": "q", "completion": "a"}
    for own in (
        {"feedback": {"copy": 1}, "label": True},
        {"copy": 1, "label": True},
        {"rating": 3, "label": False},
        {"feedback": {"copy": 1}, "data": {}, "annotations": 3},
        {"messages": [{"role": "user", "content": "q"}]},
    ):
        assert layout_of({**row, **own}) is None, own


def test_what_is_wrong_with_a_record_is_a_problem_of_its_line(tmp_path: Path) -> None:
    records = [open_webui(i, 1) for i in range(3)]
    records[0]["data"]["rating"] = 7
    records[1]["snapshot"] = None
    records[2]["meta"]["message_id"] = "gone"
    report = validate(records)
    told = "\n".join(report["problems"])
    assert "rows:0: data.rating: got 7; expected 1 or -1" in told or "rows:1: data.rating" in told
    assert "snapshot: holds no chat" in told and "'gone'" in told


@pytest.mark.parametrize("rating", [0, 4, "meh"])
@pytest.mark.parametrize("make", [open_webui, open_webui_chat, librechat, sharegpt])
def test_a_rating_that_cannot_be_read_is_not_silence(make: Any, rating: object) -> None:
    report = validate([make(0, rating), make(1, 1), make(2, -1)])
    assert report["problem_count"] and f"got {rating!r}; expected 1 or -1" in report["problems"][0]


@pytest.mark.filterwarnings("ignore:.*records read as")
def test_a_comment_without_a_rating_is_no_row() -> None:
    assert len(read_log([open_webui(0, None), open_webui(1, 1), open_webui(2, -1)])) == 2


def test_an_import_says_what_it_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    lines = [json.dumps(librechat(0, "thumbsUp")), json.dumps(sharegpt(1, "thumbsUp")), json.dumps({"a": 1}), "{"]
    path.write_text("\n".join(lines))
    run = ["import", "librechat", str(path), "--out", str(tmp_path / "log.jsonl")]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    assert "read: 4 records" in done.output and "kept: 2 rows" in done.output
    assert "left out: 1 records of ShareGPT: irm-fast import sharegpt" in done.output
    assert "left out: 1 records not of LibreChat" in done.output
    again = CliRunner().invoke(app, run)
    assert again.exit_code == 2 and "--overwrite" in again.output
    nothing = CliRunner().invoke(app, ["import", "oasst", str(path), "--out", str(tmp_path / "none.jsonl")])
    assert nothing.exit_code == 2 and "no row for a log of Open Assistant" in nothing.output
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.filterwarnings("ignore:.*records read as")
def test_stars_are_ratings_and_a_tie_is_no_label(tmp_path: Path) -> None:
    task = label_studio(0, 1)
    task["annotations"] = [{"result": [{"value": {"rating": stars}}]} for stars in (2, 5)]
    tie = {**argilla(1, 1), "responses": {"helpful": [{"value": "yes"}, {"value": "no"}]}}
    rated = read_rated([task, {**task, "id": 1, "annotations": task["annotations"][:1]}, tie])
    assert rated.rating.tolist() == [3.5, 2.0]


@pytest.mark.filterwarnings("ignore:.*records read as")
def test_a_record_of_another_layout_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({**sharegpt(i, r), "model": "m"}) + "\n" for i, r in enumerate(RATINGS)))
    done = CliRunner().invoke(
        app, ["mask", "thumbs_up where model=m", "--data", str(path), "--out", str(tmp_path / "out.jsonl")]
    )
    assert done.exit_code == 2 and "row: is one of ShareGPT; expected one of a log" in done.output, done.output
    assert not (tmp_path / "out.jsonl").exists()
