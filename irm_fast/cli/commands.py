"""The commands of `irm-fast`. Each stands in the module that has the name of the room that does its work.

Heavy imports stand inside the commands, so that help comes at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from irm_fast.cli import data, embeddings, evaluation, experiments, models, publish, training
from irm_fast.cli.common import with_common
from irm_fast.cli.help import Command, name_values
from irm_fast.cli.options import Commands
from irm_fast.cli.terminal import echo, guard_terminal
from irm_fast.models.threads import sleep_while_waiting

COMMANDS = {  # by the headings of the help
    "Logs": (data.import_log, data.validate, evaluation.mask, data.simulate),
    "Training": (training.train, publish.report, embeddings.embed),
    "Judging": (evaluation.evaluate, evaluation.diagnose, evaluation.compare, evaluation.label, training.verify),
    "Using a model": (evaluation.score, publish.export),
    "Trying it out": (experiments.demo, models.doctor),
    "Comparing methods": (experiments.reproduce, experiments.downstream, experiments.worlds),
}
NO_USERS = (training.verify, *COMMANDS["Trying it out"], *COMMANDS["Comparing methods"])  # read no data of users
WIDTH = {"max_content_width": 120}  # of help, at most

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings=WIDTH,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut names at 80 columns
)
for heading, commands in COMMANDS.items():
    for command in commands:
        name = "import" if command is data.import_log else command.__name__
        registered = app.command(name, cls=Command, context_settings=WIDTH, rich_help_panel=heading)
        registered(name_values(with_common(command, name, reads_users=command not in NO_USERS)))


def _print_version(wanted: bool) -> None:
    if wanted:
        from irm_fast import __version__

        echo(f"irm-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Reward models from clicks, copies and shares. `irm-fast COMMAND --help` explains a command, with examples."""


def main() -> None:
    """The `irm-fast` program."""
    sleep_while_waiting()  # before a command imports torch
    guard_terminal()
    app(prog_name="irm-fast")
