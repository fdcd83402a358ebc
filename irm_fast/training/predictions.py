"""Predictions of a model while it is trained, by all processes: for the held-out part, and for some rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from irm_fast.diagnostics.learned import constant_in_words, is_constant
from irm_fast.evaluation.scoring import heldout_step
from irm_fast.models.heldout import HeldOut
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.watch import ids_in_words

SAMPLE = 64  # rows by which a reward that does not vary is told


def predict_rows(
    model: Any, core: ImplicitRewardModel, batches: Iterable[Mapping[str, Any]], each: Callable[[], None] | None = None
) -> dict[str, np.ndarray]:
    """What a model predicts for the rows of all processes, in the order of their numbers, without fillers.

    Args:
        model: What to call: `core`, or a distributed wrapper of it.
        core: The model itself.
        batches: The batches of this process. Every process has to call this.
        each: Is called after each batch.

    Returns:
        `loss`, `weight` and `reward`, (N,); `propensity` and `feedback`, (N, K); `row`, the numbers, (N,).
    """
    model = model.eval()
    parts: list[dict[str, np.ndarray]] = []
    for batch in batches:
        loss, reward, propensity = heldout_step(model, core, batch)
        columns = {"loss": loss, "weight": batch["weight"], "reward": reward, "propensity": propensity}
        columns |= {"row": batch["row"], "feedback": batch["feedback"]}
        parts.append({name: column.cpu().double().numpy() for name, column in columns.items()})
        if each is not None:
            each()
    gathered = gather_object(parts)
    table = {name: np.concatenate([part[name] for part in gathered]) for name in gathered[0]}
    order = np.argsort(table["row"], kind="stable")
    order = order[table["row"][order] >= 0]
    return {name: values[order] for name, values in table.items()}


def check_heldout(heldout: HeldOut, step: int, name: Callable[[int], str] | None) -> None:
    """Check that held-out losses and rewards are finite.

    Args:
        heldout: The predictions.
        step: The number of the step after which they were made, for the error.
        name: Gives the id of a held-out row by its number, or None.

    Raises:
        RuntimeError: Some are not.
    """
    rows = np.flatnonzero(~np.isfinite(heldout.loss + heldout.reward))
    if len(rows):
        raise RuntimeError(
            f"training diverged: after step {step} the held-out loss of {len(rows)} of {len(heldout.loss)} rows is not "
            f"finite: {ids_in_words(rows, name)}; lower learning_rate or head_learning_rate, and start anew with "
            "--overwrite"
        )


def check_reward_varies(reward: np.ndarray, learning_rate: float, max_length: int) -> None:
    """Check that rewards differ between rows.

    Args:
        reward: Reward logits of some rows, (N,).
        learning_rate: The peak learning rate, for the error.
        max_length: The limit of tokens of a row, likewise.

    Raises:
        RuntimeError: They are all the same.
    """
    if len(reward) > 1 and is_constant(reward):
        raise RuntimeError(
            f"training: {constant_in_words(reward)}: the model has learned nothing, or forgotten what it knew. Nothing "
            f"was saved. Lower learning_rate ({learning_rate:g}) and head_learning_rate; raise max_length "
            f"({max_length}) if the rows lose what they differ in; look whether the responses differ. Then start anew "
            "with --overwrite"
        )
