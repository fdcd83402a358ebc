"""How good a reward model is: against clean ratings, or, where only a log exists, by held-out likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irm_fast.data.groups import group_numbers, numbered, prompt_numbers, user_or_prompt
from irm_fast.data.log import Log
from irm_fast.data.rated import Rated, check_both
from irm_fast.data.read import read_log_or_rated
from irm_fast.data.signals import RewardSpec, align
from irm_fast.diagnostics.intervals import ranking_intervals
from irm_fast.diagnostics.metrics import operating_points, reward_metrics
from irm_fast.diagnostics.within import alone_metrics, within_auroc
from irm_fast.evaluation.propensities import with_propensities
from irm_fast.evaluation.scoring import (
    RewardModel,
    check_predicted,
    check_texts,
    declared_for,
    load,
    predict_log,
    rewards,
)
from irm_fast.models.heldout import HeldOut
from irm_fast.models.passes import Passes


def evaluate(
    model_dir: str | Path,
    data: str | Path,
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    precision: str = "auto",
    base: str | Path | None = None,
    declared: Mapping[str, Any] | None = None,
    distributed: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Metrics of a saved model on a file: of rated responses or pairs, or of a log of feedback.

    A log is a file in which any row has a field that only logs have: feedback, weight, features, session_id, ...

    Args:
        model_dir: The folder of the model.
        data: The path of the file.
        batch_size: The number of conversations per forward pass, at most. None: no limit.
        token_budget: The number of tokens per forward pass, at most. None: 16,384 on a GPU, and 2,048 on a CPU.
        precision: The precision of the language model, as of `load`.
        base: The untrained language model, as of `propensities.with_propensities`; rated rows need none.
        declared: How a log is to be read, as of `scoring.declared_for`.
        distributed: Whether all processes of a torchrun share the rows; each gets the metrics of all.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Returns:
        Numbers by name. Of rated responses: `auroc`, `nll`, `ece`, `mae`, `rmse` and `r2` of the probability of
        preference, `pair_accuracy` of pairs, intervals of the ranking, and what the length of the response, the user or
        the model alone reach. Of a log: `nll`, the mean negative log-likelihood of the feedback in nats a row, and for
        each signal `NAME_observed` and `NAME_predicted`, its rates. `n` is the number of rows in either case.

    Raises:
        ValueError: What is no saved model, no readable data, rated rows that are all of one kind, or a log that
            lacks a signal of the model's; or as `with_propensities`.

    Examples:
        >>> import irm_fast
        >>> measured = irm_fast.evaluate("reward_model", "rated.jsonl")  # doctest: +SKIP
        >>> print(f"{measured['auroc']:.2f}")  # doctest: +SKIP
        0.87
    """
    model, passes = load(model_dir, precision=precision), Passes(batch_size, token_budget, distributed, progress)
    found = read_log_or_rated(data, declared_for(model_dir, declared))
    if isinstance(found, Log):
        log, _ = with_propensities(align(found, model.spec), model.spec, model_dir, base=base, passes=passes)
        return _log_metrics(model, log, passes)
    check_both(found)
    return evaluate_rated(model, found, passes)


def evaluate_rated(model: RewardModel, rated: Rated, passes: Passes | None = None) -> dict[str, float]:
    """Measure reward plus bias against the clean preference, as `rated_metrics` does.

    Args:
        model: The model.
        rated: N rated responses.
        passes: How they go through the model. None: `Passes()`.
    """
    check_texts(model, rated.ids, rated.messages)
    logit = rewards(model, rated.messages, passes or Passes())["reward"] + float(model.reward_bias.detach())
    check_predicted(rated.ids, logit)
    return rated_metrics(logit, rated)


def rated_metrics(logit: np.ndarray, rated: Rated) -> dict[str, float]:
    """Measure reward logits against clean preferences: pooled, with intervals, within groups, and beside simple lines.

    Args:
        logit: Reward logits of shape (N,).
        rated: The same N responses.

    Returns:
        The keys of `metrics.reward_metrics`; of `intervals.ranking_intervals`, over users, and of rows without one
        over prompts; auroc_within_user and auroc_within_prompt where a user or a prompt has rows of both kinds;
        and what the user alone, the model alone and the length of the response alone reach, as
        auroc_{user,model,length}_alone and pair_accuracy_{user,model,length}_alone, where the rows have these.
    """
    prompts = prompt_numbers(rated.messages)
    columns = {"user": rated.user_ids, "model": rated.models}
    named = {name: numbered(names) for name, names in columns.items() if names is not None} | {"prompt": prompts}
    together = group_numbers(user_or_prompt(rated.user_ids, prompts), rated.pair)
    metrics = reward_metrics(logit, rated.preference, rated.pair)
    metrics |= ranking_intervals(logit, rated.preference, together, rated.pair)
    for name in ("user", "prompt"):
        if name in named and not math.isnan(inside := within_auroc(logit, rated.preference, named[name])):
            metrics[f"auroc_within_{name}"] = inside
    for name in ("user", "model"):
        if name in named:
            metrics |= alone_metrics(name, rated.preference, named[name], rated.pair)
    lengths = np.array([len(messages[-1]["content"]) for messages in rated.messages], np.float64)
    of_length = reward_metrics(lengths, rated.preference, rated.pair)
    return metrics | {f"{key}_length_alone": of_length[key] for key in ("auroc", "pair_accuracy") if key in of_length}


def evaluate_log(model: RewardModel, log: Log, passes: Passes | None = None) -> dict[str, float]:
    """Held-out likelihood and calibration on a log: the keys of `heldout_metrics`, and `n`.

    And operating points: `copy_lost_hiding_0.1` is the share of the copies that would be lost if the tenth of the
    responses with the lowest rewards were hidden (`diagnostics.metrics.operating_points`).
    """
    return _log_metrics(model, align(log, model.spec), passes or Passes())


@torch.no_grad()
def _log_metrics(model: RewardModel, log: Log, passes: Passes) -> dict[str, float]:
    """`evaluate_log` of a log as `align` returns it."""
    predicted = predict_log(model, log, passes)
    lost = {
        f"{name}_lost_hiding_{point['hidden']:g}": share
        for point in operating_points(predicted.reward, log.feedback)
        for name, share in zip(log.signals, point["lost"], strict=True)
    }
    return {**heldout_metrics(model.spec, predicted, log.feedback), **lost, "n": len(log)}


def heldout_metrics(spec: RewardSpec, heldout: HeldOut, feedback: np.ndarray) -> dict[str, float]:
    """`nll`, the implicit negative log-likelihood per example, and observed and predicted rates per signal.

    The rates are means over the rows in which the signal is recorded, NaN where there is none.

    Args:
        spec: What the model explains, with K signals.
        heldout: Predictions for N rows.
        feedback: (N, K) of the same rows.
    """
    metrics = {"nll": float(heldout.loss.sum(dtype=np.float64) / heldout.weight.sum(dtype=np.float64))}
    logits = (torch.as_tensor(values, dtype=torch.float32) for values in (heldout.reward, heldout.propensity))
    rates = spec.action_rates(*logits).numpy()
    for k, name in enumerate(spec.signals):
        recorded = feedback[:, k] >= 0
        observed, predicted = feedback[recorded, k], rates[recorded, k]
        metrics[f"{name}_observed"] = float(observed.mean()) if recorded.any() else float("nan")
        metrics[f"{name}_predicted"] = float(predicted.mean()) if recorded.any() else float("nan")
    return metrics
