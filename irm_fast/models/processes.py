"""Several processes that torchrun or accelerate started: each does its part of the rows, and all get the whole."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from irm_fast.data.writing.lock import RunLock
from irm_fast.models.packing import spread

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
_PATIENCE = 10.0  # seconds that the first process may be behind another that ends with an error


@contextmanager
def launched() -> Iterator[bool]:
    """A context in which the processes of one torchrun work together; gives whether there are several.

    Each of them then computes on its own GPU, if there are GPUs. What they warn of, the first one alone says.
    """
    if started() == 1:
        yield False
        return
    state = joined()
    try:
        with warned_once():
            yield True
    except Exception as error:
        if hasattr(error, "said_by_main_process"):  # else the others may be in the middle of something
            state.destroy_process_group()
        raise
    state.destroy_process_group()


def joined() -> PartialState:
    """The processes, joined if they were not before: through gloo on CPUs, and NCCL on GPUs."""
    from accelerate import PartialState  # of the extra `train`: embeddings are fitted without it

    return PartialState(cpu=not torch.accelerator.is_available())


def started() -> int:
    """The number of processes that torchrun or accelerate started, also before they are joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes and reports; also where it is the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def warned_once() -> Iterator[None]:
    """A context, or a decorator, in which the first process alone warns: all do the same, and once is enough."""
    if is_first():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def said_by_first(error: str) -> bool:
    """Whether the first process of a torchrun ended with the same error, and said so: once is enough.

    It leaves word in the store of torchrun, which outlives it, and the others look there for some seconds. So an error
    of another process alone, or of processes that have no such store, is not lost.

    Args:
        error: What ended this process. The first one calls this after it has said it.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    key = f"irm_fast/error/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=_PATIENCE))
        if is_first():
            store.set(key, error)
            return False
        return bool(store.get(key) == error.encode())
    except (RuntimeError, KeyError, ValueError):  # no word within the time, or no store
        return False


def share(
    sizes: np.ndarray, compute: Callable[[np.ndarray], T], *, distributed: bool = False
) -> list[tuple[np.ndarray, T]]:
    """Compute something of N rows, each process of as much work as the others, and give all to all of them.

    Args:
        sizes: How much work each row is, such as its number of tokens, (N,).
        compute: A function that takes row numbers (n,), at least one, and returns what it makes of these rows.
        distributed: Whether the processes share the rows. All of them have to call this then.

    Returns:
        The row numbers of each part and what `compute` made of them; a single part where nothing is shared.
    """
    everything = np.arange(len(sizes))
    if not distributed:
        return [(everything, compute(everything))] if len(sizes) else []
    from accelerate.utils import gather_object

    state = joined()
    mine = np.array(sorted(spread(sizes, state.num_processes)[state.process_index]), dtype=np.int64)
    parts: list[tuple[np.ndarray, T]] = gather_object([(mine, compute(mine))] if len(mine) else [])
    return parts


def from_main_process(work: Callable[[], T], *, distributed: bool = True) -> T:
    """The result of work that one process does for all, however long: each gets a copy. What it raises, each raises.

    The work begins when all have come: it may write where others still look.

    Args:
        work: The work, whose result can be pickled.
        distributed: False: this process works for itself, whatever others there are.
    """
    if not distributed or (state := joined()).num_processes == 1:
        return work()
    state.wait_for_everyone()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:  # the others would wait for the result
            outcome[1] = error
    dist.broadcast_object_list(outcome, group=patient_group(dist.group.WORLD))
    result, raised = outcome
    if raised is not None:
        raised.said_by_main_process = not state.is_main_process  # once is enough
        raise raised
    return result  # type: ignore[no-any-return]


def from_all(value: T) -> list[T]:
    """What each process has of something, in the order of the processes. All of them have to call this.

    Args:
        value: What this process has, which can be pickled.
    """
    found: list[Any] = [None] * joined().num_processes
    dist.all_gather_object(found, value, group=patient_group(dist.group.WORLD))
    return found


def tensor_from(rank: int, tensor: torch.Tensor) -> None:
    """Give what one process has to all, in place. All of them have to call this.

    Args:
        rank: The number of that process.
        tensor: Its tensor, on the CPU and contiguous; in other processes one of the same shape and dtype.
    """
    dist.broadcast(tensor, src=rank, group=patient_group(dist.group.WORLD))


def added_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of what all processes have, in place. All of them have to call this.

    Args:
        tensor: What this process has, on the CPU and contiguous, of the same shape in all.
    """
    dist.all_reduce(tensor, group=patient_group(dist.group.WORLD))
    return tensor


@contextmanager
def alone(
    place: Path, command: str, *, folder: bool, argument: str = "output", distributed: bool = True
) -> Iterator[None]:
    """A context in which no other run writes to a place: the first of several processes has its lock for all.

    Args:
        place: The folder or the file that is written.
        command: What the run does, for who is refused: "irm-fast train".
        folder: Whether the place is a folder.
        argument: The argument that names the place, for errors.
        distributed: As of `from_main_process`.

    Raises:
        HeldError: Another run writes there.
    """
    lock = RunLock(place, command, folder=folder, argument=argument)
    from_main_process(lock.take, distributed=distributed)
    try:
        yield
    finally:
        if not distributed or is_first():
            lock.leave()


@lru_cache(maxsize=1)
def patient_group(world: Any) -> Any:
    """A group of all processes that waits for days, as the usual one does not."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=7))


def check_same(what: str, rows: int, digest: str | int) -> None:
    """Check that all processes have read the same.

    Args:
        what: What was read, for the error: "logs" or "rows".
        rows: The number of rows that this process has read.
        digest: A hash of them.

    Raises:
        RuntimeError: They differ; raised on every process.
    """
    from accelerate.utils import gather_object

    joined()
    table = gather_object([(rows, digest)])
    for rank, other in enumerate(table):
        if other != table[0]:
            raise RuntimeError(
                f"the processes read different {what}: process 0 has {table[0][0]} rows, process {rank} has "
                f"{other[0]}, or others; expected one file that all can read"
            )
