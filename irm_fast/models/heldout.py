"""The predictions of a model for the rows of a log that it was not fitted to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class HeldOut(NamedTuple):
    """Loss and logits of N rows, in the order of the log; float arrays."""

    loss: np.ndarray  # (N,) implicit negative log-likelihood, times the weight
    weight: np.ndarray  # (N,)
    reward: np.ndarray  # (N,) reward logits
    propensity: np.ndarray  # (N, K) propensity logits; one column where the log has no signal
