"""A training run of one or several processes, which writes down what rows each step saw.

python tests/training/recorded_run.py CONFIG.yaml RECORD sgd|own KILL_AT_STEP anew|resume, perhaps under torchrun.
RECORD.<rank>.jsonl gets a line for each micro-batch: the step, the numbers of its rows, whether the weights are
sharded, and whether the last layer goes on with the last tokens alone. sgd: plain, in the place of the trainer's own
optimiser. At step KILL_AT_STEP, if it comes, every process kills itself.
"""

import json
import os
import signal
import sys
from dataclasses import replace

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, DistributedType
from torch.distributed.tensor import DTensor

from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train
from irm_fast.training.trainer import ImplicitTrainer


def shard_on_cpus() -> None:
    """FSDP2 shards on CPUs too, but accelerate turns it on for GPUs only: say so in its stead."""
    initialise = AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = with_fsdp


def main(config: str, record: str, optimizer: str, kill_at: str, start: str) -> None:
    torch.set_num_threads(1)
    compute_loss = ImplicitTrainer.compute_loss
    path = f"{record}.{os.environ.get('RANK', '0')}.jsonl"

    def recorded(self, model, inputs, *args, **kwargs):
        if self.state.global_step == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        with open(path, "a") as file:
            sharded = all(isinstance(p, DTensor) for p in self.model.parameters())
            file.write(
                json.dumps([self.state.global_step, inputs["row"].tolist(), sharded, self.core.pools_early]) + "\n"
            )
        return compute_loss(self, model, inputs, *args, **kwargs)

    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer

    shard_on_cpus()
    ImplicitTrainer.compute_loss = recorded
    if optimizer == "sgd":
        ImplicitTrainer.create_optimizer = create_optimizer
    run = replace(TrainConfig.load(config), resume=start == "resume")
    wanted = run.sharded
    train(run)
    assert replace(run, fsdp=False).sharded == (wanted and not run.fsdp)  # what asks for FSDP does not outlive the run


if __name__ == "__main__":
    main(*sys.argv[1:])
