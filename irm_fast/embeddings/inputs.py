"""The embeddings that an estimator is given: an array in memory, or shards that are passed over."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from irm_fast.common.warning import warn_caller
from irm_fast.embeddings import given
from irm_fast.embeddings.blocks import Blocks
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.parts import Scaler
from irm_fast.embeddings.shards import Shards, shards_of
from irm_fast.embeddings.standardised import Standardised, check_finite, moments_of
from irm_fast.models.processes import check_same, from_main_process, started

HELD = 2**28  # numbers of which a standardised copy is held: 1 GiB


class Inputs(NamedTuple):
    """Embeddings as they were given, and how to read them.

    Attributes:
        rows: The embeddings.
        hold: Whether to keep a standardised copy in memory: of an array in memory, and of few numbers.
        distributed: Whether the processes of a torchrun share them.
    """

    rows: Shards
    hold: bool
    distributed: bool

    @classmethod
    def to_fit(cls, X: Any, estimator: BaseEstimator) -> Inputs:
        """Return embeddings to fit to; an array is validated as scikit-learn has it, which the estimator notes.

        Args:
            X: An array of shape (N, D) in any form, or what `shards.shards_of` takes.
            estimator: The estimator.

        Raises:
            ValueError: An array has another shape or a value that is not finite, or as `shards.shards_of`.
        """
        rows = shards_of(X)
        if rows is None:
            return cls(Shards.of_array(validate_data(estimator, given.plain(X), dtype=np.float32)), True, False)
        several = started() > 1 and not Blocks.of(*rows.shape).is_one
        return cls(rows, not several and rows.shape[0] * rows.shape[1] <= HELD, several)

    @classmethod
    def to_predict(cls, X: Any, estimator: BaseEstimator, width: int) -> Inputs:
        """Return embeddings to predict of, each process for itself; arguments and errors are those of `to_fit`.

        Args:
            X: An array of shape (N, D), or what `shards.shards_of` takes.
            estimator: The estimator.
            width: The width D of the embeddings that it was fitted to.
        """
        rows = shards_of(X)
        if rows is None:
            array = validate_data(estimator, given.plain(X), dtype=np.float32, reset=False)
            return cls(Shards.of_array(array), False, False)
        if rows.shape[1] != width:
            raise ValueError(f"X has {rows.shape[1]} features; expected {width} features, as in fit")
        check_finite(rows)
        return cls(rows, False, False)

    def standardised(self, scaler: Scaler) -> Standardised:
        """Return the standardised embeddings, on the device of the scaler."""
        return Standardised.of(self.rows, scaler, hold=self.hold, distributed=self.distributed)

    def scaler(self, device: torch.device) -> Scaler:
        """Return what standardises the embeddings; raise ValueError if a column is spread too widely.

        Args:
            device: Where to compute.
        """
        mean, deviation = moments_of(self.rows, distributed=self.distributed)
        given.check_spread("X", deviation)
        return Scaler.with_moments(mean, deviation, device)

    def agree(self, observed: Observed, random: np.random.RandomState) -> None:
        """See to it that all processes that share the embeddings fit to the same rows, with the same random numbers.

        Args:
            observed: The observations of the rows.
            random: The source of random numbers, which gets the state that the first process has.

        Raises:
            RuntimeError: The rows differ.
        """
        if self.distributed:
            seen = zlib.crc32(observed.feedback.tobytes() + observed.weight.tobytes() + observed.labels().tobytes())
            check_same("rows", len(observed), seen)
            random.set_state(from_main_process(random.get_state))

    def warn_of_networks(self, layers: str | Sequence[int]) -> None:
        """Warn where networks are trained on embeddings that are not held in memory.

        Args:
            layers: The setting `hidden_layers`.
        """
        if self.hold or not len(layers) or Blocks.of(*self.rows.shape).is_one:
            return
        each = f"; each of the {started()} processes trains all of them alike" if self.distributed else ""
        warn_caller(
            "hidden_layers: networks read single rows of the files in a random order, which takes long where these are "
            f"larger than the memory{each}; hidden_layers=() (--hidden-layers linear) fits linear heads, by passes"
        )
