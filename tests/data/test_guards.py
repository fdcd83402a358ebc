"""Work that goes on for ever, or takes all memory, ends within its bounds, in the main thread and in others."""

import itertools
import resource
import signal
import threading
import time

import pytest

from irm_fast.data.guards import TooLong, bounded_memory, bounded_time


def endless() -> None:
    for _ in itertools.cycle([None]):
        pass


def test_endless_work_is_interrupted_here_and_in_another_thread() -> None:
    found = []

    def work() -> None:
        started = time.monotonic()
        try:
            with bounded_time(0.2):
                endless()
        except TooLong:
            found.append(time.monotonic() - started)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 2 and max(found) < 10


def test_a_long_step_of_c_is_interrupted() -> None:
    with pytest.raises(TooLong), bounded_time(0.2):
        10**10**9


def test_work_that_catches_its_interruption_is_interrupted_again() -> None:
    with pytest.raises(TooLong), bounded_time(0.1):
        try:
            endless()
        except Exception:
            endless()


def test_afterwards_nothing_is_left() -> None:
    before = signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_DATA), threading.active_count()
    with bounded_memory(2**30), bounded_time(0.1):
        pass
    with pytest.raises(ZeroDivisionError), bounded_memory(2**30), bounded_time(0.1):
        1 / 0  # noqa: B018
    spent = time.process_time()
    while time.process_time() < spent + 0.3:  # a timer that still ran would interrupt it
        pass
    after = signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_DATA), threading.active_count()
    assert after == before and signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_memory_is_bounded_by_the_outermost() -> None:
    with bounded_memory(2**28), pytest.raises(MemoryError), bounded_memory(2**40):
        b"x" * 2**29
    assert len(b"x" * 2**29) == 2**29
