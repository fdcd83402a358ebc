"""Score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from irm_fast.data.log import Log
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.models.batches import Collator
from irm_fast.models.reward_model import ImplicitRewardModel

if TYPE_CHECKING:
    from irm_fast.data.rows import Messages
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from irm_fast.embeddings.text_model import SOURCE
from irm_fast.losses.implicit import implicit_rm_loss
from irm_fast.models.batches import as_dataset
from irm_fast.models.packing import by_length
from irm_fast.models.record import read_record
from irm_fast.models.tokens import tokenise

RewardModel = ImplicitRewardModel | EmbeddedRewardModel


def load(directory: str | Path) -> RewardModel:
    """A saved reward model, on the GPU if there is one. Raises ValueError as `ImplicitRewardModel.load`."""
    if SOURCE in read_record(directory):
        return EmbeddedRewardModel.load(directory)
    return ImplicitRewardModel.load(directory).to("cuda" if torch.cuda.is_available() else "cpu")


def score(model: RewardModel, conversations: Sequence[Messages], *, batch_size: int = 32) -> np.ndarray:
    """Rewards (N,) float32 of conversations that end with the assistant's turn.

    Without the bias: the numbers of the checkpoint under `AutoModelForSequenceClassification`. Add
    `model.reward_bias` before the sigmoid to get the probability that the response is preferred.
    """
    if isinstance(model, EmbeddedRewardModel):
        return model.rewards(conversations, batch_size=batch_size)
    input_ids, _ = tokenise(model.tokenizer, conversations, model.spec.max_length)
    rewards = np.empty(len(input_ids), dtype=np.float32)
    for index, batch in _batches(model, [{"input_ids": row} for row in input_ids], batch_size):
        rewards[index] = model.score(model.pool(**batch)).cpu().numpy()
    return rewards


def predict_log(model: RewardModel, log: Log, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weighted losses (N,) and logits (N, 1 + K), as of `heldout_step`, of a log as `align` returns it."""
    if isinstance(model, EmbeddedRewardModel):
        return model.predict_log(log, batch_size)
    input_ids, _ = tokenise(model.tokenizer, log.messages, model.spec.max_length)
    losses, logits = (np.empty((len(log), *shape), np.float32) for shape in ((), (1 + model.spec.columns,)))
    for index, batch in _batches(model, as_dataset(log, input_ids).to_list(), batch_size):
        losses[index], logits[index] = (part.cpu().numpy() for part in heldout_step(model, model, batch))
    return losses, logits


def action_rates(core: RewardModel, logits: np.ndarray) -> np.ndarray:
    """Predicted action rates (N, K) of logits (N, 1 + K), as of `heldout_step`."""
    values = torch.from_numpy(logits)
    return core.spec.action_rates(values[:, 0], values[:, 1:]).numpy()


def heldout_step(model: Any, core: ImplicitRewardModel, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Weighted marginal loss (N,), and reward and propensity logits (N, 1 + K), of one batch.

    model: what to call, perhaps a distributed wrapper of `core`.
    """
    reward, propensity = model(**logit_inputs(batch))
    loss = implicit_rm_loss(
        reward,
        propensity,
        batch["feedback"],
        preference=batch["preference"],
        weight=batch["weight"],
        reduction="none",
        **core.spec.loss_options,
    )
    return loss, torch.cat([reward[:, None], propensity], dim=1)


def logit_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch a model reads to give logits rather than a loss."""
    rest = ("row", "counts", "feedback", "preference", "weight")
    return {name: value for name, value in batch.items() if name not in rest}


def _batches(
    model: ImplicitRewardModel, rows: Sequence[Mapping[str, Any]], batch_size: int
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """(row numbers, batch on the model's device), rows of similar length together, without gradients."""
    model.eval()
    with torch.no_grad(), model.attention():
        collate, device = Collator(model.tokenizer.pad_token_id, packed=model.packed), model.device
        for pack in by_length([len(row["input_ids"]) for row in rows], rows=batch_size):
            batch = collate([rows[i] for i in pack])
            del batch["counts"]
            yield np.array(pack), send_to_device(batch, device)
