"""Signals."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor

MAX_SIGNALS = 16


_tables: dict[tuple, Tensor] = {}  # never evicted: a captured CUDA graph goes on reading its table


def signal_table(
    polarity: tuple[float, ...], misclick_rate: tuple[float, ...], device: torch.device, is_double: bool
) -> Tensor:
    """Per-signal constants as the backends read them, (4, K): polarity, misclick rate e, -log e, log1p(-e).

    float32, or float64 for float64 logits.
    """
    key = (polarity, misclick_rate, device, is_double)
    table = _tables.get(key)
    if table is None:
        table = _make_signal_table(*key)
        if _has_storage(table):  # one made under a function transform or a fake mode is of no use after it
            _tables[key] = table
    return table


def _has_storage(x: Tensor) -> bool:
    try:
        return bool(x.data_ptr())
    except RuntimeError:
        return False


def _make_signal_table(polarity: tuple, rates: tuple, device: torch.device, is_double: bool) -> Tensor:
    # Logarithms in float64 of the rate that the kernel sees, then one rounding.
    dtype = np.float64 if is_double else np.float32
    rate = np.array(rates, dtype).astype(np.float64)
    with np.errstate(divide="ignore"):  # -log 0 = inf: an impossible misclick
        table = np.stack([np.array(polarity, np.float64), rate, -np.log(rate), np.log1p(-rate)])
    return torch.from_numpy(table.astype(dtype)).to(device)


def signal_constants(polarity, misclick_rate, n_signals: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Polarity and misclick rate of every signal, as numbers."""
    if polarity is None and misclick_rate is None:
        return _PLAIN[n_signals]
    sign = per_signal("polarity", polarity, 1.0, n_signals)
    rate = per_signal("misclick_rate", misclick_rate, 0.0, n_signals)
    if any(p not in (1, -1) for p in sign):
        raise ValueError(f"polarity must be +1 or -1 for every signal, got {sign}")
    if not all(0 <= e < 1 for e in rate):
        raise ValueError(f"misclick_rate must lie in [0, 1), got {rate}")
    return sign, rate


_PLAIN = [((1.0,) * k, (0.0,) * k) for k in range(MAX_SIGNALS + 1)]


def per_signal(name: str, value, default: float, n_signals: int) -> tuple[float, ...]:
    """A number, a sequence or a CPU tensor as a tuple of K numbers."""
    if value is None:
        return (default,) * n_signals
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise ValueError(f"{name} is on {value.device}: give numbers or a CPU tensor (no waiting for the device)")
    if hasattr(value, "tolist"):  # torch, numpy
        value = value.tolist()
    if isinstance(value, Real):
        return (float(value),) * n_signals
    if not isinstance(value, Sequence) or not all(isinstance(entry, Real) for entry in value):
        raise TypeError(f"{name} must be a number, a sequence of numbers or a CPU tensor, got {value!r}")
    value = tuple(float(entry) for entry in value)
    if len(value) != n_signals:
        raise ValueError(f"{name} has {len(value)} entries for {n_signals} signal(s)")
    return value
