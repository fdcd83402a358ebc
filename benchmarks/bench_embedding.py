"""Times one epoch of a reward head on frozen embeddings against a loop over a DataLoader.

    pytest benchmarks/ --benchmark-only [--save-results FOLDER]

All train the same `heads.Network` in float32 with AdamW, 256 rows a batch, in the same order, with fixed propensities,
and start every epoch from the same weights. Providers: `ours`, `heads.one_epoch` on tensors in memory with the fused
loss; `loader`, a `DataLoader` over a `TensorDataset` without workers, with the same formula in PyTorch operations,
under the AdamW that `torch.optim` gives by default; `loader fused`, with `fused=True` as ours has. Checked: the loss of
the first rows after the epoch, and the weights, against an epoch in float64. Floor: `read`, a sum of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from irm_fast.kernels.reference import definition as reference
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from benchmarks.cases import DEVICE, Case, Entry, contestants, draw_feedback, four_group_loss
from benchmarks.harness import clock, show
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.optimize import Training, one_epoch
from irm_fast.embeddings.parts import Network

BATCH = Training.batch_size
SEED = 1  # of the order of the rows


class Embeddings(NamedTuple):
    x: Tensor  # (N, H)
    propensity: Tensor  # (N, K) logits
    objective: Objective
    state: dict[str, Tensor]  # of the network, before the epoch


@dataclass(frozen=True)
class EpochCase(Case):
    """n rows of `hidden` dimensions, under a network with hidden layers of these widths."""

    layers: tuple[int, ...] = ()

    operation = "epoch of a reward head"
    modes = {"epoch": ("loss", "weights")}  # noqa: RUF012 (a ClassVar of the base)

    def __str__(self) -> str:
        return f"{super().__str__()} {'layers=' + '-'.join(map(str, self.layers)) if self.layers else 'linear'}"

    def make_inputs(self, seed: int) -> Embeddings:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        x = torch.randn(self.n, self.hidden, generator=generator, device=DEVICE)
        propensity = (torch.randn(self.k, generator=generator, device=DEVICE) - 1).expand(self.n, -1).contiguous()
        feedback = draw_feedback(x[:, 0], propensity, generator)
        ones = torch.ones(self.n, device=DEVICE)
        objective = Objective(feedback, None, ones, (1,) * self.k, (0.0,) * self.k)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = Network(self.hidden, self.layers, 1).to(DEVICE)
        return Embeddings(x, propensity, objective, network.state_dict())

    def network(self, inputs: Embeddings, dtype: torch.dtype = torch.float32) -> Network:
        network = Network(self.hidden, self.layers, 1).to(DEVICE, dtype)
        network.load_state_dict(inputs.state)
        return network

    def truth(self, inputs: Embeddings) -> dict[str, Tensor]:
        network = self.network(inputs, torch.float64)
        x, t, feedback = inputs.x.double(), inputs.propensity.double(), inputs.objective.feedback

        def loss(network: Network, rows: Tensor) -> Tensor:
            return reference.implicit_rm_loss(network(x[rows]).squeeze(1), t[rows], feedback[rows]).mean()

        optimizer = adamw(network)
        for rows in torch.randperm(self.n, generator=torch.Generator().manual_seed(SEED)).to(DEVICE).split(BATCH):
            optimizer.zero_grad()
            loss(network, rows).backward()
            optimizer.step()
        first = torch.arange(min(BATCH, self.n), device=DEVICE)
        return dict(zip(self.modes["epoch"], _results(network, loss, first), strict=True))

    def entries(self) -> list[Entry]:
        return [
            Entry("ours", ("epoch",), partial(ours, self)),
            Entry("loader", ("epoch",), partial(loader, self, fused=None)),
            Entry("loader fused", ("epoch",), partial(loader, self, fused=True)),
        ]


def adamw(network: Network, fused: bool | None = None) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        network.parameters(), lr=Training.learning_rate, weight_decay=Training.weight_decay, fused=fused
    )


def ours(case: EpochCase, inputs: Embeddings) -> tuple[Tensor, Tensor]:
    network = case.network(inputs)
    x, propensity, objective = inputs[:3]

    def loss(network: Network, rows: Tensor) -> Tensor:  # as in reward_step
        logits = network(x.index_select(0, rows)).squeeze(1)
        return objective.loss(logits, propensity.index_select(0, rows), rows)

    rows, generator = torch.arange(case.n, device=DEVICE), torch.Generator().manual_seed(SEED)
    one_epoch(network, loss, rows, adamw(network, fused=True), BATCH, generator)
    return _results(network, loss, rows[:BATCH])


def loader(case: EpochCase, inputs: Embeddings, fused: bool | None) -> tuple[Tensor, Tensor]:
    network = case.network(inputs)
    data = TensorDataset(inputs.x, inputs.propensity, inputs.objective.feedback)
    order = RandomSampler(data, generator=torch.Generator().manual_seed(SEED))
    optimizer = adamw(network, fused)
    for x, propensity, feedback in DataLoader(data, BATCH, sampler=order):
        optimizer.zero_grad()
        four_group_loss(network(x).squeeze(1), propensity, feedback).backward()
        optimizer.step()

    def loss(network: Network, rows: Tensor) -> Tensor:
        x, propensity, feedback = (tensor[rows] for tensor in data.tensors)
        return four_group_loss(network(x).squeeze(1), propensity, feedback)

    return _results(network, loss, torch.arange(min(BATCH, case.n), device=DEVICE))


@torch.no_grad()
def _results(network: Network, loss: Callable[..., Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    return loss(network, rows), parameters_to_vector(network.parameters())


CASES = tuple(
    EpochCase(n, 2, hidden, layers=layers) for n, hidden in ((20_000, 384), (16_000, 1024)) for layers in ((128,), ())
)


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(("case", "mode", "provider"), contestants(CASES))
def test_epoch_of_a_reward_head(benchmark: Any, case: Case, mode: str, provider: str) -> None:
    show(benchmark, case, mode, provider)
