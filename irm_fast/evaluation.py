"""How good a reward model is: against clean ratings, or, where only a log exists, by held-out likelihood."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from irm_fast.batches import Collator, as_dataset, tokenise
from irm_fast.embedding.text_model import SOURCE, EmbeddedRewardModel
from irm_fast.functional import implicit_rm_loss
from irm_fast.log import Log, contradictions
from irm_fast.metrics import reward_metrics
from irm_fast.model import ImplicitRewardModel, read_record
from irm_fast.packing import by_length

if TYPE_CHECKING:
    from irm_fast.propensity import RewardSpec
    from irm_fast.rated import Rated
    from irm_fast.rows import Messages


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


def evaluate(model_dir: str | Path, data: str | Path, *, batch_size: int = 32) -> dict[str, Any]:
    """Metrics of a saved model on a file: of rated responses or pairs, or of a log of feedback.

    A log is a file in which any row has a field that only logs have: feedback, weight, features, user_id, ...
    Rated: the keys of `metrics.reward_metrics`. A log: those of `evaluate_log`.

    Raises:
        ValueError: what is no saved model, no readable data, rated rows that are all of one kind, or a log that
            lacks a signal of the model's.
    """
    from irm_fast.data import DataError, read_log, read_rated
    from irm_fast.rated import check_both

    model = load(model_dir)
    sign = _sign_of_a_log(data)
    try:
        if sign is None:
            rated = read_rated(data)
        else:
            absent = read_record(model_dir).get("training", {}).get("absent", "error")
            log = read_log(data, absent=absent, misclick=True)  # polarity and contradictions: by the model, in `align`
    except DataError as error:
        how = "rated responses, as no row has feedback" if sign is None else f"a log, as {sign}"
        raise DataError([f"{data}: read as {how}", *error.problems], error.total + 1) from error
    if sign is not None:
        return evaluate_log(model, log, batch_size=batch_size)
    check_both(rated)
    return evaluate_rated(model, rated, batch_size=batch_size)


def _sign_of_a_log(path: str | Path) -> str | None:
    """What shows that a file is a log, or None: the first field that rated responses and pairs do not have."""
    from irm_fast.files import Problems, read_rows
    from irm_fast.rated import PAIR_FIELDS, RATED_FIELDS
    from irm_fast.rows import LOG_FIELDS

    only_logs = LOG_FIELDS.keys() - RATED_FIELDS.keys() - PAIR_FIELDS.keys()
    only_rated = {key for key, name in {**RATED_FIELDS, **PAIR_FIELDS}.items() if name not in LOG_FIELDS.values()}
    sign = None
    for line, row in read_rows(path, Problems(path)):
        given = {key for key, value in row.items() if value is not None}
        if "feedback" in given:
            return f"row {line} has 'feedback'"
        if sign is None and given & only_logs and not given & only_rated:
            sign = f"row {line} has {min(given & only_logs)!r} and no rating"
    return sign


def evaluate_rated(model: RewardModel, rated: Rated, *, batch_size: int = 32) -> dict[str, float]:
    """`metrics.reward_metrics` of reward plus bias against the clean preference."""
    logit = score(model, rated.messages, batch_size=batch_size) + float(model.reward_bias.detach())
    return reward_metrics(logit, rated.preference, rated.pair)


@torch.no_grad()
def evaluate_log(model: RewardModel, log: Log, *, batch_size: int = 32) -> dict[str, float]:
    """Held-out likelihood and calibration on a log: the keys of `heldout_metrics`, and `n`."""
    log = align(log, model.spec)
    losses, logits = predict_log(model, log, batch_size)
    weight = np.ones(len(log)) if log.weight is None else log.weight
    rates = action_rates(model, logits)
    return {**heldout_metrics(model.spec.signals, losses, weight, rates, log.feedback), "n": len(log)}


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
    return core.action_rates(values[:, 0], values[:, 1:]).numpy()


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
        **core.evidence,
    )
    return loss, torch.cat([reward[:, None], propensity], dim=1)


def logit_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch a model reads to give logits rather than a loss."""
    rest = ("row", "counts", "feedback", "preference", "weight")
    return {name: value for name, value in batch.items() if name not in rest}


def heldout_metrics(
    signals: Sequence[str], loss: np.ndarray, weight: np.ndarray, rates: np.ndarray, feedback: np.ndarray
) -> dict[str, float]:
    """`nll`, the implicit negative log-likelihood per example, and observed and predicted rates per signal.

    Shapes: `loss` (N,), already multiplied by `weight` (N,); `rates` and `feedback` (N, K). The rates are
    means over the rows in which the signal is recorded (NaN where there is none).
    """
    metrics = {"nll": float(loss.sum(dtype=np.float64) / weight.sum(dtype=np.float64))}
    for k, name in enumerate(signals):
        recorded = feedback[:, k] >= 0
        observed, predicted = feedback[recorded, k], rates[recorded, k]
        metrics[f"{name}_observed"] = float(observed.mean()) if recorded.any() else float("nan")
        metrics[f"{name}_predicted"] = float(predicted.mean()) if recorded.any() else float("nan")
    return metrics


def align(log: Log, spec: RewardSpec) -> Log:
    """The log with the model's signals and features, in the model's order; a warning names signals left out.

    Raises:
        ValueError: the log lacks a signal of the model's or what its propensity design reads, records nothing
            that the model explains, or a row has evidence for both sides that no misclick explains.
    """
    lacking = [name for name in spec.signals if name not in log.signals]
    if lacking:
        got, expected = _names(log.signals), _names(spec.signals)
        raise ValueError(
            f"signals: the log lacks {_names(lacking)}; it has {got}, and the model was trained on {expected}"
        )
    extra = [name for name in log.signals if name not in spec.signals]
    if extra:
        text = f"signals: left out {_names(extra)}: the model was trained on {_names(spec.signals)}"
        warnings.warn(text, stacklevel=3)
    log = replace(keep_signals(log, spec.signals), polarity=spec.polarity)
    if not (log.feedback >= 0).any() and not (log.preference >= 0).any():
        what = f"none of {_names(spec.signals)} and no preference" if spec.signals else "no preference"
        raise ValueError(f"the log records {what} in {len(log)} rows; expected some of what the model explains")
    check_design(spec.design, log)
    check_evidence(spec, log)
    if spec.design == "features":
        if set(log.feature_names) != set(spec.feature_names):
            got, expected = _names(log.feature_names), _names(spec.feature_names)
            raise ValueError(f"features: the log has {got}; the model was trained on {expected}")
        order = [log.feature_names.index(name) for name in spec.feature_names]
        log = replace(log, feature_names=spec.feature_names, features=log.features[:, order])  # type: ignore[index]
    return log


def keep_signals(log: Log, names: Sequence[str]) -> Log:
    """The log with these of its signals, in this order."""
    order = [log.signals.index(name) for name in names]
    return replace(
        log,
        signals=tuple(names),
        polarity=tuple(log.polarity[k] for k in order),
        feedback=log.feedback[:, order],
        propensity=None if log.propensity is None else log.propensity[:, order],
    )


def check_evidence(spec: RewardSpec, log: Log) -> None:
    """Raise ValueError if a row contradicts itself and no misclick explains it: its likelihood would be zero."""
    rows = contradictions(log, certain=np.array(spec.misclick_rate) == 0)
    if len(rows):
        raise ValueError(
            f"feedback: row {log.ids[rows[0]]!r} contradicts itself; expected one side, or a misclick rate"
        )


def check_design(design: str, log: Log) -> None:
    """Raise ValueError if the log lacks what a propensity design reads."""
    if design == "features" and not log.feature_names:
        raise ValueError("features: the log has none; expected them in every row, or another propensity")
    if design != "known":
        return
    given = np.zeros(log.feedback.shape, bool) if log.propensity is None else ~np.isnan(log.propensity)
    lacking = np.argwhere((log.feedback != -1) & ~given)
    if len(lacking):
        row, k = lacking[0]
        raise ValueError(
            f"propensity.{log.signals[k]}: none in row {log.ids[row]!r}; the 'known' design expects one for "
            f"every recorded entry ({len(lacking)} lack it); add them or choose another propensity"
        )


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


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
