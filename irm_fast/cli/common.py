"""What all commands have: `--debug`, and where they read data of users `--redact`."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from irm_fast.common.extras import EXTRAS, need
from irm_fast.data.problems import REDACT
from irm_fast.training.config import PRINTED


def _remember_debug(context: typer.Context, wanted: bool) -> bool:
    """Keep where `Commands` looks for it that tracebacks are wanted."""
    if wanted:
        context.find_root().params["debug"] = True
    return wanted


_Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of an error.",
        rich_help_panel=PRINTED,
        callback=_remember_debug,
        is_eager=True,
    ),
]
_Redact = Annotated[
    bool,
    typer.Option(
        "--redact",
        envvar=REDACT,
        help="Messages show no texts and no ids, but where rows stand.",
        rich_help_panel=PRINTED,
    ),
]


def check_packages(command: Callable[..., None], name: str) -> None:
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


def with_common(command: Callable[..., None], name: str, *, reads_users: bool) -> Callable[..., None]:
    """Return a command with the options that all have, which begins by a check of the packages that it needs.

    Args:
        command: The command.
        name: Its name on the command line.
        reads_users: Whether it reads data of users, so that it has `--redact`.
    """

    @functools.wraps(command)
    def with_options(*args: Any, debug: bool, redact: bool = False, **options: Any) -> None:
        check_packages(command, name)
        with _environment(REDACT, redact):
            command(*args, **options)

    added = {"debug": _Debug, **({"redact": _Redact} if reads_users else {})}
    signature = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in added.items()
    ]
    with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *options]
    )
    with_options.__annotations__ = {**command.__annotations__, **added}
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
