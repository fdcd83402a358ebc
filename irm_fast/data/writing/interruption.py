"""Interruptions by a signal: SIGINT (Ctrl-C) and SIGTERM, which schedulers send some seconds before they kill."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM; raised where Ctrl-C would raise KeyboardInterrupt."""


SIGNALS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: TerminatedError}


def exit_code(interruption: KeyboardInterrupt) -> int:
    """The exit code of a program that was interrupted: 128 and the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(interruption, TerminatedError) else signal.SIGINT)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *signals: int) -> Iterator[None]:
    """A context in which a function handles signals, in the main thread, which alone may say so.

    Args:
        handler: The function.
        signals: The signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            with suppress(TypeError):  # None: it was not set by Python
                signal.signal(number, earlier)


@contextmanager
def termination_raised() -> Iterator[None]:
    """A context in which SIGTERM raises `TerminatedError`, so that what is begun is left in order.

    Of several processes it ends each at once, as ever: torchrun sends it where one has failed, for which the others may
    be waiting, deaf to Python.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    with handled(end, signal.SIGTERM):
        yield
