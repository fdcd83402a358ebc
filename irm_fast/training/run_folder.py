"""The output folder of a training run: new, interrupted, or finished.

A run passes `check_output`, then `begin_run`, and at its end `close_run`. In between it leaves checkpoints
(`training.checkpoints`), so that an interrupted run can be resumed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from irm_fast.data.writing.lock import LOCK
from irm_fast.data.writing.manifest import MANIFEST, check_of, checked
from irm_fast.data.writing.outputs import OutputFolder
from irm_fast.data.writing.whole import is_unfinished, write_whole
from irm_fast.evaluation.metrics_file import METRICS
from irm_fast.models.adapters import ADAPTER
from irm_fast.models.record import CHECKPOINT_WEIGHTS, INDEX, PROPENSITIES, PROPENSITY_FILE, RECORD
from irm_fast.publish.names import CARD, CHARTS, EVIDENCE, PAGE
from irm_fast.training.config import NOT_KEPT, RunConfig, saved_config

SETTINGS, CHECKPOINTS, DATA = "train.yaml", "checkpoints", "train_data.json"
STATES = "states.safetensors"  # of the untrained model, among the checkpoints until propensities are fitted to them
TRACKERS = "trackers"  # events of TensorBoard and others that write beside the checkpoints, by design
_OF_A_DESIGN = ("checkpoint-*", "model")  # all that lies among the checkpoints of a design but trackers' files
_NO_RESULT = {  # may differ when a run goes on: none changes the model by more than rounding
    *NOT_KEPT,
    *("report_to", "output", "lora_keep_adapter", "save_steps", "save_minutes"),
    *("gradient_checkpointing", "compile", "liger"),  # a run that ran out of memory goes on with less
    *("on_nonfinite", "max_skipped_steps"),  # one that ended at a step that is not finite goes on without it
}
_OF_MODEL = {  # of the fingerprint, and how errors name it
    "template": "its chat template has",
    "tokenizer": "its tokenizer has",
    "weights": "its weights have",
}
_WHOLE = f"checkpoint-*/{MANIFEST}"  # the last file of a checkpoint: it was written to its end

# What a run writes, with the names that transformers gives to models and tokenizers. Nothing else is ever deleted.
_FILES = (
    *(SETTINGS, METRICS, DATA, RECORD, MANIFEST, CARD, EVIDENCE, PAGE),
    *("embedding_model.safetensors", "embedding_model.json"),  # of EmbeddingRewardModel
    *(PROPENSITY_FILE, *CHECKPOINT_WEIGHTS, INDEX),
    *("config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
)
_FOLDER = OutputFolder(
    run="training run",
    files=_FILES,
    folders=(CHECKPOINTS, TRACKERS, PROPENSITIES, ADAPTER, f"{Path(PAGE).stem}{CHARTS}", "additional_chat_templates"),
    is_marked=lambda folder: (folder / SETTINGS).is_file() or _is_of_a_run(folder / DATA),
    mark=SETTINGS,
)


def check_output(config: RunConfig, fingerprint: Mapping[str, Any]) -> None:
    """Check that a run may begin in the output folder, or go on there. Nothing is written.

    Args:
        config: The settings.
        fingerprint: The fingerprint of the log, see `fingerprint.describe`.

    Raises:
        ValueError: The folder is not empty and neither `resume` nor `overwrite` applies, it holds files that no run
            wrote, or the interrupted run had other settings or another log.
    """
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {folder}: is a file; expected a new or empty folder")
    if not _holds_files(folder):
        return

    # Files of others are not touched, nor what this run reads
    for name, source in ((name, getattr(config, name, "")) for name in ("data", "pairs", "model", "embeddings")):
        path = Path(source).expanduser()
        if source and path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"output {folder}: holds {name} {source}; expected a folder that the run does not read")
    if not _FOLDER.is_marked(folder):
        raise ValueError(f"output {folder}: not empty, and not by irm-fast; expected a new or empty folder")

    # An earlier run: to be deleted, finished, or to go on with
    if config.overwrite:
        if foreign := _FOLDER.foreign(folder):
            raise ValueError(
                f"output {folder}: holds {foreign[0]!r}, not written by irm-fast; --overwrite does not delete it: "
                "move it elsewhere, or choose another folder"
            )
        return
    if (folder / RECORD).is_file():
        left = f"; its {CHECKPOINTS}, which a kill has left, may go" if (folder / CHECKPOINTS).is_dir() else ""
        raise ValueError(f"output {folder}: not empty, it holds a finished run; --overwrite deletes it{left}")
    if not config.resume:
        choice = "--resume goes on with it, --overwrite starts anew"
        raise ValueError(f"output {folder}: holds an interrupted run; {choice}")
    if (earlier := _begun(folder)) is not None:
        settings = saved_config(earlier.pop("settings"), str(folder / DATA))
        _check_settings(settings, config, folder)
        _check_log(earlier, fingerprint, folder)


def check_same_tokens(config: RunConfig, digest: str) -> None:
    """Check that a resumed run has the tokens of the interrupted one.

    Args:
        config: The settings.
        digest: A hash of the tokens of all rows.

    Raises:
        ValueError: They differ, though neither the log nor the files of the model do.
    """
    folder = Path(config.output)
    earlier = _begun(folder) if config.resume and folder.is_dir() else None
    if earlier is not None and earlier.get("tokens", digest) != digest:
        raise ValueError(
            f"tokens: the rows are other tokens than those of the interrupted run in {folder}, though the log and the "
            "files of the model are the same: another version of transformers or tokenizers, perhaps; bring it back "
            "to resume the run, or use --overwrite"
        )


def _holds_files(folder: Path) -> bool:
    """Whether there is a file in a folder, or in one within it: transformers makes folders before a run can start.

    What a killed run left of a file that it was writing is none.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    entries = [entry for entry in found if entry.name != LOCK and not is_unfinished(entry)]
    return any(not entry.is_dir() or _holds_files(entry) for entry in entries)


def _begun(folder: Path) -> dict[str, Any] | None:
    """What `begin_run` kept of an interrupted run; None if it was killed as it began, so that nothing is lost.

    Raises:
        ValueError: It is missing or damaged, or of an earlier version, while there is work that it belongs to.
    """
    path, remedy = folder / DATA, "so its settings and its log cannot be compared: bring it back, or use --overwrite"
    if not path.exists() and not _holds_files(folder / CHECKPOINTS):
        return None
    try:
        return checked(path)
    except FileNotFoundError:
        raise ValueError(f"output {folder}: {path.name} is missing, {remedy}") from None
    except ValueError as error:
        hint = f" (an earlier version of irm-fast, which kept less, goes on with its own runs), {remedy}"
        raise ValueError(f"output {folder}: {error}{hint}") from error


def _is_of_a_run(path: Path) -> bool:
    """Whether a file is what `begin_run` keeps of a run, and whole."""
    try:
        return "settings" in checked(path)
    except (OSError, ValueError):
        return False


def date_of_run(config: RunConfig) -> str:
    """The date that a chat template prints in a run: that of an interrupted run that goes on, or today.

    Args:
        config: The settings.
    """
    try:
        earlier = json.loads((Path(config.output) / DATA).read_text(encoding="utf-8")) if config.resume else {}
    except (OSError, ValueError):  # which `check_output` refuses, or there is nothing to go on with
        earlier = {}
    return str(earlier.get("date") or date.today().isoformat())


def begin_run(config: RunConfig, fingerprint: Mapping[str, Any]) -> None:
    """Make the folder that `check_output` has passed, and write the settings and the fingerprint of the log there.

    With `overwrite`, what an earlier run wrote there is deleted first.

    The settings are written twice: for people, and beside the fingerprint for a run that is resumed.

    Args:
        config: The settings.
        fingerprint: The fingerprint of the log, see `fingerprint.describe`.
    """
    folder = Path(config.output)
    if config.overwrite or not (folder / DATA).exists():
        _FOLDER.clear_own(folder)
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    config.save(folder / SETTINGS)  # the mark of the folder, first
    kept = json.loads(json.dumps({**fingerprint, "settings": config.to_dict()}))
    write_whole(folder / DATA, json.dumps({**kept, "check": check_of(kept)}) + "\n")


def close_run(config: RunConfig) -> None:
    """Remove the checkpoints of a run that has written its model, but keep the files of trackers.

    TensorBoard and others write their events beside the checkpoints of a design; they are moved to `trackers`.
    """
    folder = Path(config.output)
    for path in (folder / CHECKPOINTS).glob("*/*"):
        if path.parent.name != PROPENSITIES and not any(fnmatch(path.name, pattern) for pattern in _OF_A_DESIGN):
            target = folder / TRACKERS / path.parent.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target / path.name)
    shutil.rmtree(folder / CHECKPOINTS)


def can_resume(config: RunConfig) -> bool:
    """Whether the output folder holds work that a resumed run need not do again.

    That is the states of the untrained model, propensities that are fitted to them, a checkpoint, or a trained design.
    """
    folder = Path(config.output) / CHECKPOINTS
    finished = (STATES, f"{PROPENSITIES}/{RECORD}", f"*/{_WHOLE}", f"*/model/{RECORD}")
    return any(any(folder.glob(pattern)) for pattern in finished)


def _check_settings(earlier: RunConfig, config: RunConfig, folder: Path) -> None:
    """Raise ValueError if the run to resume had another setting of the result."""
    if type(earlier) is not type(config):
        raise ValueError(
            f"resume: the interrupted run in {folder} was {earlier.program}, and this one is {config.program}; "
            "use --overwrite, or choose another folder"
        )
    fitted = (folder / CHECKPOINTS / PROPENSITIES / RECORD).is_file()
    free = _NO_RESULT | ({"propensity_rows"} if fitted else set())
    for name in (f.name for f in fields(config) if f.name not in free):
        was, now = getattr(earlier, name), getattr(config, name)
        if was != now:
            raise ValueError(
                f"{name}: got {now!r}; the interrupted run in {folder} has {was!r}; "
                "repeat its settings to resume it, or use --overwrite"
            )


def _check_log(earlier: Mapping[str, Any], fingerprint: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError if the run to resume had another log."""
    of_log = ("rows", "pairs", "sha256")
    if any(earlier.get(name) != fingerprint.get(name) for name in of_log):
        counts = [name for name in ("rows", "pairs") if name in fingerprint]
        other = [name for name in counts if earlier.get(name) != fingerprint[name]]
        change = ", ".join(f"{fingerprint[name]} {name} instead of {earlier.get(name)}" for name in other)
        change = (
            change or " and ".join(f"{fingerprint[name]} {name}" for name in counts) + " as before, but other content"
        )
        raise ValueError(
            f"data: the log has changed since the run in {folder} was interrupted: {change}; "
            "bring back the log to resume it, or use --overwrite"
        )
    for name, what in _OF_MODEL.items():
        if name in earlier and earlier[name] != fingerprint.get(name, earlier[name]):
            raise ValueError(
                f"model: {what} changed since the run in {folder} was interrupted, so it would go on with other "
                "tokens or weights; bring back the files of the model to resume it, or use --overwrite"
            )
