"""A real log of paid workers, judged by their ratings: what actions taken for labels, ours, and no model at all rank.

`--log` is a folder with log.jsonl.gz, in our layout, and truth.jsonl.gz, a line a response: id, likert (1 to 5) and, of
judged pairs, preferred (1 or 0). Both are IFLLM (github.com/themehulpatwari/llm-implicit-feedback, Apache-2.0) in that
layout: 2,419 answers to 87 workers; `copied` (to copy one answer a task was a duty), `long_gaze`, `continued`.

"irm_fast, texts" is fitted to all that `irm-fast train --embeddings` passes: what can be seen of the text, users,
sessions and times. Every row is scored by models that have not seen its user. Intervals are of a bootstrap over users.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.data.features import text_features
from irm_fast.data.groups import numbered
from irm_fast.data.log import Log
from irm_fast.data.read import read_log
from irm_fast.diagnostics.metrics import reward_metrics
from irm_fast.diagnostics.within import alone_metrics, within_auroc
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.store import read_embeddings
from irm_fast.embeddings.text_model import propensity_features
from irm_fast.embeddings.writing import write_embeddings
from irm_fast.experiments.report import markdown_table

RESAMPLES, LEVEL = 1000, 0.95
FOLDS = 5
Figures = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # of rows and of the users that they count as


def ifllm(folder: Path, model: Path, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """Method -> its figures with intervals, in a list of one."""
    log, truth = read_ifllm(folder, cache.with_suffix(".jsonl"))
    if not cache.exists():
        write_embeddings(log.ids, log.messages, Embedder(model, max_length=256), cache, resume=True)
    X = read_embeddings(cache, log.ids, log.messages)
    return {name: [measured(logit, log, truth) | said] for name, (logit, said) in scores(X, log).items()}


def read_ifllm(folder: Path, repaired: Path) -> tuple[Log, dict[str, Any]]:
    """The log and its truth by id; a time of the year 0 becomes unknown."""
    rows, truth = (_lines(folder / f"{name}.jsonl.gz") for name in ("log", "truth"))
    rows = [row | {"timestamp": None if row["timestamp"] < "1970" else row["timestamp"]} for row in rows]
    repaired.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_log(repaired), {row["id"]: row for row in truth}


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def scores(X: np.ndarray, log: Log) -> dict[str, tuple[np.ndarray | None, dict[str, Any]]]:
    """Logits (N,) by method, of models that have not seen the row's user, and the diagnosis of each.

    None stands for the mean rating of the user's other rows, which is no model.
    """
    acted = (log.feedback == 1).any(axis=1).astype(int)
    users = numbered(log.user_ids or [])
    length = text_features(log.messages)[:, 0]
    naive = _of_labels(X, acted, users).held_out_decision_
    return {
        "naive: any action": (naive, {}),
        "naive, length taken out": (naive - np.polyfit(length, naive, 1)[0] * length, {}),
        "pairs (Bradley-Terry)": (_of_pairs(X, users, log), {}),
        "EmbeddingRewardModel()": _ours(X, log),
        "irm_fast, texts": _ours(X, log, propensity_features=propensity_features(log, "auto"), groups=log.groups()),
        "length alone": (length, {}),
        "user alone": (None, {}),
    }


def _of_labels(X: np.ndarray, label: np.ndarray, users: np.ndarray, **settings: Any) -> EmbeddingRewardModel:
    """A classifier of labels of 0 and 1."""
    silent = np.full((len(X), 1), -1)
    return EmbeddingRewardModel(propensity_design="known", random_state=0, **settings).fit(
        X, silent, preference=label, propensity=np.full(silent.shape, 0.5), groups=users
    )


def _of_pairs(X: np.ndarray, users: np.ndarray, log: Log) -> np.ndarray:
    """Linear Bradley-Terry: where a signal acted on one answer to a task and not on the other, that one is better."""
    one, other = np.array(list(_pairs(log))).T
    pair, _ = np.nonzero((log.feedback[one] == 1) & (log.feedback[other] == 0))
    better, worse = one[pair], other[pair]
    differences, fold = X[better] - X[worse], users % FOLDS
    logit, centred = np.empty(len(X), np.float32), X - X.mean(axis=0)  # pairs say nothing of the level
    for left_out in range(FOLDS):
        kept = fold[better] != left_out
        both = np.concatenate([differences[kept], -differences[kept]])
        label = np.repeat([1, 0], kept.sum())
        model = _of_labels(both, label, np.tile(users[better][kept], 2), hidden_layers=())
        logit[fold == left_out] = model.decision_function(centred[fold == left_out])
    return logit


def _ours(X: np.ndarray, log: Log, **passed: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """The estimator as it comes, with users, sessions and times, and what its diagnosis says."""
    model = EmbeddingRewardModel(random_state=0)
    model.fit(X, log.feedback, users=log.user_ids, sessions=log.session_ids, times=log.times, **passed)
    found = model.diagnosis_
    failed = [test.name for test in found.tests if test.result == "failed"]
    said = {"ranking": found.ranking, "scale": found.scale, "failed": failed, "verdict": found.verdict}
    said |= {"context": list(model.context_), "designs": list(model.propensity_designs_)}
    return model.held_out_decision_, said


def measured(logit: np.ndarray | None, log: Log, truth: Mapping[str, Any]) -> dict[str, Any]:
    """AUROC for the rating 5, pooled and within users, and the share of judged pairs in order, with intervals.

    Args:
        logit: Reward logits of shape (N,); None for the mean rating of the user's other rows.
        log: The log of N rows.
        truth: The ratings and preferences by id.
    """
    best = np.array([int(truth[name]["likert"] == 5) for name in log.ids])
    users = numbered(log.user_ids or [])
    pairs = [pair for pair in _pairs(log) if [truth[log.ids[row]]["preferred"] for row in pair] == [1, 0]]
    better, worse = np.array(pairs).T
    order = np.full(len(best), np.nan)  # of the better answer of each pair: 1 if it is ranked above the other
    order[better] = 0.5 if logit is None else (1 + np.sign(logit[better] - logit[worse])) / 2

    def figures(rows: np.ndarray, users: np.ndarray) -> dict[str, float]:
        if logit is None:
            ranked = {"auroc": alone_metrics("user", best[rows], users)["auroc_user_alone"], "auroc_within_users": 0.5}
        else:
            ranked = {
                "auroc": reward_metrics(logit[rows], best[rows])["auroc"],
                "auroc_within_users": within_auroc(logit[rows], best[rows], users),
            }
        return ranked | {"pair_accuracy": float(np.nanmean(order[rows]))}

    return figures(np.arange(len(best)), users) | _intervals(figures, users) | {"pairs": len(pairs)}


def _intervals(figures: Figures, users: np.ndarray) -> dict[str, list[float]]:
    """Percentile intervals of figures over resamples of users; one that is drawn twice counts as two."""
    rng, rows_of = np.random.default_rng(0), [np.flatnonzero(users == user) for user in range(users.max() + 1)]
    found = []
    for _ in range(RESAMPLES):
        drawn = [rows_of[user] for user in rng.integers(len(rows_of), size=len(rows_of))]
        found.append(figures(np.concatenate(drawn), np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])))
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {f"{name}_interval": np.quantile([one[name] for one in found], ends).tolist() for name in found[0]}


def _pairs(log: Log) -> Iterator[tuple[int, int]]:
    """The rows of two answers to one task, each pair in both orders."""
    place = {name: row for row, name in enumerate(log.ids)}
    for name, row in place.items():
        if (other := place.get(_partner(name))) is not None:
            yield row, other


def _partner(name: str) -> str:
    """The id of the other answer of a pair: 7-2 of 7-1."""
    task, _, answer = name.rpartition("-")
    return f"{task}-{3 - int(answer)}"


def ifllm_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A Markdown table with a row for each method and its intervals, and what the diagnosis says."""
    keys = {
        "auroc": "AUROC, Likert 5",
        "auroc_within_users": "the same within users",
        "pair_accuracy": "pairs in order",
    }
    lines = [["method", *keys.values()]]
    for name, (figures,) in found.items():
        intervals = [figures[f"{key}_interval"] for key in keys]
        cells = [
            f"{figures[key]:.3f} ({low:.3f} to {high:.3f})" for key, (low, high) in zip(keys, intervals, strict=True)
        ]
        lines.append([name, *cells])
    said = [
        f"{name}: {figures['verdict']}; failed: {figures['failed']}"
        for name, (figures,) in found.items()
        if "verdict" in figures
    ]
    return "\n".join([markdown_table(lines), *said])
