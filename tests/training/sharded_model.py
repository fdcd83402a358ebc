"""One step of a sharded model on two processes, by which the test of its memory judges; see `forked`."""

import json
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from irm_fast.data.signals import RewardSpec
from irm_fast.models.computation import computing
from irm_fast.models.packed import packed_attention, two_rows
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.distributed import shard, try_packing_once, whole_state

SPEC = RewardSpec("hidden", ("copy",), (1,), (0.0,))
FEEDBACK = torch.tensor([[1], [0]], dtype=torch.int8)


def load(folder: str, *, weights: bool = True) -> ImplicitRewardModel:
    torch.manual_seed(0)
    return ImplicitRewardModel.from_backbone(folder, SPEC, weights=weights)


def main(folder: str, out: str, recompute: str, how: str) -> None:
    """Write what the step of each process held and used to OUT.RANK.json.

    Args:
        folder: The model.
        out: Where to write to.
        recompute: As of `computing`.
        how: "kept": weights are kept after the forward pass, to show that they would be seen; "compiled": layers are
            compiled; "packed": rows are packed; "pooled": so they are, and the last layer goes on with the last tokens
            alone; "" none of these.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    model = load(folder, weights=first).train()
    shapes = {tuple(parameter.shape) for parameter in model.backbone.parameters() if parameter.dim() == 2}
    torch.compile = partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    packed = how in ("packed", "pooled")
    try_packing_once(model)
    with (
        packed_attention(model, "varlen", every_token=how == "packed") if packed else nullcontext(),
        computing(model, recompute=recompute, compiled=how == "compiled"),
    ):
        assert model.pools_early == (how == "pooled")
        shard(model, torch.bfloat16)
        for module in model.backbone.modules() if how == "kept" else ():
            if hasattr(module, "set_reshard_after_forward"):
                module.set_reshard_after_forward(False, recurse=False)
        held: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.dtype == torch.bfloat16 and {tuple(tensor.shape), tuple(tensor.shape)[::-1]} & shapes:
                held[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with nullcontext() if how == "compiled" else hooks:
            loss = model(**two_rows(model, packed=packed), feedback=FEEDBACK)
        bytes_held = sum(storage.nbytes() for storage in held.values())
        loss.backward()
    dtypes = sorted({str(p.dtype) for p in model.parameters()} | {str(p.grad.dtype) for p in model.parameters()})
    record = {"loss": loss.item(), "weights": len(held), "bytes": bytes_held, "dtypes": dtypes}
    state = whole_state(model, keep=first)
    if first:
        own = load(folder).state_dict()
        record["equal"] = all(torch.equal(own[name], weight) for name, weight in state.items()) and len(own)
        record["gradient"] = [float(p.grad.full_tensor().norm()) for p in model.parameters()]
    else:
        for parameter in model.parameters():
            parameter.grad.full_tensor()
    Path(f"{out}.{os.environ['RANK']}.json").write_text(json.dumps(record))
    dist.destroy_process_group()
