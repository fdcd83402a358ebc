"""The result of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from irm_fast.diagnostics import Diagnosis
from irm_fast.diagnostics.learned import NAME as BETTER
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.metrics_file import plain
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.publish.card import card_of
from irm_fast.publish.facts import facts_of
from irm_fast.training.config import RunConfig, TrainConfig
from irm_fast.training.prepare import Prepared

_PLACES = ("output", "data", "model", "pairs", "embeddings")  # settings that may be relative paths


@dataclass(frozen=True)
class TrainResult:
    """A trained reward model, in evaluation mode on the CPU, and how it came about.

    Attributes:
        model: The model: of a language model, or on embeddings. Under FSDP only the first process has it whole.
        design: The propensity design of the model.
        metrics: Metrics of the held-out part at the best evaluation, with the keys of `evaluation.heldout_metrics`, and
            `pairs_accuracy` where pairs are held out; empty without a held-out part.
        truncated: The number of training rows, sides of pairs too, that were longer than `max_length` and lost their
            beginning.
        dropped: The number of rows of the log that were left out for it.
        pairs: The number of pairs that were trained on beside the log (`training`) and `held_out`; empty without pairs.
        designs: Held-out loss (`nll`) of every design that was tried.
        attention: The attention that the backbone ran with.
        throughput: Medians of the run, with the keys of `Throughput.report`.
        trained: The numbers of `trained_parameters` and of all `parameters`, and the `optimizer_bytes` of a device.
        skipped_steps: The number of steps that were left out, as their loss or gradient was not finite.
        computed: By name, what the run took for settings that say "auto" of how it computes.
        diagnosis: What the reward rests on: counts of the whole log, predictions for the held-out part.
    """

    model: ImplicitRewardModel | EmbeddedRewardModel
    design: str
    metrics: Mapping[str, float]
    truncated: int = 0
    dropped: int = 0
    pairs: Mapping[str, int] = field(default_factory=dict)
    designs: Mapping[str, float] = field(default_factory=dict)
    attention: str | None = None
    throughput: Mapping[str, float] = field(default_factory=dict)
    trained: Mapping[str, int] = field(default_factory=dict)
    skipped_steps: int = 0
    computed: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None

    @property
    def learned(self) -> dict[str, Any]:
        """Whether the reward foretells held-out rows better than constant rates do, for records and metrics.

        That is `learned`, as of `Diagnosis`; and where it could be tested by how much it does, in log-likelihood an
        action, as `gain_over_constant`, with its standard error `gain_over_constant_error`.
        """
        if self.diagnosis is None:
            return {}
        gain = next((test.details[0] for test in self.diagnosis.tests if test.name == BETTER and test.details), None)
        if gain is None:
            return {"learned": self.diagnosis.learned}
        names = {"gain": "gain_over_constant", "standard_error": "gain_over_constant_error"}
        return {"learned": self.diagnosis.learned} | {name: gain[key] for key, name in names.items()}

    def judged(self, diagnosis: Diagnosis) -> TrainResult:
        """The result with its diagnosis, which says of a model without held-out rows that it is not tested."""
        return replace(self, diagnosis=diagnosis if diagnosis.learned else diagnosis.of_untested_model())

    def record(self, config: RunConfig) -> dict[str, Any]:
        """The entries of `irm_fast.json` beside the model's own spec."""
        return {
            **self.learned,
            "diagnosis": None if self.diagnosis is None else self.diagnosis.to_dict(),
            "metrics": plain(self.metrics),
            "designs": dict(self.designs),
            "truncated": self.truncated,
            "dropped": self.dropped,
            "pairs": dict(self.pairs),
            "attention": self.attention,
            "throughput": dict(self.throughput),
            "trained": dict(self.trained),
            "skipped_steps": self.skipped_steps,
            "computed": dict(self.computed),
            "training": config.to_dict(),
            "used": self.used(config),
        }

    def used(self, config: RunConfig) -> dict[str, Any]:
        """The settings as they were used, in full: what "auto", none and relative paths of those given stood for."""
        spec = self.model.spec
        found = {"propensity_design": self.design, "estimator": spec.estimator, "max_length": spec.max_length}
        if isinstance(config, TrainConfig):
            found |= {"batch_size": config.rows_per_pass, "learning_rate": config.peak_learning_rate, **self.computed}
        given = config.to_dict()
        found |= {
            name: str(Path(given[name]).absolute())
            for name in _PLACES
            if given.get(name) and Path(given[name]).exists()
        }
        return given | {name: value for name, value in found.items() if name in given}

    def save(self, objective: Mapping[str, Any], prepared: Prepared, config: RunConfig) -> None:
        """Write the model to the output folder, with its record and its card.

        Args:
            objective: The entries of `irm_fast.json` that say what was minimised.
            prepared: The log.
            config: The settings.
        """
        record = self.record(config)
        base = self.model.source.model if isinstance(self.model, EmbeddedRewardModel) else record["training"]["model"]
        record = {**objective, **record, **facts_of(prepared.parts, base)}
        self.model.save(config.output, record, card_of(self.model, Path(config.output).name))
