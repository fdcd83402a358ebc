"""Which rows of a log to have rated: drawn with known probabilities, favouring those on which a label says most."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.data.writing.whole import whole_file
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.scoring import RewardModel, row_weights
from irm_fast.models.passes import Passes

LEAST_SHARE = 0.2  # of the mean probability: no row has less, so that no label weighs more than five usual ones


def rows_to_label(
    model: RewardModel,
    log: Log,
    count: int,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    distributed: bool = False,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows to have rated, the more likely the further the answers that the log allows differ on them.

    The draw reads the responses, not the preference, and its probabilities are known: so the labels are ignorable, and
    1 / probability says how many rows each stands for. `EmbeddingRewardModel.predict_disagreement` has the measure. A
    model that was trained end to end has none: all rows are then equally likely, and a warning says so.

    Args:
        model: The model.
        log: N rows. Those with a preference, and those of weight 0, are not drawn.
        count: The number of rows to draw.
        seed: The seed of the draw.
        batch_size: The number of conversations per forward pass, at most. None: no limit but the token budget.
        token_budget: The number of tokens per forward pass, at most. None: 16,384 on a GPU, and 2,048 on a CPU.
        distributed: Whether all processes of a torchrun share the rows; each gets the same draw.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Returns:
        Row numbers (int64) of shape (count,), in random order, so that the first m of them are a draw, too; and the
        probabilities (float64) in (0, 1] with which these rows were drawn, of shape (count,).

    Raises:
        ValueError: There are fewer rows to draw from, or the model is of a version that measures no disagreement.

    Examples:
        >>> rows, probability = rows_to_label(irm_fast.load("reward_model"), log, 100)  # doctest: +SKIP
    """
    unlabelled = np.flatnonzero((log.preference < 0) & (row_weights(log) > 0))
    if not 1 <= count <= len(unlabelled):
        raise ValueError(f"next: got {count}; expected 1 to {len(unlabelled)}, the rows without a preference")
    if isinstance(model, EmbeddedRewardModel):
        passes = Passes(batch_size, token_budget, distributed, progress)
        apart = model.disagreement([log.messages[row] for row in unlabelled.tolist()], passes)
    else:
        apart = np.zeros(len(unlabelled))
        warn_caller(
            "all rows are equally likely: a model that was trained end to end keeps no candidates that could disagree; "
            "irm-fast train --embeddings fits a model that does"
        )
    probability = inclusion_probabilities(apart, count)
    drawn = draw(probability, seed)
    return unlabelled[drawn], probability[drawn]


def inclusion_probabilities(apart: np.ndarray, count: int) -> np.ndarray:
    """Return probabilities (float64) of shape (n,) in (0, 1], with the sum `count`, proportional to floor plus size.

    The floor gives every row at least `LEAST_SHARE` of the mean probability. Rows that would exceed 1 are drawn for
    certain, and the others share what is left.

    Args:
        apart: The sizes, numbers of at least 0, of shape (n,).
        count: The number of rows to draw, at most n.
    """
    mean = float(apart.mean(dtype=np.float64))
    size = apart.astype(np.float64) + (mean * LEAST_SHARE / (1 - LEAST_SHARE) if mean > 0 else 1.0)
    certain = np.zeros(len(size), bool)
    while True:
        probability = np.where(certain, 1.0, size * (count - certain.sum()) / max(size[~certain].sum(), 1e-300))
        if not (probability > 1).any():
            return probability
        certain |= probability >= 1


def draw(probability: np.ndarray, seed: int) -> np.ndarray:
    """Draw numbers of rows, each with its own probability: systematically, along rows in random order.

    Args:
        probability: Probabilities in (0, 1] of shape (n,), whose sum is a whole number.
        seed: The seed of the draw.

    Returns:
        As many numbers (int64) as the sum, all different, in random order.

    Source:
        Madow, On the theory of systematic sampling II, Annals of Mathematical Statistics 20 (1949).
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(probability))
    ends = np.cumsum(probability[order])
    count = round(ends[-1])
    ticks = (random.random() + np.arange(count)) * ends[-1] / count
    return random.permutation(order[np.searchsorted(ends, ticks, side="right")])


def write_labels(path: Path, log: Log, rows: np.ndarray, probability: np.ndarray) -> None:
    """Write rows to have rated as JSON Lines, with the preference to fill in; `read_log` reads the file once it is.

    Args:
        path: The file. One of this name is replaced.
        log: The log.
        rows: The row numbers of `rows_to_label`.
        probability: Their probabilities.
    """
    with whole_file(path) as file:
        for row, chance in zip(rows.tolist(), probability.tolist(), strict=True):
            line = {"id": log.ids[row], **_text(log.messages[row]), "label_probability": chance, "preference": None}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _text(messages: Messages) -> dict[str, Any]:
    """Return a conversation as the fields of a log: prompt and completion, or where tools took turns all messages."""
    *before, last = messages
    if before[-1]["role"] not in ("user", "system"):
        return {"messages": messages}
    return {"prompt": _prompt(before), "completion": last["content"]}


def _prompt(turns: Sequence[dict[str, str]]) -> Any:
    """Return the turns before the response, as text if a user's question is all there is."""
    return turns[0]["content"] if [turn["role"] for turn in turns] == ["user"] else turns
