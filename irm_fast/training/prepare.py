"""What of a log is trained on, and how: signals, propensity designs, rows; each checked before any work is done."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from irm_fast.data.log import Log
from irm_fast.data.signals import RewardSpec, keep_signals, signal_notes
from irm_fast.evaluation.log_diagnosis import diagnose_rows
from irm_fast.models.backbone import count_tokens
from irm_fast.training.config import TrainConfig


def check_misclick_names(log: Log, config: TrainConfig) -> None:
    """Raise ValueError if a misclick rate is given for a signal that the log does not have."""
    rates = config.misclick_rate
    unknown = sorted(rates.keys() - set(log.signals)) if isinstance(rates, Mapping) else ()
    if unknown:
        known = ", ".join(log.signals) or "none"
        raise ValueError(f"misclick_rate: no signal {unknown[0]!r} in the log; expected one of: {known}")


def live_signals(log: Log, heldout: Log | None) -> tuple[Log, Log | None]:
    """Both logs without the signals that never act in the first; warnings say which, and which are nested."""
    live = [name for k, name in enumerate(log.signals) if (log.feedback[:, k] == 1).any()]
    for note in signal_notes(log):
        warnings.warn(note, stacklevel=3)
    if len(live) == len(log.signals):
        return log, heldout
    if heldout is not None:
        dead = set(log.signals) - set(live)
        heldout = keep_signals(heldout, [name for name in heldout.signals if name not in dead])
    return keep_signals(log, live), heldout


def designs_to_try(log: Log, config: TrainConfig, heldout: Log | None) -> list[str]:
    """The propensity designs to train: more than one only where held-out likelihood is to choose."""
    if config.propensity != "auto":
        return [config.propensity]
    if len(log.signals) < 2:
        return ["constant"]
    if heldout is None and not config.validation_fraction:
        raise ValueError("propensity: 'auto' chooses by held-out likelihood; set validation_fraction")
    return ["constant", "hidden"]


def spec_of(log: Log, config: TrainConfig, design: str) -> RewardSpec:
    """What a model of this propensity design is to explain."""
    rates = config.misclick_rate
    return RewardSpec(
        design=design,
        signals=log.signals,
        polarity=log.polarity,
        misclick_rate=tuple(
            float(rates.get(name, 0.0) if isinstance(rates, Mapping) else rates) for name in log.signals
        ),
        feature_names=log.feature_names if design == "features" else (),
        max_length=config.max_length,
    )


def warn_of_identification(spec: RewardSpec, log: Log) -> None:
    """Warn where one signal alone meets a propensity that is free to take any part of it."""
    if len(spec.signals) == 1 and spec.design in ("hidden", "features"):
        verdict = diagnose_rows([log], spec).verdict
        warnings.warn(f"propensity {spec.design!r}, signal {spec.signals[0]!r}: the reward is {verdict}", stacklevel=3)


def without_overlong(log: Log, config: TrainConfig) -> Log:
    """The rows that need no truncation.

    Raises:
        ValueError: there are none.
    """
    tokens, limit = count_tokens(config.model, log.messages, config.max_length)
    fits = np.flatnonzero(tokens <= limit)
    if not len(fits):
        raise ValueError(f"overlong: all {len(log)} rows are longer than {limit} tokens; expected a larger max_length")
    return log.subset(fits)


def check_parts(log: Log, heldout: Log | None) -> None:
    """Raise ValueError if a part of the log has nothing to learn from or to judge by."""
    remedy = "expected some; give more rows, another --seed or another --validation-fraction"
    for name, part in (("training", log), ("held-out", heldout)):
        if part is not None and not (len(part) if part.weight is None else part.weight.sum() > 0):
            raise ValueError(f"weight: no row of the {name} part ({len(part)} rows) has a weight above 0; {remedy}")
    counts = True if log.weight is None else log.weight > 0
    if not (((log.feedback == 1).any(axis=1) | (log.preference >= 0)) & counts).any():
        raise ValueError(f"feedback: no action and no preference in the training part ({len(log)} rows); {remedy}")
