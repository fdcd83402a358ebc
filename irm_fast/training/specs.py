"""What a model is to explain a log by: the propensity designs in question, and whether propensities come first."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from irm_fast.common.warning import warn_caller
from irm_fast.data.log import Log
from irm_fast.data.signals import RewardSpec
from irm_fast.diagnostics.subject import FAILED
from irm_fast.diagnostics.text import REMEDIES
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.one_signal import labels_choose
from irm_fast.embeddings.two_step import ENOUGH, coactions, enough_coactions, never_together
from irm_fast.evaluation.log_diagnosis import diagnose_rows
from irm_fast.training.config import RunConfig, TrainConfig

NO_DESIGN = (
    "propensity_design: {name!r} is the only signal, and one signal shows preference times propensity alone; expected\n"
    "  --propensity-design constant: pleased users act equally often on every response,\n"
    "  --propensity-design features: how often they act depends on the features of the log alone,\n"
    "  --propensity-design known: the log has the propensities, as random exposure gives them,\n"
    "  --propensity-design hidden: they depend on anything in the text; then nothing tells them from the preference,\n"
    "  a preference in a few rows, 5 of each kind at least, which choose: irm-fast label draws rows to rate, or\n"
    "  a second signal"
)


def specs_to_try(log: Log, config: RunConfig, heldout: Log | None) -> list[RewardSpec]:
    """What a model is to explain by each propensity design that comes into question.

    Where propensities are fitted first, and on embeddings, the design may be "auto": that fit chooses one by itself. A
    joint training cannot, so that several are trained where held-out likelihood is to choose.

    Raises:
        ValueError: One signal has neither a design nor anything that chooses one, or held-out likelihood is to choose
            and there is no held-out part.
    """
    design = config.propensity_design
    if design == "auto" and len(log.signals) == 1 and not (log.feature_names or labels_choose(log.preference)):
        raise ValueError(NO_DESIGN.format(name=log.signals[0]))
    if not isinstance(config, TrainConfig):
        return [spec_of(log, config, design)]
    if fits_first(log, config):
        return [spec_of(log, config, design, "two-step")]
    designs = [design]
    if design == "auto":
        designs = ["features"] if len(log.signals) == 1 else ["constant"]
        if config.estimator == "joint" and len(log.signals) > 1:
            designs = ["constant", "hidden"]
            if heldout is None and not config.validation_fraction:
                raise ValueError("propensity_design: 'auto' chooses by held-out likelihood; set validation_fraction")
    return [spec_of(log, config, name) for name in designs]


def spec_of(log: Log, config: RunConfig, design: str, estimator: str = "joint") -> RewardSpec:
    """The signals and settings that a model of this propensity design and estimator is to explain the log by."""
    rates = config.misclick_rate
    return RewardSpec(
        design=design,
        signals=log.signals,
        polarity=log.polarity,
        misclick_rate=tuple(
            float(rates.get(name, 0.0) if isinstance(rates, Mapping) else rates) for name in log.signals
        ),
        feature_names=log.feature_names if design == "features" else (),
        max_length=config.max_length if isinstance(config, TrainConfig) else RewardSpec.max_length,
        estimator=estimator,
    )


def fits_first(log: Log, config: TrainConfig) -> bool:
    """Whether propensities are fitted before the reward is trained: on request, or where the log shows them.

    A log shows those of several signals by co-actions, and that of one by labels.
    """
    if not log.signals:
        return False
    if config.estimator != "auto":
        return config.estimator == "two-step"
    if len(log.signals) == 1:
        return config.propensity_design == "auto" and labels_choose(log.preference)
    return config.propensity_design in ("auto", "hidden", "features") and shows_propensities(log)


def check_co_actions(spec: RewardSpec, log: Log, config: TrainConfig) -> None:
    """Check that the training part shows the propensities that a run is to fit, or says that none are fitted.

    Args:
        spec: What a model is to explain.
        log: The training part.
        config: The settings.

    Raises:
        ValueError: The rows that the fit reads show too few co-actions.
    """
    if not log.signals or (len(log.signals) == 1 and (config.estimator != "two-step" or spec.design == "auto")):
        return  # labels choose, or the assumption was named
    seen = coactions(_objective(log))
    counts = ", ".join(f"{name} {count}" for name, count in zip(log.signals, seen, strict=True))
    if spec.estimator != "two-step":
        if config.propensity_design == "auto" and config.estimator == "auto":
            more = "a second signal of either polarity" if never_together(log.polarity) else "more rows"
            warn_caller(
                f"fewer than {ENOUGH} co-actions ({counts}): propensities are taken for constant, and what moves users "
                f"to act counts as preference; {more} or labels would show them, or say what they depend on "
                "(propensity_design hidden, features or known)"
            )
        return
    read = seen * min(1.0, config.propensity_rows / len(log))
    if not ((read >= ENOUGH).all() if config.estimator == "two-step" else (read >= ENOUGH).any()):
        few = f"got {counts}" + (
            f", and {config.propensity_rows} of {len(log)} rows are read" if read[0] < seen[0] else ""
        )
        raise ValueError(
            f"co-actions: {few}; propensities are fitted to {ENOUGH} or more a signal (rows of the training part in "
            "which another signal or a label proves the preference); expected more rows, a larger propensity_rows, or "
            "estimator 'joint'"
        )


def warn_of_identification(spec: RewardSpec, log: Log) -> None:
    """Warn where a signal alone meets a design that explains any part of it, or known propensities are impossible."""
    if spec.design == "known":
        for check in diagnose_rows([log], spec).tests:
            if check.name == "known propensities" and check.result == FAILED:
                told = f"propensity_design 'known': {check.text}; the reward will be wrong"
                warn_caller(f"{told}: {REMEDIES[check.name]}")
    if len(spec.signals) == 1 and spec.design in ("hidden", "features"):
        verdict = diagnose_rows([log], spec).verdict
        text = f"propensity_design {spec.design!r}, signal {spec.signals[0]!r}: the reward is {verdict}"
        warn_caller(text)


def shows_propensities(log: Log) -> bool:
    """Whether the propensity of any signal of a log can be fitted by its co-actions."""
    return enough_coactions(_objective(log))


def _objective(log: Log) -> Objective:
    """The implicit loss of a log by which its co-actions are counted, as if there were no misclicks."""
    feedback, preference = torch.from_numpy(log.feedback), torch.from_numpy(log.preference)
    weight = torch.ones(len(log)) if log.weight is None else torch.from_numpy(log.weight)
    return Objective(feedback, preference, weight, log.polarity, (0.0,) * len(log.signals))
