"""The predictions of a reward model for the rows of a log that it was not fitted to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class HeldOut(NamedTuple):
    """The losses and logits of a reward model on N held-out rows with K signals, in the order of the log.

    Attributes:
        loss: The implicit loss of each row, times its weight, (N,).
        weight: The weight of each row, (N,).
        reward: The reward logit of each row, (N,).
        propensity: The propensity logits, (N, K); one spare column where the log has no signal.
    """

    loss: np.ndarray
    weight: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
