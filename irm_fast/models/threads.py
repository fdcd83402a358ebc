"""The threads of this process on a CPU: how many a model gets, and how they wait for each other.

OpenMP's threads spin while they wait. Where another process holds one of the cores they spin in each operation until it
gives the core back, and a step of training takes up to thirty times as long (docs/how/training.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SMALL = 1_000_000  # weights that an operation of a pass is spread over: below it, threads wait more than they work
_SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def sleep_while_waiting() -> None:
    """Make OpenMP's threads sleep instead of spinning while they wait; without effect once torch is imported.

    `OMP_WAIT_POLICY`, where it is set, stays as it is.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def cores() -> int:
    """The number of cores that this process may use: by its affinity, and by the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(_quota(Path("/sys/fs/cgroup")) or allowed)))


def _quota(group: Path) -> float | None:
    """The cores that a control group, of version 2 or 1, grants on average, or None for no limit."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    return float(quota) / float(period) if quota.strip() not in ("max", "-1") else None


def choose_threads(weights: int, threads: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of threads for the passes of a model on a CPU.

    It depends on nothing that varies from run to run, so that the same run gives the same bits.

    Args:
        weights: The number of weights in the matrices of the model, without the embeddings of tokens.
        threads: The number of threads that torch would use, which is never exceeded.
        environment: The environment variables. `OMP_NUM_THREADS` or `MKL_NUM_THREADS` there means that `threads` is the
            user's decision; it stays. `LOCAL_WORLD_SIZE` processes share the cores.
    """
    if any(environment.get(name) for name in _SET_BY_USER):
        return threads
    if weights < SMALL:
        return 1
    return max(1, min(threads, cores() // int(environment.get("LOCAL_WORLD_SIZE", 1))))


@contextmanager
def threads_for(model: Any) -> Iterator[int]:
    """A context in which torch has as many threads as `choose_threads` gives a model, and which yields their number.

    Args:
        model: The model of transformers, or a module around one.
    """
    import torch

    before = torch.get_num_threads()
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1 and id(p) not in looked_up)
    torch.set_num_threads(choose_threads(weights, before))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
