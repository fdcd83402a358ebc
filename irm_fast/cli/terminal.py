"""The door to the terminal: whatever a command prints goes through here, and steers nothing."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from irm_fast.data.problems import REDACT, one_line, printable

_Redact = Annotated[
    bool, typer.Option("--redact", envvar=REDACT, help="Messages show no texts and no ids, but where rows stand.")
]


def echo(*lines: str, err: bool = False) -> None:
    """Print lines; what would steer a terminal in them is escaped.

    Args:
        lines: The lines. One may hold several, where no part of it that others wrote has line breaks.
        err: Print to the standard error.
    """
    typer.echo("\n".join(map(printable, lines)), err=err)


def guard_terminal() -> None:
    """Let warnings and tracebacks go through the door too."""
    warnings.formatwarning = lambda message, category, *place, **more: f"warning: {one_line(str(message))}\n"
    sys.excepthook = _show_traceback


def _show_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    echo("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), err=True)


def with_redact(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the option `--redact`, for those that read data of users."""

    @functools.wraps(command)
    def redacted(*args: Any, redact: bool, **options: Any) -> None:
        before = os.environ.get(REDACT)
        if redact:
            os.environ[REDACT] = "1"  # which the processes of the command inherit
        try:
            command(*args, **options)
        finally:
            if redact and before is None:
                del os.environ[REDACT]

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("redact", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Redact)
    redacted.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    redacted.__annotations__ = {**command.__annotations__, "redact": _Redact}
    return redacted
