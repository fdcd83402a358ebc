"""The report that every training leaves beside its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from irm_fast.common.warning import warn_caller
from irm_fast.data.log import Log
from irm_fast.data.signals import RewardSpec
from irm_fast.data.writing.whole import write_whole
from irm_fast.models.heldout import HeldOut
from irm_fast.publish.evidence import evidence_of
from irm_fast.publish.names import EVIDENCE
from irm_fast.publish.report import write_report
from irm_fast.training.config import RunConfig


def leave_report(parts: Sequence[Log], spec: RewardSpec, predicted: HeldOut | None, config: RunConfig) -> None:
    """Write what a run has found, for people, beside the model that it has saved.

    A report that fails is no failure of the training: a warning says so in a line.

    Args:
        parts: The training part of the log, and the held-out part if there is one.
        spec: What the model explains.
        predicted: Predictions for the held-out part, or None without one.
        config: The settings of the run.
    """
    folder = Path(config.output)
    try:
        found = evidence_of(parts[-1], spec, predicted, seed=config.seed)
        write_whole(folder / EVIDENCE, json.dumps(found) + "\n")
        write_report(folder, log=parts[-1])
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        warn_caller(f"report: not written, though the model is: {first}; irm-fast report {folder} tries again")
