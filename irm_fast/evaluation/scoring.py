"""Rewards and held-out predictions of saved models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from irm_fast.common.extras import need
from irm_fast.common.warning import warn_caller
from irm_fast.data.declarations import Declarations
from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.data.problems import row_named
from irm_fast.embeddings.text_model import SOURCE, EmbeddedRewardModel
from irm_fast.losses.implicit import implicit_rm_loss
from irm_fast.models.batches import Collator, TokenizedRows
from irm_fast.models.heldout import HeldOut
from irm_fast.models.packed import packed_attention
from irm_fast.models.passes import Passes, default_device, resolve_precision
from irm_fast.models.record import RECORD, read_record
from irm_fast.models.rendering import RenderingCheck
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.tokens import tokenise

for package in ("transformers", "accelerate"):  # imported by functions of models
    need(package, "irm_fast.evaluation.scoring")
SHOWN = 10  # rows in a message
RewardModel = ImplicitRewardModel | EmbeddedRewardModel


def declared_for(directory: str | Path, declared: Mapping[str, Any] | None = None) -> Declarations:
    """How a log is to be read for a saved model: as that which it was trained on, but for what is declared anew.

    What its signals mean, the model knows, and rows may contradict themselves where its misclick rates allow it.

    Args:
        directory: The folder of the model.
        declared: By the names of the arguments of `read_log`; None stands for what the model was trained with.
    """
    trained = read_record(directory).get("training") or {}
    new = {name: value for name, value in (declared or {}).items() if value is not None}
    told = {**trained, "polarity": None, "on_error": "fail"}
    try:
        Declarations.of_settings(told)
    except ValueError as error:
        raise ValueError(f"{Path(directory) / RECORD}: training: {error}") from None
    return Declarations.of_settings({**told, **new}, misclick=True, of_model=True)


def load(directory: str | Path, *, precision: str = "auto") -> RewardModel:
    """A saved reward model, on the GPU if there is one.

    Args:
        directory: A folder that `irm-fast train` wrote.
        precision: The precision of the language model: "float32", "bfloat16", or "auto", bfloat16 on a GPU and float32
            elsewhere; of a model on embeddings, the precision of the embeddings that it was fitted on. Heads are
            float32 in any case.

    Returns:
        The model, in evaluation mode: of a language model, or on embeddings. `score` takes it.

    Raises:
        ValueError: `precision` is unknown, or as `ImplicitRewardModel.load`.

    Examples:
        >>> import irm_fast
        >>> model = irm_fast.load("reward_model")  # doctest: +SKIP
        >>> answer = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
        >>> irm_fast.score(model, [answer])  # doctest: +SKIP
        array([0.1875], dtype=float32)
    """
    device = default_device()
    resolved = resolve_precision(precision, device)
    if SOURCE in read_record(directory):
        embedded = EmbeddedRewardModel.load(directory)
        embedded.precision = embedded.source.precision if precision == "auto" else resolved
        return embedded
    return ImplicitRewardModel.load(directory, getattr(torch, resolved)).to(device)


@overload
def score(
    model: RewardModel,
    conversations: Sequence[Messages],
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    lower: None = None,
    distributed: bool = False,
) -> np.ndarray: ...
@overload
def score(
    model: RewardModel,
    conversations: Sequence[Messages],
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    lower: float,
    distributed: bool = False,
) -> tuple[np.ndarray, np.ndarray]: ...
def score(
    model: RewardModel,
    conversations: Sequence[Messages],
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    lower: float | None = None,
    distributed: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Return the rewards of conversations.

    They are without the bias: the numbers of the checkpoint under `AutoModelForSequenceClassification`. Add
    `model.reward_bias` before the sigmoid to get the probability that the response is preferred.

    Args:
        model: The model.
        conversations: N lists of messages, each of which ends with the assistant's turn.
        batch_size: The number of conversations per forward pass, at most. None: no limit.
        token_budget: The number of tokens per forward pass, at most; a longer conversation has one alone. None: 16,384
            on a GPU, and 2,048 on a CPU.
        lower: A probability in (0, 0.5), with which the true reward lies below a lower reward that is returned, too;
            see `EmbeddingRewardModel.predict_interval`. None returns rewards alone.
        distributed: Whether all processes of a torchrun share the conversations. All of them have to call this with the
            same ones then, and all get all rewards. Otherwise each process scores what it is given.

    Returns:
        Rewards (float32) of shape (N,); with `lower` a pair, the rewards and the lower rewards.

    Raises:
        ValueError: `lower` is out of range, or there are no intervals: the model was not trained on embeddings, its
            reward is a network, or it was saved by an earlier version.
    """
    check_lower(model, lower)
    columns = list(rewards(model, conversations, Passes(batch_size, token_budget, distributed), lower).values())
    wrong = np.flatnonzero(~np.isfinite(columns[0]))
    if len(wrong):
        some = ", ".join(map(str, wrong[:SHOWN].tolist()))
        warn_caller(f"score: {len(wrong)} of {len(columns[0])} rewards are not finite, of the rows {some}")
    return columns[0] if lower is None else (columns[0], columns[1])


def check_predicted(ids: Sequence[str], predicted: np.ndarray) -> None:
    """Check that what a model predicts is finite: nothing can be measured on what is not.

    Args:
        ids: The ids of N rows.
        predicted: Their rewards or their losses, (N,).

    Raises:
        ValueError: Some are not; the message names the first of them.
    """
    wrong = np.flatnonzero(~np.isfinite(predicted))
    if len(wrong):
        some = ", ".join(row_named(ids[row], row) for row in wrong[:SHOWN].tolist())
        raise ValueError(
            f"model: what it predicts is not finite for {len(wrong)} of {len(predicted)} rows: {some}; expected finite "
            "rewards: look at these rows, and at the model: irm-fast verify"
        )


def check_lower(model: RewardModel, lower: float | None) -> None:
    """Check that a model has the lower rewards that are asked for; arguments and errors as of `score`."""
    if lower is None:
        return
    if not isinstance(model, EmbeddedRewardModel):
        raise ValueError(
            "lower: the model was trained end to end, and no sampling distribution of its rewards is known; expected a "
            "model of irm-fast train --embeddings: train one on the same log, or leave lower out"
        )
    model.check_lower(lower)


def rewards(
    model: RewardModel, conversations: Sequence[Messages], passes: Passes, lower: float | None = None
) -> dict[str, np.ndarray]:
    """Return `reward`, and with `lower` `reward_lower`, each (N,) float32; arguments as of `score` and `Passes`."""
    if isinstance(model, EmbeddedRewardModel):
        return model.rewards(conversations, passes, lower)
    if not len(conversations):
        return {"reward": np.empty(0, np.float32)}
    rows = TokenizedRows(_tokenised(model, conversations, passes))
    (found,) = _run(model, rows, passes, lambda batch: [model.score(model.pool(**batch))])
    return {"reward": found}


def rendering_of(model: RewardModel) -> RenderingCheck | None:
    """A check that the chat template of a model takes conversations; None if it has none."""
    return model.embedder.rendering() if isinstance(model, EmbeddedRewardModel) else RenderingCheck(model.tokenizer)


def check_texts(model: RewardModel, ids: Sequence[str], conversations: Sequence[Messages]) -> None:
    """Check that the chat template of a model takes all conversations: `RenderingCheck`."""
    if check := rendering_of(model):
        check.check(ids, conversations)


def predict_log(model: RewardModel, log: Log, passes: Passes) -> HeldOut:
    """Predictions of a model for a log as `align` returns it; ValueError if they are not finite."""
    check_texts(model, log.ids, log.messages)
    if isinstance(model, EmbeddedRewardModel):
        return model.predict_log(log, passes)
    rows = TokenizedRows.from_log(log, _tokenised(model, log.messages, passes))
    loss, reward, propensity = _run(model, rows, passes, lambda batch: heldout_step(model, model, batch))
    check_predicted(log.ids, loss + reward)
    return HeldOut(loss, row_weights(log), reward, propensity)


def _tokenised(model: ImplicitRewardModel, conversations: Sequence[Messages], passes: Passes) -> list[np.ndarray]:
    """Token ids (T,) int32 of each conversation."""
    limit, keeps_bos = model.spec.max_length, model.spec.keeps_bos
    ids, _ = passes.tokenise(conversations, lambda some: tokenise(model.tokenizer, some, limit, keeps_bos=keeps_bos))
    return ids


def _run(
    model: ImplicitRewardModel,
    rows: TokenizedRows,
    passes: Passes,
    compute: Callable[[dict[str, Any]], Sequence[Tensor]],
) -> list[np.ndarray]:
    """`Passes.run` through a model in evaluation mode, with the fastest attention."""
    model.eval()
    with packed_attention(model, dtype=model.classifier.dtype):
        collate = Collator(model.tokenizer.pad_token_id, packed=model.packed)
        return passes.run(rows, collate, model.device, compute)


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
