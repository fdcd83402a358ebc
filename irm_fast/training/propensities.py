"""Propensities first: fitted to states of the untrained language model, and held constant while it is trained.

By minibatches and end to end, propensities that depend on the response overfit together with the reward. The estimator
on embeddings does not: its two steps read the propensity off rows on which other evidence proves the preference. So
one pass of the untrained model makes a state of every row, propensities are fitted to those of the training part, and
those of the held-out part are predicted.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from irm_fast.common.warning import warn_caller
from irm_fast.data.groups import hold_out
from irm_fast.data.joined import Joined
from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.data.signals import RewardSpec
from irm_fast.data.telling import tell
from irm_fast.data.writing.manifest import damage, write_manifest
from irm_fast.data.writing.whole import whole_files
from irm_fast.embeddings.embedder import Embedder
from irm_fast.embeddings.store import date_of_parts, read_embeddings, read_source
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.embeddings.writing import write_embeddings
from irm_fast.models.parts import is_damaged
from irm_fast.models.processes import from_main_process, is_first
from irm_fast.models.record import PROPENSITIES, RECORD, save_tensors
from irm_fast.training.config import TrainConfig
from irm_fast.training.estimation import fit_embedded
from irm_fast.training.prepare import Prepared
from irm_fast.training.run_folder import CHECKPOINTS, STATES, begin_run

VALUES = "propensities.safetensors"  # among the checkpoints
_VALUES_FILES = "propensities.json"  # the manifest of that file
_AT_ONCE = 2**16  # rows whose states are read from their file


class FirstPropensities(NamedTuple):
    """Propensities that were fitted before the training.

    Attributes:
        prepared: The log, with the propensity of every row, and the design that was chosen. Rows of users who act on
            everything have the weight 0.
        context: The parts of the context that they depend on: some of "time", "place" and "user".
        folder: Where the model of the propensities lies, without the untrained language model that it reads.
    """

    prepared: Prepared
    context: tuple[str, ...]
    folder: Path

    def save(self, directory: str | Path) -> None:
        """Copy the model of the propensities to its place within the folder of the trained model.

        Args:
            directory: The folder of the trained model.
        """
        with whole_files(Path(directory) / PROPENSITIES, last=RECORD) as unfinished:
            shutil.copytree(self.folder, unfinished, dirs_exist_ok=True)


def fit_propensities(prepared: Prepared, config: TrainConfig) -> FirstPropensities:
    """Fit the propensities of a run and begin its output folder, or read what an interrupted run has fitted.

    All processes make the states of the rows, and one fits; all get the result.

    Args:
        prepared: The log; the estimator of its spec is "two-step".
        config: The settings.

    Raises:
        ValueError: The model cannot be loaded or embedded, or the log shows too little for the propensity design.
    """
    folder = Path(config.output) / CHECKPOINTS
    if not from_main_process(lambda: is_fitted(config)):
        from_main_process(lambda: begin_run(config, prepared.fingerprint))
        _write_states(prepared.parts, folder / STATES, config)
    spec, context, values = from_main_process(lambda: _fitted(prepared, config, folder))
    filled = replace(
        prepared,
        log=_with(prepared.log, values["training"]),
        heldout=None if prepared.heldout is None else _with(prepared.heldout, values["heldout"]),
        specs=[replace(spec, max_length=prepared.specs[0].max_length)],
    )
    return FirstPropensities(filled, context, folder / PROPENSITIES)


def with_propensities_of_half(prepared: Prepared) -> Prepared:
    """The log with propensities of one half in the place of fitted ones, for a trial that costs what the training does.

    Args:
        prepared: The log; the estimator of its spec is "two-step".
    """

    def halves(log: Log) -> Log:
        return _with(log, np.full((len(log), len(log.signals)), 0.5, np.float32))

    return replace(
        prepared,
        log=halves(prepared.log),
        heldout=None if prepared.heldout is None else halves(prepared.heldout),
    )


def _with(log: Log, propensity: np.ndarray) -> Log:
    """A log with the propensities (N, K) of its rows; rows that have none get the weight 0."""
    weight = np.ones(len(log), np.float32) if log.weight is None else log.weight
    counted = ~np.isnan(propensity).any(axis=1)
    return replace(log, propensity=propensity, weight=log.weight if counted.all() else np.where(counted, weight, 0))


def _fitted(
    prepared: Prepared, config: TrainConfig, folder: Path
) -> tuple[RewardSpec, tuple[str, ...], dict[str, np.ndarray]]:
    """What the propensities explain, the context that they read, and the propensities (N, K) of the parts by name."""
    if is_fitted(config):
        model = EmbeddedRewardModel.load(folder / PROPENSITIES)
        return model.spec, model.context, {name: part.numpy() for name, part in load_file(folder / VALUES).items()}
    source, vectors = read_source(folder / STATES), read_embeddings(folder / STATES, *_rows(prepared.parts))

    # The fit reads whole users and prompts, of the training part
    log, spec = prepared.log, prepared.specs[0]
    states, others = vectors[: len(log)], np.zeros(len(log), bool)
    if len(log) > config.propensity_rows:
        others = ~hold_out(log.groups(), config.propensity_rows / len(log), config.seed)
    model = fit_embedded(log.subset(~others), states[~others], spec, source, config, hidden_layers=())

    # Propensities: those under which the estimator's own reward was fitted, and predictions for rows it has not read
    training = np.empty((len(log), len(log.signals)), np.float32)
    training[~others] = model.estimator.training_propensity_
    if others.any():
        training[others] = _predicted(model, states, log, np.flatnonzero(others))
    values = {"training": training}
    if prepared.heldout is not None:
        heldout = prepared.heldout
        values["heldout"] = _predicted(model, vectors[len(log) :], heldout, np.arange(len(heldout)))
    save_tensors({name: torch.from_numpy(part) for name, part in values.items()}, folder / VALUES)
    write_manifest(folder, [VALUES], at=folder / _VALUES_FILES)
    model.save(folder / PROPENSITIES, classifier=False)
    (folder / STATES).unlink()
    return model.spec, model.context, values


def _predicted(model: EmbeddedRewardModel, vectors: np.ndarray, log: Log, rows: np.ndarray) -> np.ndarray:
    """The propensities (n, K), float32, of some rows of a log, whose states may lie in a file.

    They are predicted some rows at a time, unless they depend on what the other rows of a user or a session are.
    """
    size = len(rows) if model.context else _AT_ONCE
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    found = [model.propensities(vectors[part], log.subset(part)).astype(np.float32) for part in parts]
    return np.concatenate(found)


def is_fitted(config: TrainConfig) -> bool:
    """Whether an interrupted run that goes on has fitted the propensities; a warning says if they are damaged."""
    folder = Path(config.output) / CHECKPOINTS
    if not config.resume or not (folder / PROPENSITIES / RECORD).is_file():
        return False
    if text := damage(folder / PROPENSITIES) or damage(folder, at=folder / _VALUES_FILES):
        warn_caller(f"{folder}: the propensities that were fitted first are passed over: {text}; they are fitted anew")
        shutil.rmtree(folder / PROPENSITIES)
    return not text


def _write_states(parts: Sequence[Log], path: Path, config: TrainConfig) -> None:
    """Write the state of each row of the parts under the untrained language model, where it is not written yet.

    The processes share the rows.
    """
    if from_main_process(lambda: config.resume and path.is_file() and not is_damaged(path)):
        return
    if config.progress and is_first():
        tell("propensities first: one pass of the untrained model over the log, then a fit to its states")
    from_main_process(lambda: path.unlink(missing_ok=True))
    date = date_of_parts(path) if config.resume else None
    embedder = Embedder(config.model, pooling="last", max_length=config.max_length, date=date)
    ids, messages = _rows(parts)
    how = {"token_budget": config.token_budget, "resume": config.resume, "progress": config.progress}
    write_embeddings(ids, messages, embedder, path, distributed=True, **how)  # type: ignore[arg-type]


def _rows(parts: Sequence[Log]) -> tuple[Joined[str], Joined[Messages]]:
    """Ids and conversations of the rows of the parts; a row may be in both."""
    return Joined([part.ids for part in parts]), Joined([part.messages for part in parts])
