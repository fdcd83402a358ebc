"""The speed of a training run: examples and tokens a second, padding, memory, and the use made of the device."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from irm_fast.models.adapters import weights_in
from irm_fast.models.attention import head_width
from irm_fast.models.batches import Counts
from irm_fast.models.last_layer import parameters_behind_attention
from irm_fast.models.reward_model import ImplicitRewardModel

# Dense bfloat16 multiplications with float32 sums, operations a second, from NVIDIA's and AMD's data sheets (half of
# what they state with sparsity). A device is the first whose words are all in its name: boards that differ stand first.
PEAKS = {
    "B300": 2.25e15,
    "B200": 2.25e15,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "MI300X": 1307e12,
}
REPORTED = ("examples_per_second", "tokens_per_second", "non_padding", "peak_memory_gb", "mfu")


def peak_flops(device: torch.device) -> float | None:
    """The operations a second that a device can do in bfloat16, or None where that is not known."""
    if device.type != "cuda":
        return None
    words = set(re.split(r"[\s-]+", torch.cuda.get_device_name(device)))
    return next((peak for name, peak in PEAKS.items() if words >= set(name.split())), None)


class Flops(NamedTuple):
    """The operations of a training step.

    Attributes:
        token: For each token.
        square: For each squared length of a row.
        row: For each row.
    """

    token: float
    square: float
    row: float = 0.0


def flops_of(model: ImplicitRewardModel) -> Flops | None:
    """The operations of a training step.

    These are model operations in the usual count (PaLM, arXiv:2204.02311, appendix B): 6 for each weight of the
    backbone's matrices and each token, 4 for one that is frozen, none for the look-up of embeddings nor for activations
    that are computed again; for causal attention half of 12 times its width, for each squared length; attention within
    a sliding window is left out. Where the last layer goes on with the last tokens alone, its matrices behind the
    attention are counted for each row instead of each token.

    Returns:
        The operations, or None for mixtures of experts, whose tokens take part of the weights.
    """
    config = model.classifier.config.get_text_config()
    experts = [getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")]
    if any(np.max(count or 0) > 1 for count in experts):  # some families have a number for each layer
        return None
    looked_up = model.classifier.get_input_embeddings().weight
    matrices = [p for p in model.backbone.parameters() if p.dim() > 1 and p is not looked_up]
    pooled = {id(p) for p in parameters_behind_attention(model)} if model.pools_early else set()
    operations = {id(p): weights_in(p) * (6.0 if p.requires_grad else 4.0) for p in matrices}
    row = sum(count for parameter, count in operations.items() if parameter in pooled)
    width = config.num_attention_heads * head_width(config)
    default = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    return Flops(sum(operations.values()) - row, 6.0 * kinds.count("full_attention") * width, row)


class Throughput:
    """Counts examples, tokens and seconds between one report and the next.

    Args:
        accelerator: The one of the trainer.
        flops: The operations of the model, by `flops_of` before it is sharded, if it computes in bfloat16.
    """

    def __init__(self, accelerator: Accelerator, flops: Flops | None) -> None:
        self.accelerator = accelerator
        self.peak = peak_flops(accelerator.device)
        self.flops = flops
        self._restart()

    def _restart(self) -> None:
        self.start: float | None = None
        self.sums = [0.0] * len(Counts._fields)
        self.peak_memory = 0

    def begin(self) -> None:
        """Start the clock, unless it runs: a step is about to load its batches."""
        if self.start is None:
            self.start = time.perf_counter()
            self._reset_memory()

    def add(self, counts: Counts) -> None:
        """Count a batch that is about to be computed."""
        self.sums = [total + count for total, count in zip(self.sums, counts, strict=True)]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context for work that is not training, such as evaluation and checkpoints: it does not count."""
        self._synchronise()
        before = time.perf_counter()
        self.peak_memory = self._memory()
        yield
        self._reset_memory()
        if self.start is not None:
            self._synchronise()
            self.start += time.perf_counter() - before

    def report(self) -> dict[str, float]:
        """The throughput of all processes since the last report.

        Every process has to call this. It waits for the device.

        Returns:
            `examples_per_second`, `tokens_per_second` (without padding), `non_padding` (the share of computed positions
            that are tokens), on GPUs `peak_memory_gb` of the fullest device (10^9 bytes), and `mfu`, model FLOP
            utilisation, where the device's peak is known and the model's operations can be counted. Empty if nothing
            was counted since.
        """
        if self.start is None:
            return {}
        self._synchronise()
        seconds, device = time.perf_counter() - self.start, self.accelerator.device
        cuda = device.type == "cuda"
        mine = torch.tensor([*self.sums, seconds, self._memory() / 1e9], dtype=torch.float32, device=device)
        table = self.accelerator.gather(mine).reshape(-1, len(mine)).double().cpu()
        examples, tokens, slots, squares = table[:, :4].sum(0).tolist()
        seconds, memory = table[:, -2:].max(0).values.tolist()
        self._restart()
        result = {
            "examples_per_second": examples / seconds,
            "tokens_per_second": tokens / seconds,
            "non_padding": tokens / max(1.0, slots),
        }
        if cuda:
            result["peak_memory_gb"] = memory
        if self.peak and self.flops:
            done = self.flops.token * tokens + self.flops.square * squares + self.flops.row * examples
            result["mfu"] = done / seconds / self.peak / len(table)
        return result

    def _memory(self) -> int:
        """The most bytes that training held at once, since the last report."""
        device = self.accelerator.device
        return max(self.peak_memory, torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0

    def _reset_memory(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.accelerator.device)

    def _synchronise(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)


def typical(log_history: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each key of `Throughput.report` over the log entries of a run, or nothing if none has them."""
    reports = [entry for entry in log_history if "tokens_per_second" in entry]
    names = [name for name in REPORTED if all(name in report for report in reports)]
    return {name: median(report[name] for report in reports) for name in names} if reports else {}


def in_words(report: Mapping[str, float]) -> str:
    """A report of `Throughput.report` as a line of text."""
    parts = [
        f"{report['examples_per_second']:,.1f} examples/s",
        f"{report['tokens_per_second']:,.0f} tokens/s",
        f"{report['non_padding']:.1%} of the computed positions are tokens",
    ]
    if "peak_memory_gb" in report:
        parts.append(f"{report['peak_memory_gb']:.1f} GB at the peak")
    if "mfu" in report:
        parts.append(f"model FLOP utilisation {report['mfu']:.1%}")
    return ", ".join(parts)
