"""A real log of paid workers, judged by their ratings: what naive, ours, the user alone and the length alone rank.

`--log` is a folder with log.jsonl.gz, in our layout, and truth.jsonl.gz, a line a response: id, likert (1 to 5) and, of
judged pairs, preferred (1 or 0). Both are IFLLM (github.com/themehulpatwari/llm-implicit-feedback, Apache-2.0) in that
layout: 2,419 answers to 87 workers; `copied` (to copy one answer a task was a duty), `long_gaze`, `continued`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.data.groups import numbered
from irm_fast.data.log import Log
from irm_fast.data.read import read_log
from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.diagnostics.within import alone_metrics, within_auroc
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.store import read_embeddings
from irm_fast.embeddings.writing import write_embeddings
from irm_fast.experiments.report import markdown_table


def ifllm(folder: Path, model: Path, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """Method -> its figures, in a list of one."""
    log, truth = _read(folder, cache.with_suffix(".jsonl"))
    if not cache.exists():
        write_embeddings(log.ids, log.messages, Embedder(model, max_length=256), cache, resume=True)
    X = read_embeddings(cache, log.ids, log.messages)
    users = numbered(log.user_ids or [])
    best = np.array([int(truth[name]["likert"] == 5) for name in log.ids])
    found = {
        name: [_measured(logit, best, users, log, truth) | said] for name, (logit, said) in _scores(X, log).items()
    }
    pooled = alone_metrics("user", best, users)["auroc_user_alone"]
    return found | {"user alone": [{"auroc": pooled, "auroc_within_users": 0.5, "pair_accuracy": 0.5}]}


def _read(folder: Path, repaired: Path) -> tuple[Log, dict[str, Any]]:
    """The log and its truth by id; a time of the year 0 becomes unknown."""
    rows, truth = (_lines(folder / f"{name}.jsonl.gz") for name in ("log", "truth"))
    rows = [row | {"timestamp": None if row["timestamp"] < "1970" else row["timestamp"]} for row in rows]
    repaired.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_log(repaired), {row["id"]: row for row in truth}


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _scores(X: np.ndarray, log: Log) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Logits (N,) by method, of models that have not seen the row's user, and the diagnosis of each."""
    context = {"users": log.user_ids, "sessions": log.session_ids, "times": log.times}
    any_acted = (log.feedback == 1).any(axis=1).astype(int)
    naive = EmbeddingRewardModel(propensity_design="known", random_state=0).fit(
        X,
        np.full_like(log.feedback, -1),
        preference=any_acted,
        propensity=np.full(log.feedback.shape, 0.5),
        groups=log.user_ids,
    )
    ours = EmbeddingRewardModel(random_state=0).fit(X, log.feedback, **context)
    found = ours.diagnosis_
    failed = [test.name for test in found.tests if test.result == "failed"]
    said = {"ranking": found.ranking, "scale": found.scale, "failed": failed, "verdict": found.verdict}
    length = np.array([len(messages[-1]["content"]) for messages in log.messages], float)
    return {
        "naive: any action": (naive.held_out_decision_, {}),
        "EmbeddingRewardModel()": (ours.held_out_decision_, said | {"context": list(ours.context_)}),
        "length alone": (length, {}),
    }


def _measured(
    logit: np.ndarray, best: np.ndarray, users: np.ndarray, log: Log, truth: Mapping[str, Any]
) -> dict[str, float]:
    """AUROC for the rating 5, pooled and within users, and the share of judged pairs in order."""
    place = {name: row for row, name in enumerate(log.ids)}
    chosen = [row for name, row in place.items() if truth[name]["preferred"] == 1]
    pairs = [(row, other) for row in chosen if (other := place.get(_partner(log.ids[row]))) is not None]
    pairs = [(row, other) for row, other in pairs if truth[log.ids[other]]["preferred"] == 0]
    better, worse = np.array(pairs).T
    right = (logit[better] > logit[worse]) + 0.5 * (logit[better] == logit[worse])
    return {
        "auroc": reward_metrics(logit, best)["auroc"],
        "auroc_within_users": within_auroc(logit, best, users),
        "pair_accuracy": float(right.mean()),
        "pairs": len(pairs),
    }


def _partner(name: str) -> str:
    """The id of the other answer of a pair: 7-2 of 7-1."""
    task, _, answer = name.rpartition("-")
    return f"{task}-{3 - int(answer)}"


def ifllm_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A Markdown table with a row for each method, and what the diagnosis says."""
    keys = {
        "auroc": "AUROC, Likert 5",
        "auroc_within_users": "the same within users",
        "pair_accuracy": "pairs in order",
    }
    lines = [["method", *keys.values()]]
    lines += [[name, *(f"{figures[key]:.3f}" for key in keys)] for name, (figures,) in found.items()]
    said = [
        f"{name}: {figures['verdict']}; failed: {figures['failed']}"
        for name, (figures,) in found.items()
        if "verdict" in figures
    ]
    return "\n".join([markdown_table(lines), *said])
