"""The door to the terminal: whatever a command prints goes through here, and steers nothing."""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import Any

import typer

from irm_fast.data.problems import one_line, printable


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
