"""Help of every command: options under headings, all choices, names in full at 80 columns, examples."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from typer.core import TyperCommand
from typer.models import OptionInfo, ParameterInfo

from irm_fast.cli.answers import Work
from irm_fast.common.headings import MAIN, PRINTED

Function = TypeVar("Function", bound=Work)

_NAMES = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
_COLUMN = 30  # letters of the column of names; a longer name has a line of its own


def example(*lines: str) -> Callable[[Function], Function]:
    """A decorator that gives a command its examples, which its help shows as they are.

    Args:
        lines: Each a whole command that begins with "irm-fast", at most 76 letters wide; one that ends in a backslash
            goes on in the next.
    """

    def of(command: Function) -> Function:
        command.examples = lines  # type: ignore[attr-defined]
        return command

    return of


def name_values(command: Callable[..., None]) -> Callable[..., None]:
    """Give each option of a command what help shows for its value: all of its choices, or a word for the type.

    An argument is shown by its name, in capitals.

    Args:
        command: A command whose parameters are annotated as `Annotated[type, typer.Option(...)]`. What it says itself,
            by `metavar`, stays.
    """
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if get_origin(parameter.annotation) is Annotated:
            kind, *infos = get_args(parameter.annotation)
            for info in infos:
                if isinstance(info, ParameterInfo) and info.metavar is None:
                    info.metavar = _value_name(kind) if isinstance(info, OptionInfo) else parameter.name.upper()
    return command


def _value_name(kind: Any) -> str | None:
    """What help shows for a value of a type; None for switches."""
    if get_origin(kind) is Literal:
        return f"[{'|'.join(map(str, get_args(kind)))}]"
    kinds = [each for each in get_args(kind) if each is not type(None)]
    return _value_name(kinds[0]) if kinds else _NAMES.get(kind)


class Command(TyperCommand):
    """A command whose help has its options under headings, and its examples at the end."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], MAIN: []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                heading, name = _heading(parameter), record[0]
                if heading == "Arguments":  # after which new versions of typer have the type
                    name = name.partition(" <")[0]
                sections.setdefault(heading, []).append((name, record[1]))
        printed = sections.pop(PRINTED, [])
        write_sections(formatter, {**sections, PRINTED: printed})

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        lines = getattr(self.callback, "examples", ())
        with formatter.section("Example" if sum(not line.endswith("\\") for line in lines) == 1 else "Examples"):
            for line in lines:
                formatter.write(f"{' ' * formatter.current_indent}{line}\n")


def _heading(parameter: Any) -> str:
    """The heading of a parameter."""
    if parameter.param_type_name == "argument":
        return "Arguments"
    return PRINTED if parameter.name == "help" else getattr(parameter, "rich_help_panel", None) or MAIN


def write_sections(formatter: Any, sections: dict[str, list[tuple[str, str]]]) -> None:
    """Write names and what they are, in two columns under headings.

    Args:
        formatter: What writes the help.
        sections: By heading, names with texts.
    """
    rows = [row for section in sections.values() for row in section]
    column = min(_COLUMN, max((len(name) for name, _ in rows), default=0) + 2)
    for heading, section in sections.items():
        if section:
            with formatter.section(heading):
                for name, text in section:
                    formatter.write(_row(name, _plain(text), formatter.current_indent, column, formatter.width))


def _row(name: str, text: str, indent: int, column: int, width: int) -> str:
    """A name and its text, in lines; a name that is wider than the column stands above its text."""
    margin, below = " " * indent, "\n" + " " * (indent + column)
    lines = textwrap.wrap(text, width - indent - column, break_long_words=False, break_on_hyphens=False)
    shown = f"{name:<{column}}" if len(name) + 2 <= column else _folded(name, width - indent) + below
    return f"{margin}{shown}{below.join(lines)}".rstrip() + "\n"


def _folded(name: str, width: int) -> str:
    """A name with all its choices, in lines of a width at most."""
    lines = [""]
    for part in re.split(r"(?<=\|)", name):
        if len(lines[-1]) + len(part) > width:
            lines.append(" " * 6)
        lines[-1] += part
    return "\n".join(lines)


def _plain(text: str) -> str:
    """What typer says of an option without marks that are for other programs."""
    return re.sub(r"\[default: \((.*?)\)", r"[default: \1", text.replace("\\[", "["))


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, as one line."""
    return " ".join(re.split(r"(?<=[.?])\s", text.strip(), maxsplit=1)[0].split())


def command_sections(commands: Iterable[tuple[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Commands with their first sentences, by heading, for `write_sections`."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for name, command in commands:
        heading = getattr(command, "rich_help_panel", None) or "Commands"
        sections.setdefault(heading, []).append((name, first_sentence(command.help or "")))
    return sections
