"""The diagnosis of a log, of a model on a log, and of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.data.declarations import Declarations
from irm_fast.data.joined import Joined
from irm_fast.data.log import Log
from irm_fast.data.read import read_declared
from irm_fast.data.signals import DesignChoice, RewardSpec, align
from irm_fast.diagnostics import Diagnosis, diagnose
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.propensities import with_propensities
from irm_fast.evaluation.scoring import declared_for, load, predict_log, row_weights
from irm_fast.models.heldout import HeldOut
from irm_fast.models.passes import Passes
from irm_fast.models.processes import from_main_process


def diagnose_file(
    data: str | Path,
    model_dir: str | Path | None = None,
    *,
    propensity_design: DesignChoice = "auto",
    declared: Mapping[str, Any] | None = None,
    labels_ignorable: bool = False,
    batch_size: int | None = None,
    token_budget: int | None = None,
    precision: str = "auto",
    base: str | Path | None = None,
    distributed: bool = False,
    progress: bool = False,
) -> Diagnosis:
    """`diagnostics.diagnose` of the log at `data`, with a saved model's predictions or without a model.

    Args:
        data: The path of the log.
        model_dir: The folder of a saved model, or None.
        propensity_design: Without a model, the design to judge. `auto` is known if every recorded entry has a
            propensity, else constant for one signal and hidden for several.
        declared: How the log is to be read, by the names of the arguments of `read_log`; with a model as of
            `scoring.declared_for`.
        labels_ignorable: Whether which rows have a label does not depend on the preference.
        batch_size: Rows per forward pass of the model, at most. None: as many as the token budget holds.
        token_budget: Tokens per forward pass, at most. None: 16,384 on a GPU, and 2,048 on a CPU.
        precision: The precision of the language model, as of `scoring.load`.
        base: The untrained language model, as of `propensities.with_propensities`.
        distributed: Whether all processes of a torchrun share the rows; each gets the diagnosis of all.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Raises:
        ValueError: There is no saved model or no readable log, or the log lacks a signal of the model's.
    """
    if model_dir is None:
        if base is not None:
            raise ValueError(f"base: got {base}, which has no effect without a model; leave it out")
        # Evidence for both sides is no error here: a test reports it.
        log = read_declared(data, Declarations.of_settings(declared or {}, misclick=True))
        spec = _spec(log, propensity_design)
        return from_main_process(
            lambda: diagnose_rows([log], spec, labels_ignorable=labels_ignorable), distributed=distributed
        )
    model = load(model_dir, precision=precision)
    log = align(read_declared(data, declared_for(model_dir, declared)), model.spec)
    passes = Passes(batch_size, token_budget, distributed, progress)
    filled, context = with_propensities(log, model.spec, model_dir, base=base, passes=passes)
    heldout = predict_log(model, filled, passes)
    if isinstance(model, EmbeddedRewardModel):
        context = model.context
    return from_main_process(
        lambda: diagnose_rows([log], model.spec, heldout, labels_ignorable=labels_ignorable, context=context),
        distributed=distributed,
    )


def diagnose_rows(
    logs: Sequence[Log],
    spec: RewardSpec,
    heldout: HeldOut | None = None,
    *,
    labels_ignorable: bool = False,
    context: Sequence[str] = (),
) -> Diagnosis:
    """`diagnostics.diagnose` on the rows of logs whose signals are those of the spec, in its order.

    Args:
        logs: One log or more.
        spec: What the model explains.
        heldout: Predictions for the rows of the last log; None: what the logs alone show.
        labels_ignorable: Whether which rows have a label does not depend on the preference.
        context: The parts of the context that the model's propensities depend on, as of `diagnose`.
    """
    feedback, preference = (np.concatenate([getattr(log, name) for log in logs]) for name in ("feedback", "preference"))
    weight = np.concatenate([row_weights(log) for log in logs])
    reward, propensity = None, None
    if heldout is not None:
        reward, propensity = np.full(len(feedback), np.nan), np.full(feedback.shape, np.nan)
        last = len(feedback) - len(heldout.reward)
        reward[last:] = heldout.reward
        propensity[last:] = heldout.propensity[:, : feedback.shape[1]]  # without a signal there is a spare column
    return diagnose(
        feedback,
        signals=spec.signals,
        polarity=spec.polarity,
        misclick_rate=spec.misclick_rate,
        propensity_design=spec.design,
        reward_logits=reward,
        propensity_logits=propensity,
        preference=preference,
        labels_ignorable=labels_ignorable,
        weight=weight,
        users=joined(logs, "user_ids"),
        feature_names=spec.feature_names,
        propensity=joined(logs, "propensity"),
        sessions=joined(logs, "session_ids"),
        times=joined(logs, "times"),
        acted_at=joined(logs, "acted_at"),
        segments=joined(logs, "segments"),
        context=context,
    )


def joined(logs: Sequence[Log], name: str) -> Any:
    """Return a field of `Log` that may be None, or the segments, over the rows of several logs.

    Args:
        logs: One log or more, with the same signals in the same order.
        name: The name of the field.

    Returns:
        The names or the array of all rows, None or NaN in those of a log that lacks the field; None if all lack it. Of
        segments a mapping: each of any log, as such names.
    """
    values = [getattr(log, name) for log in logs]
    if name != "segments":
        return _end_to_end(values, logs)
    return {key: _end_to_end([entry.get(key) for entry in values], logs) for key in dict.fromkeys(chain(*values))}


def _end_to_end(values: Sequence[Any], logs: Sequence[Log]) -> Any:
    """Return the names or arrays of logs end to end, None or NaN for a log that has none; None if no log has one."""
    given = next((value for value in values if value is not None), None)
    pairs = list(zip(values, logs, strict=True))
    if given is None:
        return None
    if not isinstance(given, np.ndarray):
        names = Joined([[None] * len(log) if value is None else value for value, log in pairs])
        return None if all(entry is None for entry in names) else names
    return np.concatenate(
        [np.full((len(log), *given.shape[1:]), np.nan) if value is None else value for value, log in pairs]
    )


def _spec(log: Log, design: str) -> RewardSpec:
    count = len(log.signals)
    if design == "auto":
        given = log.propensity is not None and not np.isnan(log.propensity[log.feedback >= 0]).any()
        design = "known" if given and count else "constant" if count == 1 else "hidden"
    return RewardSpec(design, log.signals, log.polarity, (0.0,) * count, log.feature_names)
