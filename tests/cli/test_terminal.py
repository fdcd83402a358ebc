"""Nothing that others wrote steers the terminal or forges a line of it, and `--redact` shows neither texts nor ids."""

import ast
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from irm_fast.cli import terminal
from irm_fast.cli.commands import app
from irm_fast.data.problems import Problems, is_plain, named, one_line, printable, row_named, shown

ROOT = Path(__file__).parents[2]
ESCAPES = "\x1b[2J\x1b[31m"
FORGED = "\nproblems: 0\nno problems found"
STEERING = [
    ESCAPES,
    "\x07",
    "\x9b31m",
    "\x00",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u2028",
    "\u200b",
    "\ufeff",
    "\ud800",
    "\r",
]
SECRET = "sesame"


def row(number: int, **fields) -> dict:
    return {
        "id": f"r{number}",
        "prompt": f"q{number}",
        "completion": f"x{number}",
        "feedback": {"copy": number % 2, "share": int(number % 3 == 0)},
        **fields,
    }


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.mark.parametrize("letter", STEERING)
def test_what_steers_is_escaped_and_honest_text_is_not(letter: str) -> None:
    assert printable(f"a{letter}b") == f"a\\u{ord(letter[0]):04x}" + printable(letter[1:]) + "b"
    assert not is_plain(f"a{letter}b") and named(f"a{letter}b") == shown(f"a{letter}b")
    for text in ("copy", "👍🏽", "👩\u200d💻", "Ärger é", "日本語", "\u0645\u06cc\u200c\u062e", "a b", "a\u00a0b"):
        assert printable(text) == text == named(text) and is_plain(text)
    assert printable("a\nb\tc") == "a\nb\tc" and one_line("a\nb\tc") == "a\\nb\\tc" and not is_plain("a\nb")


def test_commands_print_through_one_door() -> None:
    for path in (ROOT / "irm_fast" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.echo", "print", "click.echo"):
                assert path.name == "terminal.py", f"{path}:{node.lineno}: call echo of cli/terminal.py"


HOSTILE = {
    "signal": lambda i: row(i, feedback={f"{ESCAPES}copy{FORGED}": i % 2, "share": 0}),
    "id": lambda i: row(i, id=f"{ESCAPES}{FORGED}{i % 3}"),
    "user": lambda i: row(i, user_id=f"{ESCAPES}{FORGED}{i % 3}", weight=-1),
    "feature": lambda i: row(i, features={f"{ESCAPES}{FORGED}": i / 7}),
    "segment": lambda i: row(i, platform=f"{ESCAPES}{FORGED}{i % 2}", model=f"\u202e{FORGED}{i % 3}"),
    "segment name": lambda i: row(i, features={f"{ESCAPES}{FORGED}": "x"}),
    "field": lambda i: row(i, **{f"{ESCAPES}{FORGED}": 1}),
    "value": lambda i: row(i, weight=f"{ESCAPES}{FORGED}"),
    "text": lambda i: row(i, prompt=f"{ESCAPES}{FORGED}", completion=f"{ESCAPES}{FORGED}"),
    "role": lambda i: row(i, prompt=[{"role": f"{ESCAPES}{FORGED}", "content": "x"}]),
    "time": lambda i: row(i, timestamp=f"{ESCAPES}{FORGED}"),
}
LOG_COMMANDS = {
    "validate": ["validate", "LOG"],
    "diagnose": ["diagnose", "--data", "LOG"],
    "mask": ["mask", "share where platform=android", "--data", "LOG", "--out", "OUT.jsonl"],
    "train": ["train", "--data", "LOG", "--model", "MODEL", "--output", "OUT", "--dry-run", "--no-progress"],
    "embed": ["embed", "--data", "LOG", "--model", "MODEL", "--out", "OUT.safetensors"],
    "simulate": ["simulate", "LOG", "--out", "OUT.jsonl"],
    "import": ["import", "open-webui", "LOG", "--out", "OUT.jsonl"],
    "label": ["label", "--merge", "LOG", "--data", "LOG", "--out", "OUT.jsonl"],
}


def run(command: str, log: Path, model: str, tmp_path: Path, *more: str) -> str:
    """What a command prints on both streams, with warnings."""
    places = {"LOG": str(log), "MODEL": model, "OUT": str(tmp_path / "out"), "OUT.jsonl": str(tmp_path / "out.jsonl")}
    places["OUT.safetensors"] = str(tmp_path / "out.safetensors")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = CliRunner().invoke(app, [*(places.get(part, part) for part in LOG_COMMANDS[command]), *more])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output + "".join(f"warning: {one_line(str(each.message))}\n" for each in warned)


@pytest.mark.parametrize("command", LOG_COMMANDS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_log_steers_the_terminal_or_forges_a_line(tmp_path, tiny_model, kind, command) -> None:
    if command in ("train", "embed") and kind not in ("signal", "id", "value"):
        pytest.skip("the reader is the same")
    log = write(tmp_path / "log.jsonl", map(HOSTILE[kind], range(12)))
    printed = run(command, log, tiny_model, tmp_path)
    assert printed and printable(printed) == printed and FORGED not in printed, printed


def test_json_stays_json(tmp_path) -> None:
    log = write(tmp_path / "log.jsonl", [*map(HOSTILE["value"], range(4)), row(5, id=f"\x7f{ESCAPES}", weight="\x7f")])
    result = CliRunner().invoke(app, ["validate", str(log), "--json"])
    report = json.loads(result.output)
    assert report["problem_count"] == 5 and "\\x1b" in report["problems"][0]


def test_warnings_and_tracebacks_go_through_the_door_too(monkeypatch, capsys) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    terminal.guard_terminal()
    assert warnings.formatwarning(f"a{ESCAPES}{FORGED}", UserWarning, "file", 1) == (
        "warning: a\\u001b[2J\\u001b[31m\\nproblems: 0\\nno problems found\n"
    )
    try:
        raise ValueError(ESCAPES)
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    assert "\x1b" not in capsys.readouterr().err


def test_a_problem_is_one_line_whatever_the_file_is_called() -> None:
    problems = Problems(f"log{FORGED}.jsonl")
    problems.add(1, f"a{ESCAPES}", f"got {FORGED}; expected less")
    problems.noted[f"read as{FORGED}"] += 1
    assert all(is_plain(text) for text in (*problems.kept, *problems.notes(), *problems.rows.values()))


WRONG = {
    "value": {"weight": SECRET},
    "label": {"preference": f"{SECRET} {SECRET}"},
    "time": {"timestamp": SECRET},
    "turn": {"prompt": [{"role": SECRET, "content": SECRET}]},
    "content": {"prompt": [{"role": "user", "content": {SECRET: SECRET}}]},
    "user": {"user_id": [SECRET]},
    "id": {"id": SECRET},
    "long id": {"id": {"name": SECRET}},
    "feedback": {"feedback": SECRET},
    "signal": {"feedback": {"copy": SECRET}},
    "feature": {"features": {"length": {SECRET: 1}}},
    "nothing": {"feedback": {"copy": None, "share": None}},
    "contradiction": {"preference": 0, "id": SECRET + "1"},
}


@pytest.mark.parametrize("command", ["validate", "diagnose", "simulate", "import", "label", "mask"])
@pytest.mark.parametrize("kind", WRONG)
def test_redacted_messages_name_rows_by_file_and_line_alone(tmp_path, tiny_model, kind, command) -> None:
    rows = [
        row(i, id=f"{SECRET}{i}", prompt=f"{SECRET} {i}", completion=f"{SECRET} {i}") | WRONG[kind] for i in range(9)
    ]
    log = write(tmp_path / "log.jsonl", rows)
    assert SECRET not in run(command, log, tiny_model, tmp_path, "--redact")
    if command == "validate" and kind in ("value", "time", "feedback"):
        assert SECRET in run(command, log, tiny_model, tmp_path)  # what redaction takes away
        assert f"{log}:1: " in run(command, log, tiny_model, tmp_path, "--redact")


@pytest.mark.parametrize("content", [SECRET, f'{{"{SECRET[:3]}', f"[{SECRET}", f'"{SECRET}"\n' * 3, f"a,b\n{SECRET}\n"])
def test_redacted_messages_show_nothing_of_a_file_of_another_kind(tmp_path, tiny_model, content) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    assert SECRET not in run("validate", tmp_path / "log.jsonl", tiny_model, tmp_path, "--redact")


def test_redaction_is_a_variable_too_and_ends_with_its_command(tmp_path, tiny_model, monkeypatch) -> None:
    log = write(tmp_path / "log.jsonl", [row(i, weight=SECRET) for i in range(3)])
    assert "got a text of 6 characters" in run("validate", log, tiny_model, tmp_path, "--redact")
    assert SECRET in run("validate", log, tiny_model, tmp_path)
    monkeypatch.setenv("IRM_FAST_REDACT", "1")
    assert SECRET not in run("validate", log, tiny_model, tmp_path)
    assert row_named("b", 1) == "row number 2"
    monkeypatch.setenv("IRM_FAST_REDACT", "0")
    assert row_named("b", 1) == "row 'b'"
    assert shown(None) == "null"


def test_every_command_that_reads_data_of_users_redacts() -> None:
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        text = CliRunner().invoke(app, [name, "--help"]).output
        assert ("--redact" in text) == (name not in ("verify", "reproduce", "downstream", "worlds", "demo", "doctor"))


def test_the_program_itself_prints_no_escape(tmp_path) -> None:
    log = write(tmp_path / "log.jsonl", map(HOSTILE["signal"], range(6)))
    found = subprocess.run([sys.executable, "-m", "irm_fast", "validate", log], capture_output=True, check=False)
    assert found.returncode == 1 and b"\x1b" not in found.stdout + found.stderr
    assert b"steers a terminal" in found.stdout
