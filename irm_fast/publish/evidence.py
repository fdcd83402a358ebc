"""What a run keeps for its report: what the predictions for held-out rows show, without any text.

It is made once, at the end of a training, where log and predictions are at hand, and is written beside the model as
`report.json`. It holds neither texts nor ids: an answer is named by a hash, by which who has the log finds it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from irm_fast.data.groups import number_prompts, user_or_prompt
from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.data.signals import RewardSpec
from irm_fast.diagnostics.intervals import ranking_intervals
from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.diagnostics.result import as_json
from irm_fast.evaluation.scoring import row_weights
from irm_fast.losses.group_masses import group_sums, shares
from irm_fast.models.heldout import HeldOut
from irm_fast.publish.exploits import exploits_of

FORMAT = 1
BINS = 24
ANSWERS = 5  # of the best, and of the worst
SAMPLE = 20_000  # rows whose texts are looked at, at most
MANY = 200_000  # rows of the histograms and their intervals, at most


def evidence_of(log: Log, spec: RewardSpec, predicted: HeldOut | None, *, seed: int = 0) -> dict[str, Any]:
    """Gather what a report shows of a model's predictions for the held-out part of a log.

    Args:
        log: The held-out part, with the signals of the spec in its order.
        spec: What the model explains.
        predicted: Predictions for its rows, or None where nothing is held out; `log` is not read then.
        seed: The seed of the draw of rows whose texts are looked at, where they are many.

    Returns:
        What JSON can hold: format, and heldout, which is None without predictions.
    """
    heldout = None if predicted is None else _heldout_of(log, spec, predicted, seed)
    plain: dict[str, Any] = as_json({"format": FORMAT, "heldout": heldout})
    return plain


def answer_key(name: str, messages: Messages) -> str:
    """Return a hash of a row, of its id and all it says, by which who has the log finds it."""
    text = json.dumps([name, messages], sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _heldout_of(log: Log, spec: RewardSpec, predicted: HeldOut, seed: int) -> dict[str, Any]:
    """Gather what predictions for the rows of a log show; rows of weight 0 are left out, and of many some are drawn."""
    counted = np.flatnonzero(row_weights(log) > 0)
    rows = np.random.default_rng(seed).permutation(counted)
    some, few = np.sort(rows[:MANY]), np.sort(rows[:SAMPLE])
    drawn, read = log.subset(some), log.subset(few)
    of_drawn, of_read = (HeldOut(*(column[index] for column in predicted)) for index in (some, few))
    return {
        "rows": len(counted),
        "reward": _rewards_by_action(drawn, of_drawn.reward, _clusters(drawn)),
        "propensity": list(_propensities(drawn, spec, of_drawn)),
        "groups": _groups(drawn, spec, of_drawn),
        "exploits": exploits_of(read, of_read, _clusters(read)),
        "answers": _answers(log, predicted.reward, counted),
    }


def _clusters(log: Log) -> np.ndarray:
    """Return numbers, (N,), equal for rows of one user; a row without a user belongs to its prompt."""
    return user_or_prompt(log.user_ids, number_prompts(log.messages).prompts)


def _rewards_by_action(log: Log, reward: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    """Return histograms of the reward logits, of all rows and of each signal's acted and silent rows."""
    low, high = np.quantile(reward, [0.002, 0.998]).astype(float)
    high = high if high > low else low + 1e-6
    edges = np.linspace(low, high, BINS + 1)
    inside = np.clip(reward, low, high)

    def histogram(mask: np.ndarray) -> list[int]:
        counts: list[int] = np.histogram(inside[mask], edges)[0].tolist()
        return counts

    signals = []
    for k, name in enumerate(log.signals):
        acted, silent = log.feedback[:, k] == 1, log.feedback[:, k] == 0
        both = acted | silent
        entry: dict[str, Any] = {"name": name, "acted": histogram(acted), "silent": histogram(silent)}
        if acted.any() and silent.any():
            entry["auroc"] = reward_metrics(reward[both], log.feedback[both, k])["auroc"]
            groups = np.unique(clusters[both], return_inverse=True)[1]
            entry |= ranking_intervals(reward[both], log.feedback[both, k], groups, level=0.95)
        signals.append(entry)
    return {
        "edges": edges.tolist(),
        "mean": float(reward.mean()),
        "sd": float(reward.std()),
        "all": histogram(np.ones(len(reward), bool)),
        "signals": signals,
    }


def _groups(log: Log, spec: RewardSpec, predicted: HeldOut) -> dict[str, list[float]]:
    """Return the shares of the four groups of each signal that a row records, by what the model alone tells."""
    if not spec.signals:
        return {}
    reward, propensity = (
        torch.as_tensor(values, dtype=torch.float32) for values in (predicted.reward, predicted.propensity)
    )
    weight = torch.as_tensor(row_weights(log))
    return shares(
        spec.signals, group_sums(reward, propensity, torch.as_tensor(log.feedback), weight, spec.loss_options)
    )


def _propensities(log: Log, spec: RewardSpec, predicted: HeldOut) -> Iterator[dict[str, Any]]:
    """Yield a histogram of the predicted propensities of each signal in the rows that record it."""
    for k, name in enumerate(spec.signals):
        logits = predicted.propensity[log.feedback[:, k] >= 0, k].astype(np.float64)
        chance = 1 / (1 + np.exp(-logits[np.isfinite(logits)]))
        if not len(chance):
            continue
        top = min(1.0, np.ceil(20 * float(chance.max())) / 20)
        counts, edges = np.histogram(chance, BINS, (0.0, top))
        quantiles = np.quantile(chance, [0.05, 0.5, 0.95]).tolist()
        yield {"name": name, "edges": edges.tolist(), "counts": counts.tolist(), "quantiles": quantiles}


def _answers(log: Log, reward: np.ndarray, rows: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Return the answers of the highest and of the lowest rewards of some rows, each text once, by their hashes."""
    order = rows[np.argsort(reward[rows], kind="stable")]
    return {"best": _first_different(log, reward, order[::-1]), "worst": _first_different(log, reward, order)}


def _first_different(log: Log, reward: np.ndarray, order: np.ndarray) -> list[dict[str, Any]]:
    """Return the first rows in an order whose responses differ, and of the signals what they recorded."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for row in order[: 50 * ANSWERS]:
        messages = log.messages[row]
        if messages[-1]["content"] in seen:
            continue
        seen.add(messages[-1]["content"])
        marks = {name: int(log.feedback[row, k]) for k, name in enumerate(log.signals) if log.feedback[row, k] >= 0}
        key = answer_key(log.ids[row], messages)
        found.append({"key": key, "reward": float(reward[row]), "feedback": marks})
        if len(found) == ANSWERS:
            break
    return found
