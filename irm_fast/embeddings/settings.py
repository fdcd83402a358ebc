"""The settings of `EmbeddingRewardModel`, checked when it is fitted, as scikit-learn has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WHOLE = {"n_folds": 2, "batch_size": 1, "max_epochs": 1, "patience": 1, "verbose": 0}  # and the least of each
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
    if not settings["learning_rate"] > 0:
        raise ValueError(f"learning_rate: got {settings['learning_rate']!r}; expected a number above 0")
    sds = settings["propensity_sd"]
    if not deviations(sds) or not min(deviations(sds)) > 0:
        raise ValueError(f"propensity_sd: got {sds!r}; expected numbers above 0")
    for name, choices in CHOICES.items():
        if settings[name] not in choices:
            *others, last = choices
            raise ValueError(f"{name}: got {settings[name]!r}; expected {', '.join(others)} or {last}")
    layers = settings["hidden_layers"]
    if not _are_widths(layers):
        raise ValueError(f"hidden_layers: got {layers!r}; expected 'auto' or widths such as (128,)")


def deviations(value: float | Sequence[float]) -> tuple[float, ...]:
    """Return the setting `propensity_sd`, one number or several, as a tuple."""
    return tuple(np.atleast_1d(np.asarray(value, float)).tolist())


def _are_widths(value: Any) -> bool:
    """Return whether a value is "auto" or a sequence of widths of at least 1."""
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)):
        return isinstance(value, str) and value == "auto"
    return all(isinstance(width, (int, np.integer)) and width >= 1 for width in value)
