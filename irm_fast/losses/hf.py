"""The loss for any `transformers.Trainer`: its `compute_loss_func`, and the labels that it reads. Needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from irm_fast.kernels.reference.values import check_values
from irm_fast.losses.checks import check_codes
from irm_fast.losses.implicit import PerSignal, implicit_rm_loss

__all__ = ["compute_loss_func", "pack_labels"]
Column = Literal["preference", "weight"]
_IGNORED = -100  # what transformers does not count among the labels
LossFunction = Callable[..., Tensor]


def compute_loss_func(
    *,
    columns: Sequence[Column] = (),
    polarity: PerSignal | None = None,
    misclick_rate: PerSignal | None = None,
    backend: str | None = None,
) -> LossFunction:
    """Make the `compute_loss_func` of a `transformers.Trainer`: `implicit_rm_loss` as the mean over the rows of a step.

    The loss is exact under gradient accumulation and on several processes (DDP, FSDP), with the Trainer's default
    `average_tokens_across_devices=True`. The Trainer counts what is in `labels`, N K entries for N rows of K signals;
    the function divides by the rows. So what is not recorded must be counted too: it is -1 or NaN in `labels`, and -100
    is refused.

    The model returns a mapping or named tuple with `reward_logits` or, as sequence classifiers of one label do,
    `logits`, (N,) or (N, 1), and `propensity_logits` in any shape that the loss takes: `heads(hidden)._asdict()` of
    `irm_fast.SignalHeads`. The batch has `labels`, one tensor, (N, K), or (N,) of one signal: the feedback (1 acted, 0
    silent, -1 or NaN not recorded), and after it the columns named in `columns`; `pack_labels` makes it. Data sets have
    it as "labels" or "label", which both collators of transformers turn into a tensor; `TrainingArguments` needs
    `label_names=["labels"]`, unless the model's `forward` takes `labels`.

    Args:
        columns: The columns of `labels` that follow the feedback: "preference" (1, 0, -1 or NaN unknown), "weight".
        polarity: As in `irm_fast.implicit_rm_loss`.
        misclick_rate: As in `irm_fast.implicit_rm_loss`.
        backend: As in `irm_fast.implicit_rm_loss`.

    Returns:
        A function of (outputs, labels, num_items_in_batch) that returns the loss, () float32. It raises TypeError or
        ValueError where these are not as above: for a label of -100 on a CPU (on a GPU, where nothing waits for values,
        the loss is NaN), and for a missing count while a gradient is wanted.

    Raises:
        ValueError: A column is unknown or named twice.

    Examples:
        >>> import torch, irm_fast
        >>> loss_func = irm_fast.hf.compute_loss_func()
        >>> outputs = {"logits": torch.zeros(2, 1), "propensity_logits": torch.zeros(2, 2)}
        >>> labels = torch.tensor([[1, 0], [0, -1]])
        >>> count = labels.ne(-100).sum()  # as the Trainer counts: 4, of 2 rows
        >>> print(f"{loss_func(outputs, labels, num_items_in_batch=count).item():.4f}")
        1.1836
    """
    if len({*columns}) != len(columns) or not {*columns} <= {*get_args(Column)}:
        raise ValueError(f"columns: got {tuple(columns)}; expected some of {get_args(Column)}, each once")

    def loss_func(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | float | None = None) -> Tensor:
        reward, propensity = _logits(outputs)
        feedback, others = _split(labels, propensity, columns)
        per_row = (feedback.shape[1] if feedback.dim() == 2 else 1) + len(columns)
        loss: Tensor = implicit_rm_loss(
            reward,
            propensity,
            feedback,
            preference=others.get("preference"),
            weight=others.get("weight"),
            polarity=polarity,
            misclick_rate=misclick_rate,
            normalizer=_rows(num_items_in_batch, per_row, reward.requires_grad or propensity.requires_grad),
            backend=backend,
        )
        return loss

    return loss_func


def pack_labels(
    feedback: ArrayLike | Tensor,
    *,
    preference: ArrayLike | Tensor | None = None,
    weight: ArrayLike | Tensor | None = None,
) -> np.ndarray:
    """Put feedback, preference and weight into the one array of labels that `compute_loss_func` takes.

    Args:
        feedback: (N,) or (N, K): 1 acted, 0 silent, -1 or NaN not recorded.
        preference: (N,): 1 preferred, 0 not preferred, -1 or NaN unknown; None: no column.
        weight: (N,) row weights >= 0; None: no column.

    Returns:
        (N, K) float32, with a column for each of the others that is given, in this order: row i is the "labels" of
        example i, and `compute_loss_func(columns=...)` names the columns that follow the feedback.

    Raises:
        ValueError: A value is impossible, or shapes do not fit.

    Examples:
        >>> import irm_fast
        >>> irm_fast.hf.pack_labels([[1, 0], [0, -1]], preference=[-1, 1])
        array([[ 1.,  0., -1.],
               [ 0., -1.,  1.]], dtype=float32)
    """
    given: dict[str, Any] = {"feedback": feedback, "preference": preference, "weight": weight}
    arrays = {name: _array(x) for name, x in given.items() if x is not None}
    actions = arrays["feedback"]
    if actions.ndim not in (1, 2):
        raise ValueError(f"feedback must have shape (N,) or (N, K), got {actions.shape}")
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if (array == _IGNORED).any():
            raise ValueError(_refusal(name))
        wanted = torch.Size(actions.shape if name == "feedback" else actions.shape[:1])
        tensors[name] = check_codes(name, torch.from_numpy(array), wanted, torch.device("cpu"))
    weights = torch.from_numpy(arrays["weight"]) if "weight" in arrays else None
    check_values(tensors["feedback"], tensors.get("preference"), weights)
    codes = [tensors[name].numpy() for name in ("feedback", "preference") if name in tensors]
    columns = codes + ([arrays["weight"]] if "weight" in arrays else [])
    return np.column_stack(columns).astype(np.float32)


def _array(x: ArrayLike | Tensor) -> np.ndarray:
    """Return numbers as an array of float64."""
    return np.asarray(x.cpu() if isinstance(x, Tensor) else x, np.float64)


def _logits(outputs: Any) -> tuple[Tensor, Tensor]:
    """Return reward logits (N,) and propensity logits of a model's outputs."""
    found = outputs if isinstance(outputs, Mapping) else getattr(outputs, "_asdict", dict)()
    reward, propensity = found.get("reward_logits", found.get("logits")), found.get("propensity_logits")
    if reward is None or propensity is None:
        raise ValueError(
            f"outputs: got {sorted(found) or type(outputs).__name__}; expected reward_logits (or logits) and "
            "propensity_logits: let the model return heads(hidden)._asdict() of an irm_fast.SignalHeads"
        )
    if reward.dim() == 2 and reward.shape[1] == 1:
        reward = reward.squeeze(-1)
    return reward, propensity


def _split(labels: Tensor | None, propensity: Tensor, columns: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the feedback, as the loss takes it beside these propensity logits, and the columns that follow it."""
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"labels: got {type(labels).__name__}; expected one tensor of feedback (see irm_fast.hf.pack_labels): the "
            'data set needs it as "labels", and TrainingArguments label_names=["labels"]'
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and (labels == _IGNORED).any():
        raise ValueError(_refusal("labels"))
    table = labels.unsqueeze(-1) if labels.dim() == 1 else labels
    count = table.shape[-1] - len(columns)
    if table.dim() != 2 or count < 1 or (propensity.dim() == 2 and propensity.shape[1] != count):
        n_signals = propensity.shape[1] if propensity.dim() == 2 else "K"
        after = "".join(f", and the column {name}" for name in columns)
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)}; expected (N, {n_signals}) of feedback{after}: further columns "
            "are named in compute_loss_func(columns=...)"
        )
    others = {name: table[:, count + i] for i, name in enumerate(columns)}
    return table[:, 0] if propensity.dim() == 1 and count == 1 else table[:, :count], others


def _rows(num_items: Tensor | float | None, per_row: int, training: bool) -> Tensor | float | None:
    """Return the number of rows of a step in which the Trainer counted the entries of labels; None: those here."""
    if num_items is None:
        if not training:
            return None
        raise ValueError(
            "num_items_in_batch: got None; expected the Trainer's count of labels in the whole step, without which a "
            "step of several micro-batches or processes would be weighted wrongly (in a loop of your own: "
            "irm_fast.implicit_rm_loss with normalizer=the number of rows)"
        )
    if isinstance(num_items, Tensor) and num_items.dim():
        raise ValueError(
            f"num_items_in_batch: got shape {tuple(num_items.shape)}; expected one number. One process sees several "
            "GPUs (nn.DataParallel): start one process for each, by torchrun or accelerate launch"
        )
    return num_items / per_row


def _refusal(name: str) -> str:
    """Say why a label of -100 is refused."""
    return (
        f"{name}: got -100, which the Trainer does not count, so that its count of rows would be wrong; expected -1 or "
        "NaN for what is not recorded"
    )
