"""Training by several processes: FSDP2 as accelerate does it, and what all processes have to agree on."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate import accelerator as accelerator_module
from torch import Tensor, nn
from transformers import TrainingArguments

from irm_fast.models.batches import TokenizedRows
from irm_fast.models.packed import TRIED, tried
from irm_fast.models.processes import check_same, from_main_process
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.config import ACCELERATE_FSDP, TrainConfig


def check_same_log(fingerprint: Mapping[str, Any]) -> None:
    """Check that all processes have read the same log.

    Args:
        fingerprint: The number of rows and the hash of the log in this process, see `fingerprint.describe`.

    Raises:
        RuntimeError: The logs differ; raised on every process.
    """
    check_same("logs", fingerprint["rows"], fingerprint["sha256"])


def check_same_lengths(accelerator: Accelerator, datasets: Sequence[TokenizedRows | None]) -> None:
    """Check that the rows of all processes have the same lengths: else each would take part in other steps.

    Args:
        accelerator: The one of the trainer.
        datasets: The training rows and the held-out rows, or None, of this process.

    Raises:
        RuntimeError: The lengths differ; raised on every process.
    """
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


@contextmanager
def restored_environment() -> Iterator[None]:
    """A context after which the environment asks for FSDP as before: accelerate sets it for all runs that follow."""
    before = os.environ.get(ACCELERATE_FSDP)
    try:
        yield
    finally:
        os.environ.pop(ACCELERATE_FSDP, None)
        if before is not None:
            os.environ[ACCELERATE_FSDP] = before


def check_one_gpu(args: TrainingArguments) -> None:
    """Check that this process sees one GPU at most.

    Args:
        args: The settings of transformers' loop.

    Raises:
        RuntimeError: It sees several.
    """
    if args.n_gpu > 1:
        raise RuntimeError(
            f"{args.n_gpu} GPUs in one process: start one process each, "
            f"torchrun --nproc-per-node {args.n_gpu} -m irm_fast train ..., or set CUDA_VISIBLE_DEVICES=0"
        )


def check_fsdp(config: TrainConfig, processes: int, enabled: bool = True) -> None:
    """Check that FSDP comes about where it is wanted, by the settings or by accelerate's configuration.

    Args:
        config: The settings.
        processes: The number of processes.
        enabled: Whether accelerate has turned FSDP on, once that is known: on CPUs it would replicate without a word.

    Raises:
        ValueError: FSDP is wanted, and there is one process only, or it is not enabled.
    """
    if config.sharded and processes == 1:
        raise ValueError("fsdp: one process has nothing to shard over; expected several, by torchrun or accelerate")
    if config.sharded and not enabled:
        raise ValueError("fsdp: accelerate does not shard on this device; expected a GPU for each process")


def try_packing_once(model: ImplicitRewardModel) -> None:
    """Let the first process try how a model takes packed rows, and tell the others, which lack the weights yet."""
    TRIED[model] = from_main_process(lambda: tried(model))


def check_fsdp_version(accelerator: Accelerator) -> None:
    """Check that accelerate is configured for FSDP2.

    Args:
        accelerator: The one of the trainer, with FSDP enabled.

    Raises:
        ValueError: It is configured for FSDP of the first version.
    """
    version = accelerator.state.fsdp_plugin.fsdp_version
    if version != 2:
        raise ValueError(f"fsdp: got version {version}; expected fsdp_version: 2 in the accelerate config")


@contextmanager
def sharding(config: TrainConfig) -> Iterator[None]:
    """A context in which accelerate, where it comes to shard a model, does so by `shard`.

    Accelerate knows one precision for all of a model, and in bfloat16 would round the heads' weights and the loss too.

    Args:
        config: The settings.
    """
    own = accelerator_module.fsdp2_prepare_model

    def prepare(accelerator: Accelerator, model: ImplicitRewardModel) -> ImplicitRewardModel:
        plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
        if mesh is not None:
            mesh = mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
        dtype = torch.bfloat16 if config.precision == "bfloat16" else None
        shard(model, dtype, mesh=mesh, offload_policy=plugin.cpu_offload)
        return model

    accelerator_module.fsdp2_prepare_model = prepare
    try:
        yield
    finally:
        accelerator_module.fsdp2_prepare_model = own


def shard(model: ImplicitRewardModel, dtype: torch.dtype | None, **settings: Any) -> None:
    """Shard a model over the processes by FSDP2, with the weights of the first process.

    Each layer, the embeddings and the rest of the backbone are units: gathered for each of their passes, and given up
    after it. The heads are one more. Shards, gradients and sums over processes are float32.

    Args:
        model: The model. In processes other than the first its weights may hold anything.
        dtype: What the backbone's weights are gathered and used in; None: as they are. The heads' stay as they are.
        settings: Further keywords of `fully_shard`.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    first = dist.get_rank() == 0
    with model.whole_states():
        state = model.state_dict() if first else {}
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for unit in (*model.layers(), model.get_input_embeddings(), model.backbone):
        fully_shard(unit, mp_policy=policy, reshard_after_forward=True, **settings)
    fully_shard(model, reshard_after_forward=False, **settings)  # small, and its outputs may be views of its weights
    with model.whole_states():
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def local(tensor: Tensor) -> Tensor:
    """The part of a perhaps sharded tensor that this process holds."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a perhaps sharded tensor. Every process has to call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The whole state of a perhaps sharded model, on the CPU. Every process has to call this.

    Args:
        model: The model, or this process's part of it.
        keep: Whether this process wants the state; else its result is empty.
    """
    state = {}
    for name, part in model.state_dict().items():
        gathered = whole(part)
        if keep:
            state[name] = gathered.cpu()
    return state
