"""Bounds of time and memory around work that a file from a stranger decides, such as the rendering of its template."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import resource
except ImportError:  # of Windows
    resource = None  # type: ignore[assignment]


class TooLong(Exception):
    """Work took longer than it may."""


@contextmanager
def bounded_time(seconds: float) -> Iterator[None]:
    """Interrupt work of Python that takes too long.

    In the main thread the time is that of the processor, and one step of C that looks for signals is interrupted too;
    in others it is that of the clock, and a step of C ends first.

    Args:
        seconds: The time.

    Raises:
        TooLong: The work was interrupted.
    """
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    with _by_signal(seconds) if in_main else _by_thread(seconds):
        yield


@contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise TooLong

    earlier = signal.signal(signal.SIGVTALRM, interrupt)
    left, interval = signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1)  # once more, should something catch it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, left, interval)
        signal.signal(signal.SIGVTALRM, earlier)


@contextmanager
def _by_thread(seconds: float) -> Iterator[None]:
    thread, lock, done = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def interrupt() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TooLong))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            done = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)  # one that is due would come later


_bounds = threading.Lock()
_within = 0  # how many bounds of memory are around work now, of all threads
_earlier: list[int] = []  # the limits before the first of them


@contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Let a process take no more than so many bytes beyond those that it has; on Linux, elsewhere nothing is bounded.

    Where one bound stands within another, or beside it in another thread, the first one holds.

    Args:
        more: The number of bytes.

    Raises:
        MemoryError: The work needed more.
    """
    global _within
    if resource is None or not os.path.exists("/proc/self/statm"):
        yield
        return
    with _bounds:
        _within += 1
        if _within == 1:
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            least = _data_bytes() + more
            resource.setrlimit(
                resource.RLIMIT_DATA, (least if soft == resource.RLIM_INFINITY else min(soft, least), hard)
            )
            _earlier[:] = [soft, hard]
    try:
        yield
    finally:
        with _bounds:
            _within -= 1
            if _within == 0:
                resource.setrlimit(resource.RLIMIT_DATA, (_earlier[0], _earlier[1]))


def _data_bytes() -> int:
    """Return the bytes of data that the process has, as the limit counts them."""
    file = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(file, 200).split()[5]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(file)
