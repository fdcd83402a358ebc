"""The rewards of a file of conversations, written as JSON Lines in the order of the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irm_fast.data.outputs import whole_file
from irm_fast.data.rated import read_conversations
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.scoring import RewardModel, check_lower, check_texts, declared_for, load, rewards
from irm_fast.models.parts import Work, check_target, opened, write_in_parts
from irm_fast.models.passes import Passes
from irm_fast.models.processes import from_main_process
from irm_fast.models.record import folder_fingerprint

FORMAT = "1"  # of the metadata entry "irm_fast_rewards" of parts


def score_file(
    model_dir: str | Path,
    data: str | Path,
    out: Path,
    *,
    passes: Passes | None = None,
    precision: str = "auto",
    lower: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    declared: Mapping[str, Any] | None = None,
) -> int:
    """Write the reward of every response, a line each, in the order of the rows: id, reward, perhaps reward_lower.

    The file takes its name when it is whole. An interrupted run leaves its finished parts, of 4,096 rows each, in the
    folder NAME.parts beside it, and `resume` goes on with them. What is no ordinary file, such as /dev/stdout, is
    written at once.

    Args:
        model_dir: The folder of a saved model.
        data: A file of logs, ratings, pairs or conversations alone.
        out: The file to write. One of this name is replaced.
        passes: How the rows go through the model. None: `Passes()`.
        precision: The precision of the language model, as of `scoring.load`.
        lower: As of `scoring.score`.
        resume: Whether to keep the finished parts of an interrupted run.
        overwrite: Whether to replace the parts of an interrupted run.
        declared: How the rows are to be read, as of `scoring.declared_for`.

    Returns:
        The number of rows.

    Raises:
        ValueError: There is no saved model or no readable data, `lower` does not fit, or parts exist of an interrupted
            run: without `resume` or `overwrite`, or of another model, other rows or other settings.
    """
    passes = passes or Passes()
    ordinary = not (out.is_symlink() or (out.exists() and not out.is_file()))
    check = partial(check_target, out, resume=resume, overwrite=overwrite, replaces=True)
    if ordinary or out.is_dir():
        from_main_process(check, distributed=passes.distributed)
    ids, conversations = read_conversations(data, declared_for(model_dir, declared))
    model = load(model_dir, precision=precision)
    check_lower(model, lower)
    check_texts(model, ids, conversations)
    if not ordinary:
        columns = rewards(model, conversations, passes, lower)
        from_main_process(lambda: _write_lines(out, ids, [columns]), distributed=passes.distributed)
        return len(ids)
    about = {
        "irm_fast_rewards": FORMAT,
        "model": str(model_dir),
        "fingerprint": folder_fingerprint(model_dir),
        "precision": _precision_of(model),
        "lower": str(lower),
    }

    def compute(rows: slice, passes: Passes) -> dict[str, Tensor]:
        found = rewards(model, conversations[rows], passes, lower)
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def merge(parts: Sequence[Path]) -> None:
        _write_lines(out, ids, map(_columns, parts))

    work = Work(out, ids, conversations, about, compute, merge)
    write_in_parts(work, passes, resume=resume, overwrite=overwrite)
    return len(ids)


def _precision_of(model: RewardModel) -> str:
    """The precision in which the language model of a reward model computes."""
    if isinstance(model, EmbeddedRewardModel):
        return model.precision or model.source.precision
    return str(model.classifier.dtype).removeprefix("torch.")


def _columns(part: Path) -> dict[str, np.ndarray]:
    """The columns of a part, each (n,)."""
    with opened(part) as file:
        return {name: file.get_tensor(name).numpy() for name in sorted(file.keys()) if name != "row_hash"}


def _write_lines(out: Path, ids: Sequence[str], parts: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write the lines of N rows whose columns come in parts; a number that is not finite becomes null."""
    names = iter(ids)
    with whole_file(out) as file:
        for columns in parts:
            for numbers in zip(*(values.tolist() for values in columns.values()), strict=True):
                finite = (number if math.isfinite(number) else None for number in numbers)  # JSON has no NaN
                file.write(json.dumps({"id": next(names), **dict(zip(columns, finite, strict=True))}) + "\n")
