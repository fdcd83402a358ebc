"""The part of a batch that carries no gradient, in the one form in which every backend takes it."""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """N rows of K signals, and what is to be computed of them.

    A new argument of the kernels is a new field here, read by the kernels and filled in by the public functions: the
    operators of `torch.compile` get their schema from these annotations.
    """

    feedback: Tensor  # (N,) or (N, K): 1 acted, 0 silent, -1 missing
    preference: Tensor | None  # (N,): 1, 0, -1 unknown
    weight: Tensor | None  # (N,) contiguous float32 (float64 for float64 logits)
    reward_strat: Tensor | None  # (N,) reward logits of a stratification model; None: the marginal form
    propensity_strat: Tensor | None  # propensity logits of that model, shaped like those of the batch
    polarity: tuple[float, ...]  # K of +1, -1
    misclick_rate: tuple[float, ...]  # K in [0, 1)
    scale: float | None  # multiplies the loss and its gradients; None: 1/N
    per_row: bool  # (N,) losses instead of their sum
    need_groups: bool  # whether the posterior over the four groups is wanted
    backend: str | None  # the backend asked for by name

    @property
    def factor(self) -> float:
        """The number that multiplies the loss and its gradients."""
        return 1.0 / (self.feedback.shape[0] or 1) if self.scale is None else self.scale

    @property
    def has_misclick(self) -> bool:
        """Whether any signal has a misclick rate above 0."""
        return any(self.misclick_rate)

    def signal_table(self, device: torch.device, is_double: bool = False) -> Tensor:
        """Constants of the signals, (4, K): polarity, misclick rate e, -log e, log1p(-e).

        float32, or float64 for the reference on float64 logits.
        """
        key = (self.polarity, self.misclick_rate, device, is_double)
        table = _tables.get(key)
        if table is None:
            table = _make_signal_table(*key)
            if _has_storage(table):  # one made under a function transform or a fake mode is of no use after it
                with _making:
                    while len(_tables) >= _KEPT:
                        del _tables[next(iter(_tables))]
                    _tables[key] = table
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            _captured[key, table.data_ptr()] = table
        return table


class PointwiseBatch(NamedTuple):
    """The same for the weighted pointwise loss."""

    positive_weight: Tensor  # (N,) contiguous float32 (float64 for float64 logits), of softplus(-s)
    negative_weight: Tensor  # (N,) likewise, of softplus(s)
    scale: float | None  # multiplies the loss and its gradient; None: 1/N
    per_row: bool  # (N,) losses instead of their sum
    backend: str | None  # the backend asked for by name

    @property
    def factor(self) -> float:
        """The number that multiplies the loss and its gradient."""
        return 1.0 / (self.positive_weight.shape[0] or 1) if self.scale is None else self.scale


_KEPT = 256  # tables, the newest: a misclick rate that changes at each step would fill the memory with them
_tables: dict[tuple, Tensor] = {}
_making = Lock()
_captured: dict[tuple, Tensor] = {}  # kept for good: a captured CUDA graph goes on reading its table


def _make_signal_table(
    polarity: tuple[float, ...], misclick_rate: tuple[float, ...], device: torch.device, is_double: bool
) -> Tensor:
    # Logarithms in float64 of the rate that the kernel sees, then one rounding.
    dtype = np.float64 if is_double else np.float32
    rate = np.array(misclick_rate, dtype).astype(np.float64)
    with np.errstate(divide="ignore"):  # -log 0 = inf: an impossible misclick
        table = np.stack([np.array(polarity, np.float64), rate, -np.log(rate), np.log1p(-rate)])
    with torch.inference_mode(False):  # kept for later calls, whose gradients could not save an inference tensor
        return torch.from_numpy(table.astype(dtype)).to(device)


def _has_storage(x: Tensor) -> bool:
    try:
        return bool(x.data_ptr())
    except RuntimeError:
        return False
