"""What all commands have: `--json`, `--quiet`, `--debug`, and where they read data of users `--redact`."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Annotated, Any

import typer

from irm_fast.cli.answers import Work
from irm_fast.common.extras import EXTRAS, need
from irm_fast.common.headings import PRINTED
from irm_fast.data.problems import REDACT
from irm_fast.data.telling import LOGGER, QUIET, write_line


def _remember_debug(context: typer.Context, wanted: bool) -> bool:
    """Keep where `Commands` looks for it that tracebacks are wanted."""
    if wanted:
        context.find_root().params["debug"] = True
    return wanted


def _switch(name: str, text: str, **more: Any) -> Any:
    return Annotated[bool, typer.Option(name, help=text, rich_help_panel=PRINTED, **more)]


_EVERYWHERE = {
    "as_json": _switch("--json", "Print one JSON object, and all else on the standard error."),
    "quiet": _switch("--quiet", "Say nothing of progress; results, warnings and errors alone.", envvar=QUIET),
    "debug": _switch(
        "--debug", "Show the traceback of an error, and what is chosen.", callback=_remember_debug, is_eager=True
    ),
}
_REDACT = {
    "redact": _switch("--redact", "Messages show no texts and no ids, but where rows stand.", envvar=REDACT),
}


def check_packages(command: Work, name: str) -> None:
    """Check before anything is spent that the packages of a command are installed.

    Those of the module `data` need pyarrow, `doctor` nothing beyond the core, all others what the extra `train` brings.

    Args:
        command: The command.
        name: Its name on the command line.

    Raises:
        MissingPackageError: One is not installed.
    """
    room = command.__module__.rpartition(".")[2]
    extra, packages = {"data": ("import", ("pyarrow",)), "models": ("", ())}.get(room, ("train", EXTRAS["train"]))
    for package in packages:
        need(package, f"irm-fast {name}", extra)


def with_common(command: Work, name: str, *, reads_users: bool) -> Callable[..., None]:
    """Return a command with the options that all have, which checks its packages and prints its answer.

    Args:
        command: The command. It prints nothing, and returns its answer, or None where another process does.
        name: Its name on the command line.
        reads_users: Whether it reads data of users, so that it has `--redact`.
    """

    @functools.wraps(command)
    def with_options(*, as_json: bool, quiet: bool, debug: bool, redact: bool = False, **options: Any) -> None:
        alone = os.environ.get("RANK", "0") == "0"  # the others of several processes have nothing new to say
        level = logging.DEBUG if debug else logging.INFO if alone and not quiet else logging.WARNING
        aside = redirect_stdout(sys.stderr) if as_json else nullcontext()  # whatever a library prints
        with _environment(REDACT, redact), _environment(QUIET, quiet), _logging(level), aside:
            check_packages(command, name)
            answer = command(**options)
        if answer is not None:
            answer.show(as_json=as_json)
            raise typer.Exit(int(answer.code))

    added = _EVERYWHERE | (_REDACT if reads_users else {})
    signature = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in added.items()
    ]
    with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *options], return_annotation=None
    )
    with_options.__annotations__ = {**command.__annotations__, **added, "return": None}
    return with_options


@contextmanager
def _environment(name: str, wanted: bool) -> Iterator[None]:
    """A context in which a switch of the environment is on, if it is wanted: processes of the command inherit it."""
    before = os.environ.get(name)
    if wanted:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if wanted and before is None:
            del os.environ[name]


class _Lines(logging.Handler):
    """Records as lines of the standard error, through the door to the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        said = self.format(record)
        write_line(said if record.levelno == logging.INFO else f"{record.levelname.lower()}: {said}")


@contextmanager
def _logging(level: int) -> Iterator[None]:
    """A context in which what the package logs from a level on shows on the standard error."""
    log, handler = logging.getLogger(LOGGER), _Lines()
    before, log.propagate = (log.level, log.propagate), False
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
