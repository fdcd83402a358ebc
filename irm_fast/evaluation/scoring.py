"""Rewards and held-out predictions of saved models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from irm_fast.data.log import Log
from irm_fast.data.rows import Messages
from irm_fast.embeddings.text_model import SOURCE, EmbeddedRewardModel
from irm_fast.losses.implicit import implicit_rm_loss
from irm_fast.models.batches import Collator, TokenizedRows
from irm_fast.models.heldout import HeldOut
from irm_fast.models.packed import packed_attention
from irm_fast.models.packing import by_length
from irm_fast.models.record import read_record
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.tokens import tokenise

RewardModel = ImplicitRewardModel | EmbeddedRewardModel


def load(directory: str | Path) -> RewardModel:
    """A saved reward model, on the GPU if there is one. Raises ValueError as `ImplicitRewardModel.load`."""
    if SOURCE in read_record(directory):
        return EmbeddedRewardModel.load(directory)
    return ImplicitRewardModel.load(directory).to("cuda" if torch.cuda.is_available() else "cpu")


@overload
def score(
    model: RewardModel, conversations: Sequence[Messages], *, batch_size: int = 32, lower: None = None
) -> np.ndarray: ...
@overload
def score(
    model: RewardModel, conversations: Sequence[Messages], *, batch_size: int = 32, lower: float
) -> tuple[np.ndarray, np.ndarray]: ...
def score(
    model: RewardModel, conversations: Sequence[Messages], *, batch_size: int = 32, lower: float | None = None
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Return the rewards of conversations.

    They are without the bias: the numbers of the checkpoint under `AutoModelForSequenceClassification`. Add
    `model.reward_bias` before the sigmoid to get the probability that the response is preferred.

    Args:
        model: The model.
        conversations: N lists of messages, each of which ends with the assistant's turn.
        batch_size: The number of conversations per forward pass.
        lower: A probability in (0, 0.5), with which the true reward lies below a lower reward that is returned, too;
            see `EmbeddingRewardModel.predict_interval`. None returns rewards alone.

    Returns:
        Rewards (float32) of shape (N,); with `lower` a pair, the rewards and the lower rewards.

    Raises:
        ValueError: `lower` is out of range, or there are no intervals: the model was not trained on embeddings, its
            reward is a network, or it was saved by an earlier version.
    """
    if isinstance(model, EmbeddedRewardModel):
        return model.rewards(conversations, batch_size=batch_size, lower=lower)
    if lower is not None:
        raise ValueError(
            "lower: the model was trained end to end, and no sampling distribution of its rewards is known; expected a "
            "model of irm-fast train --embeddings: train one on the same log, or leave lower out"
        )
    input_ids, _ = tokenise(model.tokenizer, conversations, model.spec.max_length)
    rewards = np.empty(len(input_ids), dtype=np.float32)
    for index, batch in _batches(model, TokenizedRows(input_ids), batch_size):
        rewards[index] = model.score(model.pool(**batch)).cpu().numpy()
    return rewards


def predict_log(model: RewardModel, log: Log, batch_size: int) -> HeldOut:
    """Predictions of a model for a log as `align` returns it."""
    if isinstance(model, EmbeddedRewardModel):
        return model.predict_log(log, batch_size)
    input_ids, _ = tokenise(model.tokenizer, log.messages, model.spec.max_length)
    rows, columns = len(log), model.spec.columns
    loss, reward, propensity = (np.empty((rows, *shape), np.float32) for shape in ((), (), (columns,)))
    for index, batch in _batches(model, TokenizedRows.from_log(log, input_ids), batch_size):
        step = heldout_step(model, model, batch)
        loss[index], reward[index], propensity[index] = (part.cpu().numpy() for part in step)
    return HeldOut(loss, row_weights(log), reward, propensity)


def row_weights(log: Log) -> np.ndarray:
    """Weights (N,) of the rows, 1 where the log has none."""
    return np.ones(len(log)) if log.weight is None else log.weight


@torch.no_grad()
def heldout_step(
    model: Callable[..., Any], core: ImplicitRewardModel, batch: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted marginal loss (N,), reward logits (N,) and propensity logits (N, K) of one batch.

    Args:
        model: What to call: `core`, or a distributed wrapper of it.
        core: The model itself.
        batch: A batch of the collator.
    """
    reward, propensity = model("logits", **logit_inputs(batch))
    loss = implicit_rm_loss(
        reward,
        propensity,
        batch["feedback"],
        preference=batch["preference"],
        weight=batch["weight"],
        reduction="none",
        **core.spec.loss_options,
    )
    return loss.detach(), reward.detach(), propensity.detach()


def logit_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch a model reads to give logits rather than a loss."""
    rest = ("row", "counts", "feedback", "preference", "weight", "margin")
    return {name: value for name, value in batch.items() if name not in rest}


def _batches(
    model: ImplicitRewardModel, rows: TokenizedRows, batch_size: int
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """(row numbers, batch on the model's device), rows of similar length together, without gradients."""
    model.eval()
    with torch.no_grad(), packed_attention(model):
        collate, device = Collator(model.tokenizer.pad_token_id, packed=model.packed), model.device
        for pack in by_length(rows.lengths, rows=batch_size):
            batch = collate(rows.__getitems__(pack))
            del batch["counts"]
            yield np.array(pack), send_to_device(batch, device)
