"""Propensities of a new log, for a language model whose propensities were fitted before it was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from irm_fast.data.log import Log
from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.models.passes import Passes
from irm_fast.models.record import PROPENSITIES


def with_propensities(
    log: Log, spec: RewardSpec, directory: str | Path, *, base: str | Path | None = None, passes: Passes | None = None
) -> tuple[Log, tuple[str, ...]]:
    """Give the rows of a log the propensities that a saved model's likelihood reads.

    They are linear in states of the language model that it was trained from, which is loaded for that. A model whose
    propensities were trained with the reward brings them along, and the log stays as it is; so does that of a model
    on embeddings.

    Args:
        log: N rows, as `align` returns them.
        spec: What the model explains.
        directory: The folder of the model.
        base: Folder or hub id of the untrained language model, where it is no longer at the place that training read.
        passes: How the rows go through it. None: `Passes()`.

    Returns:
        The log, and the parts of the context that its propensities depend on: some of "time", "place" and "user".

    Raises:
        ValueError: The untrained language model cannot be loaded, or is another one; or `base` has no effect.
    """
    folder = Path(directory) / PROPENSITIES
    if spec.estimator != "two-step" or not folder.is_dir():
        if base is not None:
            raise ValueError(
                f"base: got {base}, which has no effect: the propensities of {directory} do not read an untrained "
                "language model; leave it out"
            )
        return log, ()
    model = EmbeddedRewardModel.load(folder)
    if base is not None:
        model.source = replace(model.source, model=str(base))
    try:
        vectors, _ = model.embedder.embed(log.messages, passes)
    except ValueError as error:
        raise ValueError(
            f"the propensities of {directory} read states of the language model that it was trained from, which is not "
            f"at hand: {error}; give its place with --base; without it a log can be judged by its labels alone: rated "
            "responses"
        ) from error
    return replace(log, propensity=model.propensities(vectors.numpy(), log)), model.context
