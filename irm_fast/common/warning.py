"""Warnings for who uses the package: all of ours are given here, so that all name the line that called it."""

from __future__ import annotations

import sys
import traceback
import warnings


def warn_caller(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the package, however deep within the package this is called.

    Args:
        text: What may be wrong, and the remedy.
        category: The category of the warning.
    """
    stack = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_stack(sys._getframe())]
    first = max(level for level, name in enumerate(stack) if name.split(".")[0] == "irm_fast")
    while stack[first + 1 : first + 2] == ["contextlib"]:  # the call was of a context manager, or of what one decorates
        first += 1
    warnings.warn(text, category, stacklevel=first + 2)
