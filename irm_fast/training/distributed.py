"""Training by several processes: FSDP2 as accelerate does it, and what all processes have to agree on."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from irm_fast.training.config import TrainConfig


def check_same_log(data: Mapping[str, Any]) -> None:
    """Raise RuntimeError on every process if their logs differ; data: as of `run_folder.describe`."""
    PartialState(cpu=not torch.accelerator.is_available())
    table = gather_object([dict(data)])
    for rank, other in enumerate(table):
        if other != table[0]:
            raise RuntimeError(
                f"the processes read different logs: process 0 has {table[0]['rows']} rows, process {rank} has "
                f"{other['rows']}, or others; expected one file that all can read"
            )


def check_same_lengths(accelerator: Accelerator, datasets: Sequence[Any]) -> None:
    """Raise RuntimeError on every process if their rows have other lengths: each would take part in other steps."""
    lengths = [np.array([] if dataset is None else dataset.lengths, dtype=np.int64) for dataset in datasets]
    mine = [number for part in lengths for number in (len(part), zlib.crc32(part.tobytes()))]
    table = accelerator.gather(torch.tensor([mine], device=accelerator.device)).tolist()
    if all(row == table[0] for row in table):
        return
    rank = next(rank for rank, row in enumerate(table) if row != table[0])
    (train, heldout), (own, own_heldout) = table[0][::2], table[rank][::2]
    raise RuntimeError(
        f"the processes see different data: process 0 has {train} and {heldout} training and held-out rows, process "
        f"{rank} has {own} and {own_heldout}, or as many of other lengths; expected one log and one tokenizer for all"
    )


def check_fsdp(config: TrainConfig, processes: int, enabled: bool = True) -> None:
    """Raise ValueError where FSDP is wanted, here or by accelerate's configuration, and does not come about.

    enabled: whether accelerate has turned it on, once that is known: on CPUs it would replicate without a word.
    """
    wanted = config.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wanted and processes == 1:
        raise ValueError("fsdp: one process has nothing to shard over; expected several, by torchrun or accelerate")
    if wanted and not enabled:
        raise ValueError("fsdp: accelerate does not shard on this device; expected a GPU for each process")


def prepare_fsdp(accelerator: Accelerator, config: TrainConfig) -> None:
    """Set FSDP2 up so that a step computes what it computes on one device.

    Under accelerate's own policy every weight and the loss itself would be rounded to bfloat16, the heads' too. Weights
    are gathered in float32 instead and autocast computes in bfloat16, as without FSDP; the price is twice the traffic.

    Raises:
        ValueError: FSDP of the first version, or a stratification model, which would have to be sharded alike.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp: got version {plugin.fsdp_version}; expected fsdp_version: 2 in the accelerate config")
    if config.stratification != "current":
        raise ValueError(f"stratification: {config.stratification!r} does not go with fsdp; expected current")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def whole_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The state of a perhaps sharded model, whole and on the CPU. Every process has to ask; those that do not keep it
    get an empty one."""
    from torch.distributed.tensor import DTensor

    state = {}
    for name, part in model.state_dict().items():
        whole = part.full_tensor() if isinstance(part, DTensor) else part
        if keep:
            state[name] = whole.cpu()
    return state
