"""Times forward and backward of a decoder under the implicit loss, over rows of very different lengths.

    pytest benchmarks/bench_training.py --benchmark-only [--save-results FOLDER]

All compute the loss of the same rows and its gradient in every parameter, in passes of at most as many tokens, padding
included. Lengths are log-normal, in the proportions of median 350, 95th percentile 1,500 and maximum 4,096; random
weights. Providers: `ours`, packed, in the packs of the trainer; `padded sorted`, our padded form with rows of similar
length together, as where no packed attention can be had; `padded random`, the same on rows in random order;
`classifier`, the batches of `padded random` through transformers' `*ForSequenceClassification`, which scores every
position, and the loss in PyTorch operations, in the manner of TRL's `RewardTrainer`. Checked: loss and gradient,
against rows one at a time, in float64 on a CPU, float32 on a GPU. Floor: `matmul`, products of large matrices with as
many operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from irm_fast.kernels.reference import definition as reference
from torch import Tensor
from transformers import AutoModelForSequenceClassification, Qwen3Config

from benchmarks.cases import DEVICE, Case, Entry, contestants, draw_feedback, four_group_loss
from benchmarks.harness import clock, show
from irm_fast.data.signals import RewardSpec
from irm_fast.models.batches import Collator, stack_rows
from irm_fast.models.computation import computing
from irm_fast.models.packed import packed_attention
from irm_fast.models.packing import PackSampler, by_length
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.throughput import flops_of

Row = dict[str, Any]
SIGNALS = 2
# Qwen3: layers, width, width within, heads, heads of keys and values, width of a head
SHAPES = {
    "tiny": (2, 256, 768, 4, 2, 64),
    "small": (4, 512, 1536, 8, 4, 64),
    "0.6B": (28, 1024, 3072, 16, 8, 128),
    "1.7B": (28, 2048, 6144, 16, 8, 128),
    "4B": (36, 2560, 9728, 32, 8, 128),
    "8B": (36, 4096, 12288, 32, 8, 128),
}


@dataclass(frozen=True)
class TrainingCase(Case):
    """n rows whose longest has at most `longest` tokens, `budget` tokens a pass, by a model of this shape."""

    k: int = SIGNALS
    shape: str = "tiny"
    longest: int = 512
    budget: int = 1024
    recompute: bool = False  # activations, in the backward pass

    operation = "training step of a decoder"
    modes = {"train": ("loss", "gradient")}  # noqa: RUF012 (a ClassVar of the base)

    def __str__(self) -> str:
        return f"N={self.n} {self.shape} longest={self.longest} budget={self.budget} {str(self.dtype)[6:]}"

    @property
    def tolerance(self) -> float:
        return 1e-4 if self.dtype == torch.float32 else 0.1  # rounding adds up over layers

    def make_inputs(self, seed: int) -> list[Row]:
        rng = np.random.default_rng(seed)
        lengths = np.exp(rng.normal(np.log(350), 0.885, self.n)) * self.longest / 4096
        generator = torch.Generator().manual_seed(seed)
        feedback = draw_feedback(torch.randn(self.n, generator=generator), torch.zeros(self.n, self.k), generator)
        return [
            {
                "input_ids": rng.integers(3, 1000, size).tolist(),
                "feedback": given,
                "preference": -1,
                "weight": 1.0,
            }
            for size, given in zip(
                np.clip(lengths, 4, self.longest).astype(int).tolist(), feedback.tolist(), strict=True
            )
        ]

    def truth(self, inputs: list[Row]) -> dict[str, Tensor]:
        model = make_model(self.shape)
        before = model.classifier.dtype
        model.to(torch.float64 if DEVICE == "cpu" else torch.float32)
        loss = partial(_of_classifier, model, len(inputs), reference.implicit_rm_loss)
        results = _step(model, self, ([row] for row in inputs), loss, packed=False)
        model.to(before)
        return dict(zip(self.modes["train"], results, strict=True))

    def entries(self) -> list[Entry]:
        ways: dict[str, Callable] = {
            "ours": ours,
            "padded sorted": padded_sorted,
            "padded random": padded_random,
            "classifier": classifier,
        }
        return [Entry(name, ("train",), partial(way, make_model(self.shape), self)) for name, way in ways.items()]

    def flops(self) -> float:
        """Operations of a step over the lengths, as `flops_of` counts them where every token takes every layer."""
        counted = flops_of(make_model(self.shape))
        assert counted is not None
        lengths = np.array([len(row["input_ids"]) for row in self.make_inputs(0)], dtype=float)
        return float(counted.token * lengths.sum() + counted.square * (lengths**2).sum())

    def traffic(self, mode: str) -> tuple[int, int]:
        """Weights, and their gradients, in float32."""
        size = sum(p.numel() for p in make_model(self.shape).parameters()) * 4
        return size, size

    def floors(self, n_sets: int) -> list[tuple[Entry, list[Any]]]:
        side = 512 if DEVICE == "cpu" else 8192
        a = torch.randn(side, side, device=DEVICE, dtype=self.dtype)
        products = max(1, round(self.flops() / (2 * side**3)))

        def multiply(b: Tensor) -> None:
            for _ in range(products):
                a @ b

        return [(Entry("matmul", ("train",), multiply), [torch.randn_like(a)])]


def config_of(shape: str, **others: int) -> Qwen3Config:
    """The configuration of a model of one of `SHAPES`, with other numbers by name where they are to differ."""
    layers, width, within, heads, groups, head = SHAPES[shape]
    settings = {
        "vocab_size": 1000,  # looking embeddings up costs nothing
        "hidden_size": width,
        "intermediate_size": within,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head,
        "max_position_embeddings": 8192,
        "num_labels": 1,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    return Qwen3Config(**settings | others)  # type: ignore[arg-type]


@lru_cache(maxsize=1)  # large ones fill the device
def make_model(shape: str) -> ImplicitRewardModel:
    config = config_of(shape)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        network = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=2, pad_token="<pad>")
        signals = {"signals": ("copy", "share"), "polarity": (1, 1), "misclick_rate": (0.0, 0.0)}
        return ImplicitRewardModel(network, tokenizer, RewardSpec("constant", **signals)).to(DEVICE)


def ours(model: ImplicitRewardModel, case: TrainingCase, rows: list[Row]) -> tuple[Tensor, Tensor]:
    packs = PackSampler([len(row["input_ids"]) for row in rows], tokens=case.budget)
    with packed_attention(model, "auto", dtype=case.dtype):
        return _through_heads(model, case, rows, _chosen(rows, packs), packed=model.packed)


def padded_sorted(model: ImplicitRewardModel, case: TrainingCase, rows: list[Row]) -> tuple[Tensor, Tensor]:
    packs = by_length([len(row["input_ids"]) for row in rows], tokens=case.budget)
    return _through_heads(model, case, rows, _chosen(rows, packs), packed=False)


def padded_random(model: ImplicitRewardModel, case: TrainingCase, rows: list[Row]) -> tuple[Tensor, Tensor]:
    return _through_heads(model, case, rows, _in_order(rows, case.budget), packed=False)


def classifier(model: ImplicitRewardModel, case: TrainingCase, rows: list[Row]) -> tuple[Tensor, Tensor]:
    loss = partial(_of_classifier, model, len(rows), four_group_loss)

    def mixed(batch: dict[str, Any]) -> Tensor:  # as transformers does: by operation
        with torch.autocast(DEVICE, torch.bfloat16, enabled=case.dtype == torch.bfloat16):
            return loss(batch)

    return _step(model, case, _in_order(rows, case.budget), mixed, packed=False)


def _of_classifier(model: ImplicitRewardModel, n: int, loss: Callable[..., Tensor], batch: dict[str, Any]) -> Tensor:
    logits = model.classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    reward = logits.squeeze(-1).to(model.reward_bias.dtype) + model.reward_bias
    propensity = model.propensity_design.bias.expand(len(reward), -1)
    return loss(reward, propensity, batch["feedback"]).mean() * len(reward) / n


def _through_heads(
    model: ImplicitRewardModel,
    case: TrainingCase,
    rows: list[Row],
    batches: Iterable[list[Row]],
    *,
    packed: bool,
) -> tuple[Tensor, Tensor]:
    how = computing(model, case.dtype, recompute="full" if case.recompute else "none")
    return _step(model, case, batches, lambda batch: model(**batch, normalizer=len(rows)), packed=packed, how=how)


def _step(
    model: ImplicitRewardModel,
    case: TrainingCase,
    batches: Iterable[list[Row]],
    loss: Callable[[dict[str, Any]], Tensor],
    *,
    packed: bool,
    how: AbstractContextManager | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient over the batches, each of which is collated, moved and computed."""
    collate, total = Collator(0, packed=packed), torch.zeros((), device=DEVICE)
    model.train()
    model.zero_grad()
    with how or computing(model, recompute="full" if case.recompute else "none"):
        for rows in batches:
            batch = collate(stack_rows(rows))
            del batch["counts"]
            batch = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in batch.items()}
            part = loss(batch)
            part.backward()
            total = total + part.detach()
    gradient = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )
    return total, gradient


def _chosen(rows: Sequence[Row], packs: Iterable[list[int]]) -> list[list[Row]]:
    return [[rows[i] for i in pack] for pack in packs if pack]


def _in_order(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Batches of rows as they come, filled while rows times the longest stay within the budget."""
    batches: list[list[Row]] = [[]]
    for row in rows:
        longest = max(len(other["input_ids"]) for other in (*batches[-1], row))
        if batches[-1] and (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


CASES: tuple[TrainingCase, ...] = (
    TrainingCase(64, shape="tiny", budget=2048),
    TrainingCase(24, shape="small", longest=1024, budget=4096),
)
if DEVICE == "cuda":
    on_gpu = partial(TrainingCase, dtype=torch.bfloat16, longest=4096, budget=16384)
    CASES = (
        on_gpu(64, shape="0.6B"),
        on_gpu(32, shape="1.7B", recompute=True),
    )


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(("case", "mode", "provider"), contestants(CASES))
def test_training_step(benchmark: Any, case: Case, mode: str, provider: str) -> None:
    show(benchmark, case, mode, provider)
