"""The commands of `irm-fast`. Each stands in the module that has the name of the room that does its work.

Heavy imports stand inside the commands, so that help comes at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from irm_fast.cli import data, embeddings, evaluation, experiments, models, training
from irm_fast.cli.options import Commands
from irm_fast.cli.terminal import echo, guard_terminal, with_redact
from irm_fast.models.threads import sleep_while_waiting

COMMANDS = (  # in the order of the help
    *(data.validate, data.import_log, data.simulate),
    *(training.train, training.verify),
    *(
        evaluation.evaluate,
        evaluation.diagnose,
        evaluation.compare,
        evaluation.mask,
        evaluation.score,
        evaluation.label,
    ),
    embeddings.embed,
    *(experiments.reproduce, experiments.demo),
    models.doctor,
)

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut names at 80 columns
)
for command in COMMANDS:
    reads_users = command not in (training.verify, experiments.reproduce, experiments.demo, models.doctor)
    app.command("import" if command is data.import_log else None)(with_redact(command) if reads_users else command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from irm_fast import __version__

        echo(f"irm-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Reward models from clicks, copies and shares."""


def main() -> None:
    """The `irm-fast` program."""
    sleep_while_waiting()  # before a command imports torch
    guard_terminal()
    app(prog_name="irm-fast")
