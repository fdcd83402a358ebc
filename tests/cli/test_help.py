"""Help of every command: names in full, all choices, options under headings, and examples that are commands."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import typer
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.cli.help import first_sentence
from irm_fast.training.config import PROGRAMS, load_config

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EVERYWHERE = ("--json", "--quiet", "--debug", "--help")
SETTINGS = {setting.name for program in PROGRAMS for setting in fields(program)}


def shown(*command: str, columns: int = 80) -> str:
    """The help of a command at a width."""
    result = CliRunner(env={"COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns)}).invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.output
    return result.output


def choices(command: Any) -> Iterator[tuple[str, str]]:
    """Each choice of each parameter of a command."""
    for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
        kind = parameter.annotation
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        for each in (kind, *get_args(kind)):
            if get_origin(each) is Literal:
                yield from ((parameter.name, str(choice)) for choice in get_args(each))


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_name_in_full_under_headings(name: str, columns: int) -> None:
    text = shown(name, columns=columns)
    assert max(map(len, text.splitlines())) <= columns
    for option in (option for parameter in COMMANDS[name].params for option in parameter.opts):
        assert not option.startswith("--") or re.search(rf"^  .*{option}(?![\w-])", text, re.MULTILINE), option
    assert all(option in text.partition("What is printed:")[2] for option in EVERYWHERE)
    assert "…" not in text and not re.search("<[a-z]", text)  # cut, or a type in the words of Python


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_choice(name: str) -> None:
    words = set(re.split(r"[^\w-]+", shown(name)))
    for parameter, choice in choices(COMMANDS[name]):
        assert choice in words, f"{parameter}: {choice}"


def test_there_are_choices_to_be_listed() -> None:
    found = {(name, *choice) for name, command in COMMANDS.items() for choice in choices(command)}
    assert {("train", "attn", "varlen"), ("import", "product", "kto"), ("embed", "pooling", "cls")} <= found


def test_help_of_all_names_every_command_and_what_it_does_in_full() -> None:
    text = shown()
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
        assert first_sentence(command.help) in " ".join(text.split()), name
    assert max(map(len, text.splitlines())) <= 80


def examples(name: str) -> list[list[str]]:
    """The words of each example of a command, as help shows them."""
    text = re.split(r"^Examples?:\n", shown(name), flags=re.MULTILINE)[1]
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_it_takes(name: str) -> None:
    assert examples(name)
    for program, command, *words in examples(name):
        assert (program, command) == ("irm-fast", name)
        context = COMMANDS[name].make_context(name, words)
        if name == "train":
            settings = {key: value or None for key, value in context.params.items() if key in SETTINGS}
            assert load_config(context.params["config"], **settings).output == "reward_model"


def test_a_wrong_example_is_seen() -> None:
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["verify"].make_context("verify", ["reward_model", "--nothing"])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("irm-fast tr", ["train"]),
        ("irm-fast train --attn flash", ["flash_attention_4", "flash_attention_3", "flash_attention_2"]),
        ("irm-fast import lang", ["langfuse", "langsmith"]),
        ("irm-fast embed --dty", ["--dtype"]),
    ],
)
def test_the_shell_completes_commands_options_and_choices(words: str, found: list[str]) -> None:
    given = {"_IRM_FAST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "import sys; sys.argv = ['irm-fast']; from irm_fast.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | given, capture_output=True, text=True)
    assert done.stdout.split() == found, done.stderr


def test_without_a_command_the_help_is_shown() -> None:
    assert "Train a reward model on a log." in CliRunner().invoke(app, []).output
