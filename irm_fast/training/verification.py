"""What `irm-fast verify` finds: whether a folder or a file that irm-fast wrote is as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from irm_fast.data.writing.manifest import MANIFEST, checked, damage, read_manifest
from irm_fast.embeddings.saved import RECORD as ESTIMATOR_RECORD
from irm_fast.embeddings.store import damage_to_embeddings
from irm_fast.models.record import PROPENSITIES, RECORD
from irm_fast.training.run_folder import CHECKPOINTS, DATA


class Finding(NamedTuple):
    """What was found of one folder or file.

    Attributes:
        path: The folder or file.
        kind: What it is, in words.
        wrong: What is wrong with it, or "".
        note: What else should be known.
    """

    path: Path
    kind: str
    wrong: str = ""
    note: str = ""


def verify(path: Path) -> list[Finding]:
    """Compare everything that irm-fast wrote to a place with what it wrote down of it.

    Args:
        path: The folder of a saved model, of a training run or of a checkpoint, or a file or a folder of embeddings.

    Returns:
        A finding for each model, checkpoint or file, whole or not.

    Raises:
        ValueError: There is nothing that irm-fast wrote.
    """
    if path.is_file():
        return [_embeddings(path)]
    if shards := sorted(path.glob("embeddings-*-of-*.safetensors")):
        return [_embeddings(shard) for shard in shards]
    if not path.is_dir():
        raise ValueError(f"{path}: not found; expected a folder or a file that irm-fast wrote")
    found = list(_folder(path))
    if not found:
        raise ValueError(
            f"{path}: holds no saved model, no checkpoint and no training run; expected a folder that irm-fast wrote"
        )
    return found


def _folder(path: Path) -> Iterator[Finding]:
    is_model = any((path / name).is_file() for name in (RECORD, ESTIMATOR_RECORD))
    kind = "checkpoint" if path.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") else "model"
    if (path / MANIFEST).is_file():
        yield _by_manifest(path, kind)
    elif kind == "checkpoint":
        yield Finding(path, kind, damage(path))
    elif is_model:
        note = f"no {MANIFEST}: written by an earlier version, so that nothing can be compared"
        yield Finding(path, kind, note=note)
    if (path / DATA).is_file() and (path / CHECKPOINTS).is_dir():
        yield _run(path)
    inner = [path / PROPENSITIES, path / CHECKPOINTS, *sorted((path / CHECKPOINTS).glob("*/*"))]
    for folder in filter(Path.is_dir, inner):
        yield from _folder(folder)


def _by_manifest(path: Path, kind: str) -> Finding:
    if text := damage(path):
        return Finding(path, kind, text)
    sizes = [entry["bytes"] for entry in read_manifest(path / MANIFEST).values()]
    return Finding(path, kind, note=f"{len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB")


def _run(path: Path) -> Finding:
    """Return what is found of a run that is not at its end."""
    try:
        checked(path / DATA)
    except ValueError as error:
        return Finding(path, "interrupted run", str(error))
    return Finding(path, "interrupted run", note="irm-fast train --resume goes on with it")


def _embeddings(path: Path) -> Finding:
    """Return what is found of a file of embeddings."""
    return Finding(path, "embeddings", damage_to_embeddings(path))
