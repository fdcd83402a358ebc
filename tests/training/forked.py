"""Runs of one or several processes, forked from a process that has imported everything.

Importing takes each process longer than the runs of the tests. `torchrun` and `accelerate launch` are tested beside
them, in test_steps.py and test_distributed.py: they are forked as well, and the processes that they start are new.
"""

import gc
import multiprocessing
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.training import recorded_run, sharded_model

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([recorded_run.__name__, sharded_model.__name__])
_LIMIT = 300.0  # seconds


def _rank(rank: int, ranks: int, port: int, main: Callable, arguments: tuple[str, ...], errors: Path) -> None:
    """What one process does: the environment that torchrun would give it, and the run."""
    gc.freeze()  # what was imported: accelerate collects garbage before every run
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()}
    try:
        main(*arguments)
    except BaseException:
        errors.write_text(traceback.format_exc())
        raise


def launch(*arguments: str) -> None:
    """What `python -m` does with these arguments, such as torchrun and a run, whose processes are new ones."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def run(arguments: tuple[str, ...], ranks: int, folder: Path, main: Callable = recorded_run.main) -> list[int]:
    """Do the run of `recorded_run`, or another, by so many processes; returns their exit codes.

    Args:
        arguments: Those of `main`.
        ranks: The number of processes.
        folder: A folder for what goes wrong.
        main: What each process does, a function of a module.

    Raises:
        RuntimeError: A process raised an error, or did not end in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    errors = [folder / f"error.{rank}.txt" for rank in range(ranks)]
    parts = [SERVER.Process(target=_rank, args=(i, ranks, port, main, arguments, errors[i])) for i in range(ranks)]
    for part in parts:
        part.start()
    for part in parts:
        part.join(_LIMIT)
    late = [part for part in parts if part.exitcode is None]
    for part in late:
        part.kill()
        part.join()
    texts = [path.read_text() for path in errors if path.exists()]
    if texts or late:
        raise RuntimeError("\n".join([f"{len(late)} of {ranks} processes did not end", *texts]))
    return [part.exitcode for part in parts]
