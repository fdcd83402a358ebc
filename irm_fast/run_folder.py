"""The output folder of a training run: new, interrupted, or finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from irm_fast.config import TrainConfig
from irm_fast.model import RECORD

SETTINGS, METRICS, CHECKPOINTS = "train.yaml", "metrics.jsonl", "checkpoints"
_NO_RESULT = {"resume", "overwrite", "progress", "report_to", "output"}  # may differ when a run goes on


def check_output(config: TrainConfig) -> None:
    """See that a run may begin in the output folder, or go on there; writes nothing.

    Raises:
        ValueError: the folder is not empty and neither `resume` nor `overwrite` applies, or a run cannot be
            resumed since its settings were others.
    """
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {folder}: is a file; expected a new or empty folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"output {folder}: not empty, and not by irm-fast; expected a new or empty folder")
    if config.overwrite:
        return
    if (folder / RECORD).is_file():
        raise ValueError(f"output {folder}: not empty, it holds a finished run; --overwrite deletes it")
    if not config.resume:
        raise ValueError(
            f"output {folder}: holds an interrupted run; --resume goes on with it, --overwrite starts anew"
        )
    _check_same(TrainConfig.load(folder / SETTINGS), config, folder)


def begin_run(config: TrainConfig) -> None:
    """Make the folder that `check_output` has passed, and write the run's settings there."""
    folder = Path(config.output)
    if config.overwrite and folder.is_dir():
        shutil.rmtree(folder)
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    config.save(folder / SETTINGS)


def close_run(config: TrainConfig) -> None:
    """Remove the checkpoints of a run that has written its model."""
    shutil.rmtree(Path(config.output) / CHECKPOINTS)


def _check_same(earlier: TrainConfig, config: TrainConfig, folder: Path) -> None:
    for name in (f.name for f in fields(TrainConfig) if f.name not in _NO_RESULT):
        was, now = getattr(earlier, name), getattr(config, name)
        if was != now:
            raise ValueError(
                f"{name}: got {now!r}; the interrupted run in {folder} has {was!r}; "
                "repeat its settings to resume it, or use --overwrite"
            )


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None."""
    whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]  # written last
    return str(max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]))) if whole else None


def write_metrics(path: Path, lines: list[Mapping[str, Any]], *, append: bool) -> None:
    """Write JSON lines; NaN, which JSON does not know, as null."""
    with path.open("a" if append else "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(plain(line)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; none if there is no file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with None for NaN."""
    return {key: None if value != value else value for key, value in values.items()}
