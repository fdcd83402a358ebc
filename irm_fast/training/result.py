"""Result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from irm_fast.diagnostics import Diagnosis
from irm_fast.models.reward_model import ImplicitRewardModel


@dataclass(frozen=True)
class TrainResult:
    """A trained reward model, in evaluation mode on the CPU, and how it came about.

    design: the propensity design of the model.  metrics: of the held-out part at the best evaluation, keys as
    of `evaluation.heldout_metrics`; empty without a held-out part.  truncated: training rows that were longer
    than `max_length` and lost their beginning.  dropped: rows of the log that were left out for it.
    designs: `nll` of every design that was tried.  attention: what the backbone ran with.
    throughput: keys of `Throughput.report`, medians of the run.  Under FSDP only the first process has the model.
    diagnosis: what the reward rests on: counts of the whole log, predictions for the held-out part.
    """

    model: ImplicitRewardModel
    design: str
    metrics: Mapping[str, float]
    truncated: int
    dropped: int = 0
    designs: Mapping[str, float] = field(default_factory=dict)
    attention: str | None = None
    throughput: Mapping[str, float] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None
