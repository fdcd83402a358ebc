"""The rewards of a file of conversations, written as JSON Lines in the order of the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from irm_fast.data.conversations import read_conversations
from irm_fast.data.messages import Messages
from irm_fast.data.writing.whole import whole_file
from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.scoring import SHOWN, RewardModel, check_lower, declared_for, load, rendering_of, rewards
from irm_fast.models.parts import Work, check_target, write_in_parts
from irm_fast.models.passes import Passes, rows_bar
from irm_fast.models.processes import alone, from_main_process
from irm_fast.models.record import folder_fingerprint
from irm_fast.models.tensor_files import opened

FORMAT = "2"  # of the metadata entry "irm_fast_rewards" of parts
_IDS = "ids"  # the column of a part that holds the ids of its rows, a list in JSON


@dataclass
class Written:
    """What a file of rewards holds.

    Attributes:
        rows: The number of its rows.
        not_finite: The number of those with a reward that is NaN or infinite, and null in the file.
        first: The place and the id of the first of them.
        done: The number of rows of which lines were made.
    """

    rows: int
    not_finite: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)
    done: int = 0

    def lines(self, columns: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield the lines of the rows of a part, and count those with a number that is not finite.

        Args:
            columns: The ids as JSON, uint8, and the numbers of the n rows, each (n,), by name.
        """
        values = {name: column.tolist() for name, column in columns.items() if name != _IDS}
        ids = json.loads(columns[_IDS].numpy().tobytes())
        for name, *numbers in zip(ids, *values.values(), strict=True):
            finite = [number if math.isfinite(number) else None for number in numbers]  # JSON has no NaN
            if None in finite:
                self.not_finite += 1
                self.first += [(self.done, name)] * (len(self.first) < SHOWN)
            self.done += 1
            yield json.dumps({"id": name, **dict(zip(values, finite, strict=True))}) + "\n"


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
) -> Written:
    """Write the reward of every response, a line each, in the order of the rows: id, reward, perhaps reward_lower.

    The file takes its name when it is whole. An interrupted run leaves its finished parts, of 4,096 rows each, in the
    folder NAME.parts beside it, and `resume` goes on with them. What is no ordinary file, such as /dev/stdout, gets
    the lines of each part as soon as they are computed. All rows are checked before the first part, and no more than
    a part of them is in memory.

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
        What was written; other processes than the first one know the number of rows alone.

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
    about = {
        "irm_fast_rewards": FORMAT,
        "model": str(model_dir),
        "fingerprint": folder_fingerprint(model_dir),
        "precision": _precision_of(model),
        "lower": str(lower),
    }

    def compute(names: Sequence[str], some: Sequence[Messages], passes: Passes) -> dict[str, Tensor]:
        found = rewards(model, some, passes, lower)
        named = np.frombuffer(json.dumps(names).encode(), np.uint8)
        return {_IDS: torch.from_numpy(named.copy())} | {name: torch.from_numpy(found[name]) for name in found}

    def merge(parts: Sequence[Path]) -> None:
        with whole_file(out) as file:
            for part in parts:
                file.writelines(written.lines(_columns(part)))

    written = Written(len(ids))
    work = Work(out, ids, conversations, about, compute, merge, rendering_of(model))
    if not ordinary:
        _write_at_once(work, passes, written)
        return written
    with alone(out, "irm-fast score", folder=False, argument="out", distributed=passes.distributed):
        from_main_process(check, distributed=passes.distributed)  # once more: nobody else writes it from now on
        write_in_parts(work, passes, resume=resume, overwrite=overwrite)
    return written


def _write_at_once(work: Work, passes: Passes, written: Written) -> None:
    """Write the lines of each part as soon as they are computed, to what is no ordinary file."""
    with ExitStack() as opened_files, rows_bar(len(work.ids), passes.progress) as bar:
        files: list[TextIO] = []

        def write(columns: Mapping[str, Tensor]) -> None:
            if not files:
                files.append(opened_files.enter_context(whole_file(work.out)))
            files[0].writelines(written.lines(columns))

        hashes = work.checked()
        for rows in work.parts.values():
            columns = work.columns(rows, hashes, replace(passes, done=bar.update))
            from_main_process(partial(write, columns), distributed=passes.distributed)


def _precision_of(model: RewardModel) -> str:
    """The precision in which the language model of a reward model computes."""
    if isinstance(model, EmbeddedRewardModel):
        return model.precision or model.source.precision
    return str(model.classifier.dtype).removeprefix("torch.")


def _columns(part: Path) -> dict[str, Tensor]:
    """The columns of a part, as `Written.lines` takes them."""
    with opened(part) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys()) if name != "row_hash"}
