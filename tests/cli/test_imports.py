"""From what a product exports to scores of its answers, by the commands of docs/how/importing.md."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.importing.layouts import LAYOUTS
from irm_fast.data.importing.traces import READERS
from tests.data.importing import test_exports, test_layouts

Rows = list[dict[str, Any]]
GOOD = [bool(i % 2) for i in range(64)]
HOW = {"learning_rate": "3e-3", "epochs": 4, "max-length": 64, "validation-fraction": 0.2}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def answers() -> Iterator[tuple[int, str, str, list[str]]]:
    """Yield questions with answers that are good or bad, and what users did with some of the good ones."""
    rng = np.random.default_rng(0)
    for i, good in enumerate(GOOD):
        acted = [name for name in ("copied", "shared") if good and rng.random() < 0.6]
        yield i, f"question {i}", " ".join(["good" if good else "bad"] * (1 + i % 5)), acted


def langfuse() -> tuple[list[str], dict[str, Rows]]:
    calls, scores = Rows(), Rows()
    for i, question, answer, acted in answers():
        time = f"2026-01-{1 + i // 24:02d} {i % 24:02d}:00:00.000000"
        calls.append({"id": f"t{i}", "timestamp": time, "input": question, "output": answer, "user_id": f"u{i}"})
        scores += [
            {"id": f"{name}{i}", "trace_id": f"t{i}", "name": name, "value": 1, "timestamp": time, "source": "API"}
            for name in acted
        ]
    return ["langfuse", "calls", "scores", "--until", "2026-02-01"], {"calls": calls, "scores": scores}


def events() -> tuple[list[str], dict[str, Rows]]:
    impressions, actions = Rows(), Rows()
    for i, question, answer, acted in answers():
        row = {"response_id": f"t{i}", "timestamp": 1767225600 + i}
        impressions.append({**row, "prompt": question, "completion": answer})
        actions += [{**row, "action": name} for name in acted]
    options = ["--impressions", "shown", "--actions", "actions", "--until", "2026-02-01"]
    return ["events", *options], {"shown": impressions, "actions": actions}


def open_webui() -> tuple[list[str], dict[str, Rows]]:
    chats = Rows()
    for i, question, answer, acted in answers():
        up = {"annotation": {"rating": 1 if GOOD[i] else -1}} if acted or i % 8 == 0 else {}
        messages = {
            "u": {"id": "u", "parentId": None, "role": "user", "content": question},
            "a": {"id": "a", "parentId": "u", "role": "assistant", "content": answer, **up},
        }
        chats.append({"id": f"t{i}", "chat": {"history": {"messages": messages}}})
    return ["open-webui", "chats"], {"chats": chats}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("export", [langfuse, events, open_webui])
def test_from_an_export_to_scores(export: Any, tiny_model: str, tmp_path: Path, monkeypatch: Any) -> None:
    if export is not open_webui:
        pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    options, files = export()
    for name, rows in files.items():
        Path(name).write_text(json.dumps(rows))
    run("import", *options, "--out", "log.jsonl")
    assert "64 rows, 64 of them readable" in run("validate", "log.jsonl")
    settings = [word for name, value in HOW.items() for word in (f"--{name.replace('_', '-')}", value)]
    model = ["--model", tiny_model, "--propensity-design", "constant"]
    assert "held-out nll" in run(
        "train", "--data", "log.jsonl", *model, "--output", "model", "--no-progress", *settings
    )
    run("score", "--model", "model", "--data", "log.jsonl", "--out", "rewards.jsonl", "--no-progress")
    rows = [json.loads(line) for line in Path("rewards.jsonl").read_text().splitlines()]
    rewards = {row["id"].split(".")[0]: row["reward"] for row in rows}
    by_side = [np.array([rewards[f"t{i}"] for i in range(64) if GOOD[i] is side]) for side in (True, False)]
    assert by_side[0].mean() > by_side[1].mean() + by_side[1].std()  # it learned what pleases


def commands(product: str) -> list[str]:
    """The commands of docs/how/importing.md that begin with an export of a product, but for the installation."""
    text = (Path(__file__).parents[2] / "docs" / "how" / "importing.md").read_text(encoding="utf-8")
    _, _, after = text.partition("## Five commands")[2].partition(f"From an export of {product}")
    block = after.split("```sh\n")[1].split("```")[0]
    return [line for line in block.strip().splitlines() if not line.startswith("pip ")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("product", "export", "names"),
    [
        ("Langfuse", langfuse, {"calls": "observations.jsonl", "scores": "scores.jsonl"}),
        ("Open WebUI", open_webui, {"chats": "all-chats-export.json"}),
    ],
)
def test_the_commands_of_the_docs_as_they_are_written(
    product: str, export: Any, names: dict[str, str], tiny_model: str, tmp_path: Path, monkeypatch: Any
) -> None:
    if export is langfuse:
        pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    for name, rows in export()[1].items():
        as_lines = names[name].endswith(".jsonl")
        text = "".join(json.dumps(row) + "\n" for row in rows) if as_lines else json.dumps(rows)
        Path(names[name]).write_text(text)
    Path("answers.jsonl").write_text('{"prompt": "question 1", "completion": "good good"}\n')
    lines = commands(product)
    assert len(lines) == (4 if export is langfuse else 3)
    for line in lines:
        program, *words = shlex.split(line.replace("MODEL", tiny_model))
        assert program == "irm-fast"
        run(*words)
    [row] = [json.loads(line) for line in Path("rewards.jsonl").read_text().splitlines()]
    assert np.isfinite(row["reward"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("product", [*LAYOUTS, *READERS])
def test_a_small_export_of_every_product_trains(product: str, tiny_model: str, tmp_path: Path) -> None:
    if product in READERS:
        pytest.importorskip("duckdb")
        files = [*test_exports.written(tmp_path, product), *test_exports.END]
    else:
        files = [str(test_layouts.export(tmp_path / "export.json", product))]
    log, model = tmp_path / "log.parquet", tmp_path / "model"
    run("import", product, *files, "--out", log)
    how = ["--epochs", 1, "--batch-size", 8, "--validation-fraction", 0, "--propensity-design", "constant"]
    run("train", "--data", log, "--model", tiny_model, "--output", model, "--no-progress", *how)
    assert (model / "model.safetensors").exists()
