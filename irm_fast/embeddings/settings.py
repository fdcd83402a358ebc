"""The settings of `EmbeddingRewardModel`, checked when it is fitted, as scikit-learn has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WHOLE = {"n_folds": 2, "batch_size": 1, "max_epochs": 1, "patience": 1, "verbose": 0}  # and the least of each
RANGES = {  # the least, the most, and both in words
    "learning_rate": (1e-12, 100, "a number above 0, from 1e-12 to 100"),
    "weight_decay": (0, 1000, "a number from 0 to 1000"),
    "propensity_sd": (1e-6, 1e6, "numbers above 0, from 1e-6 to 1e6"),
}
CHOICES = {"contradictions": ("error", "drop"), "estimator": ("auto", "two-step", "joint")}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a setting that no other argument decides about has an impossible value.

    Args:
        settings: The constructor arguments of the estimator.
    """
    for name, least in WHOLE.items():
        value = settings[name]
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name}: got {value!r}; expected a whole number from {least}")
    for name, (lowest, highest, words) in RANGES.items():
        value = settings[name]
        numbers = deviations(value)
        one = name == "propensity_sd" or np.ndim(value) == 0
        if not (numbers and one and all(lowest <= number <= highest for number in numbers)):
            raise ValueError(f"{name}: got {value!r}; expected {words}")
    for name, choices in CHOICES.items():
        if settings[name] not in choices:
            *others, last = choices
            raise ValueError(f"{name}: got {settings[name]!r}; expected {', '.join(others)} or {last}")
    layers = settings["hidden_layers"]
    if not _are_widths(layers):
        raise ValueError(f"hidden_layers: got {layers!r}; expected 'auto' or widths such as (128,)")


def deviations(value: Any) -> tuple[float, ...]:
    """Return the setting `propensity_sd`, one number or several, as a tuple; empty where it is anything else."""
    try:
        return tuple(np.atleast_1d(np.asarray(value, float)).tolist())
    except (ValueError, TypeError, OverflowError):
        return ()


def _are_widths(value: Any) -> bool:
    """Return whether a value is "auto" or a sequence of widths of at least 1."""
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)):
        return isinstance(value, str) and value == "auto"
    return all(isinstance(width, (int, np.integer)) and width >= 1 for width in value)
