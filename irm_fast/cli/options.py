"""What commands share: options, expected errors in a line, settings as options."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup

from irm_fast.cli.answers import Work
from irm_fast.cli.help import command_sections, write_sections
from irm_fast.cli.terminal import echo
from irm_fast.common.extras import MissingPackageError
from irm_fast.common.headings import HEADINGS, PASSES, PRINTED
from irm_fast.data.problems import redacting
from irm_fast.data.writing.interruption import TerminatedError, exit_code, termination_raised
from irm_fast.data.writing.whole import UnwrittenError, disk_words
from irm_fast.models import Precision
from irm_fast.training.config import MISSING, PROGRAMS
from irm_fast.training.log_settings import LogSettings, TextSettings

Data = Annotated[str, typer.Option("--data", help="A file, a folder of parts, a pattern, or - for standard input.")]
Model = Annotated[Path, typer.Option("--model", help="A folder that irm-fast train wrote.")]
Base = Annotated[
    Path | None, typer.Option("--base", help="Of a log: the untrained language model, if it is no longer in its place.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Rows per forward pass, at most; no limit by default.", rich_help_panel=PASSES),
]
TokenBudget = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens per forward pass: as many rows as they hold; 16384 on a GPU, 2048 on a CPU.",
        rich_help_panel=PASSES,
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="auto is bfloat16 on a GPU, else float32.", rich_help_panel=PASSES),
]
Progress = Annotated[bool, typer.Option(help="Show a progress bar, on a terminal.", rich_help_panel=PRINTED)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]


def _former_switches(args: list[str]) -> list[str]:
    """Arguments in which what was a switch in earlier versions has its value."""
    name, result = "--gradient-checkpointing", list[str]()
    for arg, following in zip(args, [*args[1:], "--"], strict=False):
        bare = arg == name and following.startswith("-")
        result += [name, "none"] if arg == name.replace("--", "--no-", 1) else [arg, *(["full"] if bare else [])]
    return result


_WORDS = {KeyboardInterrupt: "interrupted", TerminatedError: "terminated"}
_IN_WORDS = (ValueError, OSError, RuntimeError, MissingPackageError)  # whose texts are for people
_OUT_OF_PYTHON = (UnicodeError, RecursionError, NotImplementedError)  # are such by descent, and speak to programmers


class Commands(TyperGroup):
    """Turns expected errors into their message and exit code 2; `--debug` lets the traceback through."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _former_switches(args))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        write_sections(formatter, command_sections((name, self.commands[name]) for name in self.list_commands(ctx)))

    def invoke(self, ctx: Any) -> Any:
        try:
            with termination_raised():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # caught below otherwise, by descent
            raise
        except KeyboardInterrupt as interrupt:
            echo("; ".join([_WORDS[type(interrupt)], *map(str, interrupt.args)]), err=True)
            raise typer.Exit(exit_code(interrupt)) from None
        except Exception as error:
            if ctx.params.get("debug") or hasattr(error, "exit_code"):  # of the command line itself
                raise
            raise typer.Exit(_report(error)) from None


def _in_words(error: Exception) -> str:
    """What an error says; one that no part of the package has put into words gets its kind, and what to do about it."""
    kind, text = type(error).__name__, str(error)
    if not isinstance(error, UnwrittenError) and (full := disk_words(error)):
        return f"a file {full} ({kind}: {text})"
    if isinstance(error, MemoryError):
        return f"out of memory ({text or kind}); expected a smaller file, batch or model, or more memory"
    if isinstance(error, _IN_WORDS) and not isinstance(error, _OUT_OF_PYTHON):
        return text
    said = "its text is redacted" if redacting() else text.strip().partition("\n")[0]
    return f"not foreseen: {kind}: {said}; --debug shows where, for a report"


def _report(error: Exception) -> int:
    """Print an error, unless the first of several processes says it for all; returns the exit code of this process.

    A failure of the others too would end the first one in mid-sentence.
    """
    if getattr(error, "said_by_main_process", False):
        return 0
    first, text = os.environ.get("RANK", "0") == "0", f"error: {_in_words(error)}"
    if first:
        echo(text, err=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from irm_fast.models.processes import said_by_first  # takes torch

        if said_by_first(str(error)):
            return 0
    if not first:
        echo(text, err=True)
    return 2


def with_settings(command: Work) -> Work:
    """One option for each setting of both programs in the place of `**settings`; None stands for not given."""
    return _with_options(command, *PROGRAMS)


def with_log_settings(command: Work) -> Work:
    """One option for each setting by which a log is read in the place of `**settings`; None stands for not given."""
    return _with_options(command, LogSettings)


def with_text_settings(command: Work) -> Work:
    """One option for each setting by which conversations are read in the place of `**settings`; None: not given."""
    return _with_options(command, TextSettings)


def _with_options(command: Work, *programs: type) -> Work:
    """One option for each setting in the place of `**settings`.

    Args:
        command: The command.
        programs: The dataclasses of the settings; of one that several have, the first counts.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    given = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    settings: dict[str, tuple[int, inspect.Parameter]] = {}
    for setting, hint in (
        (each, get_type_hints(program)[each.name]) for program in programs for each in fields(program)
    ):
        default = None if setting.default is MISSING else setting.default
        shown = default is not None and not isinstance(default, bool) and default != ""
        option = typer.Option(
            help=setting.metadata["help"],
            show_default=str(default) if shown else False,
            rich_help_panel=setting.metadata["group"],
        )
        annotation = Annotated[_option_type(hint) | None, option]  # type: ignore[valid-type]
        parameter = inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        settings.setdefault(setting.name, (HEADINGS.index(setting.metadata["group"]), parameter))
    given += [parameter for _, parameter in sorted(settings.values(), key=lambda placed: placed[0])]
    command.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in given}
    return command


def _option_type(hint: Any) -> Any:
    """The type that the command line parses: choices and numbers; mappings stay text, which the config parses."""
    if get_origin(hint) is Literal:
        return hint
    if hint == Mapping[str, Any] | None:  # KEY=VALUE, once for each key
        return list[str]
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and kinds[0] in (bool, int, float, str) else str
