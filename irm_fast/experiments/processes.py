"""Jobs side by side in processes, as many as there are cores, with results as they come.

Each process has its share of the cores as threads, or `OMP_NUM_THREADS`: a single thread never waits for another one
whose core is busy elsewhere.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar
from unittest.mock import patch

from irm_fast.common.warning import warn_caller
from irm_fast.models.threads import cores

Job = TypeVar("Job")
Result = TypeVar("Result")
Said = list[tuple[str, type[Warning]]]
_shared: tuple[Any, ...] = ()  # in a child process


def side_by_side(
    function: Callable[..., Result],
    jobs: Iterable[Job],
    *,
    shared: tuple[Any, ...] = (),
    processes: int | None = None,
    imports: tuple[str, ...] = (),
    tick: Callable[[], None] | None = None,
) -> Iterator[tuple[Job, Result]]:
    """Call a function once for each job, in processes, and yield job and result of each call as it ends.

    A job is taken from `jobs` when a process is free for it, so these may be made while others run. What a child warns
    of is warned of here. An error in a call ends all processes and is raised.

    Args:
        function: A function of a module, called as `function(job, *shared)` in a child process.
        jobs: What the calls differ in; it travels to a child and its result comes back, both by pickle.
        shared: What all calls share; it travels once for each process.
        processes: The number of processes; None for one a core. One process is this one, and calls come in order.
        imports: Modules that the calls need; children import them while the first jobs are made.
        tick: Called about once a second and after each call, or None.

    Raises:
        RuntimeError: A process ended abruptly.
    """
    processes = processes or cores()
    if processes == 1:
        for job in jobs:
            yield job, function(job, *shared)
        return
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))
    with (
        patch.dict(os.environ, OMP_NUM_THREADS=threads),  # children inherit it
        ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, shared) as pool,
    ):
        try:
            with _interruptions_ignored():
                for _ in range(processes if imports else 0):
                    pool.submit(_import, imports)
            yield from _results(pool, function, iter(jobs), processes, tick)
        except BrokenProcessPool:
            raise RuntimeError(
                "a process ended abruptly, of too little memory perhaps; expected room for all: try fewer --processes"
            ) from None
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _results(
    pool: ProcessPoolExecutor,
    function: Callable[..., Result],
    jobs: Iterator[Job],
    processes: int,
    tick: Callable[[], None] | None,
) -> Iterator[tuple[Job, Result]]:
    """The jobs and results of `side_by_side` by a pool; no more jobs are taken than there are processes."""
    running: dict[Future[tuple[Result, Said]], Job] = {}
    while True:
        for job in islice(jobs, processes - len(running)):
            with _interruptions_ignored():  # children inherit it: the parent is told of one, and ends them
                running[pool.submit(_call, function, job)] = job
        if not running:
            return
        finished, _ = wait(running, 1.0, FIRST_COMPLETED)
        if tick is not None:
            tick()
        for future in finished:
            job = running.pop(future)
            result, said = future.result()
            for text, category in said:
                warn_caller(text, category)
            yield job, result


def _begin(*shared: Any) -> None:
    """Keep in a child process what all calls share, and end the process when its parent is gone."""
    global _shared
    _shared = shared
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # killed: nobody waits for the rest


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        import_module(name)


def _call(function: Callable[..., Result], job: Any) -> tuple[Result, Said]:
    """The result of one call in a child, and what it warned of."""
    with warnings.catch_warnings(record=True) as said:
        result = function(job, *_shared)
    return result, [(str(warning.message), warning.category) for warning in said]


@contextmanager
def _interruptions_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
