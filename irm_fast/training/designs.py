"""One model for each propensity design that comes into question: trained, kept for a resumed run, and chosen."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.data.signals import RewardSpec
from irm_fast.data.telling import tell
from irm_fast.data.writing.manifest import damage
from irm_fast.diagnostics.metrics import paired_difference
from irm_fast.evaluation.metrics_file import plain
from irm_fast.models.heldout import HeldOut
from irm_fast.models.processes import from_main_process
from irm_fast.models.record import RECORD, read_record
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.build import training_loop, unwrapped_model
from irm_fast.training.checkpoints import Found, check_plan, find_checkpoint
from irm_fast.training.config import TrainConfig
from irm_fast.training.plan import plan_of
from irm_fast.training.prepare import Prepared
from irm_fast.training.result import TrainResult
from irm_fast.training.run_folder import CHECKPOINTS, begin_run
from irm_fast.training.throughput import typical
from irm_fast.training.trainer import ImplicitTrainer

_KEPT = (
    "truncated",
    "attention",
    "throughput",
    "trained",
    "skipped_steps",
    "computed",
)  # of the result of a design, for a run that is resumed


class TrainedDesign(NamedTuple):
    """One trained propensity design.

    Attributes:
        result: What the run returns if it chooses this design, but for what is known of all designs.
        model: The model of the result.
        heldout: Predictions for the held-out rows, in the order of their log, or None without such rows.
    """

    result: TrainResult
    model: ImplicitRewardModel
    heldout: HeldOut | None

    @property
    def spec(self) -> RewardSpec:
        """What the model explains; its `max_length` is what the language model allows."""
        return self.model.spec


def train_design(prepared: Prepared, spec: RewardSpec, config: TrainConfig, *, begins: bool) -> TrainedDesign:
    """Train one propensity design.

    Args:
        prepared: The log.
        spec: What the model is to explain, with the propensity design.
        config: The settings.
        begins: Whether the run begins with it, so that its folder is to be made.
    """
    folder = _checkpoint_folder(config, spec)
    with training_loop(prepared, spec, config, folder) as (trainer, truncated, computed):
        # Loop
        found = from_main_process(lambda: find_checkpoint(folder)) if config.resume else Found(None, {})
        if found.newest is not None:
            check_plan(found.newest, trainer.packs.plan)
        if text := found.in_words():
            warn_caller(text)

        def begin() -> None:
            if config.progress and spec is prepared.specs[0]:
                tell(plan_of(prepared, config, trainer, truncated, computed).in_short())
            if begins:  # only now: a run that cannot start writes nothing
                begin_run(config, prepared.fingerprint)
            for path in found.passed_over:  # else it would count as the newest
                shutil.rmtree(path)

        from_main_process(begin)
        with trainer.saves.watched():
            trainer.train(resume_from_checkpoint=None if found.newest is None else str(found.newest))

        # Judgement
        trainer.check_reward_varies()
        has_heldout = prepared.heldout is not None
        metrics = _best_metrics(trainer) if has_heldout else {}
        heldout = trainer.heldout_predictions() if has_heldout else None
        parts = trainer.what_is_trained()
    speed = typical(trainer.state.log_history)
    model = unwrapped_model(trainer, prepared.log, config)
    result = TrainResult(
        model,
        spec.design,
        metrics,
        truncated,
        attention=computed.attn,
        throughput=speed,
        trained=parts,
        skipped_steps=trainer.watch.skipped,
        computed=computed._asdict(),
    )
    return TrainedDesign(result, model, heldout)


def best_design(trained: Sequence[TrainedDesign]) -> TrainedDesign:
    """The first design, unless a later one's held-out loss is lower by more than one standard error."""
    best = trained[0]
    for other in trained[1:]:
        assert best.heldout is not None and other.heldout is not None  # several designs are tried with a held-out part
        gain, error = paired_difference(best.heldout.loss, other.heldout.loss, other.heldout.weight)
        best = other if gain > error else best
    return best


def keep_design(trained: TrainedDesign, config: TrainConfig) -> None:
    """Leave a trained design among the checkpoints, for a run that is interrupted while it trains the others."""
    folder = _model_folder(config, trained.spec)

    def keep() -> None:
        record = {name: getattr(trained.result, name) for name in _KEPT} | {"metrics": plain(trained.result.metrics)}
        if trained.heldout is not None:
            record["heldout"] = {name: values.tolist() for name, values in trained.heldout._asdict().items()}
        if not (folder / RECORD).is_file():
            trained.model.save(folder, record)

    from_main_process(keep)


def kept_design(config: TrainConfig, spec: RewardSpec) -> TrainedDesign | None:
    """The trained design that `keep_design` left before the run was interrupted, or None."""
    folder = _model_folder(config, spec)
    if not config.resume or not (folder / RECORD).is_file():
        return None
    if text := from_main_process(lambda: damage(folder)):
        warn_caller(f"{folder} is passed over: {text}; its propensity design goes on from its last checkpoint")
        from_main_process(lambda: shutil.rmtree(folder))
        return None
    record, model = read_record(folder), ImplicitRewardModel.load(folder)
    metrics = {name: np.nan if value is None else value for name, value in record["metrics"].items()}
    result = TrainResult(model, spec.design, metrics, **{name: record[name] for name in _KEPT if name in record})
    heldout = HeldOut(**{name: np.array(values) for name, values in record["heldout"].items()})
    return TrainedDesign(result, model, heldout)


def _checkpoint_folder(config: TrainConfig, spec: RewardSpec) -> Path:
    """The folder for the checkpoints of a propensity design."""
    return Path(config.output) / CHECKPOINTS / spec.design


def _model_folder(config: TrainConfig, spec: RewardSpec) -> Path:
    """The folder for the trained model of a propensity design."""
    return _checkpoint_folder(config, spec) / "model"


def _best_metrics(trainer: ImplicitTrainer) -> dict[str, float]:
    """The metrics of the evaluation whose weights were kept."""
    best = trainer.state.best_global_step  # None if no evaluation came before the end
    entries = [e for e in trainer.state.log_history if "eval_nll" in e and e["step"] == best]
    entry = entries[0] if entries else trainer.evaluate()
    signals = trainer.core.spec.signals
    names = ["nll", *(f"{name}_{kind}" for name in signals for kind in ("observed", "predicted")), "pairs_accuracy"]
    return {name: entry[f"eval_{name}"] for name in names if f"eval_{name}" in entry}
