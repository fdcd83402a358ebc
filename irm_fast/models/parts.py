"""Files that are written in parts: what was computed of some thousand rows outlives an interruption.

A part is a file in the safetensors format, in the folder NAME.parts beside the file to write. It holds the columns that
were computed, each of shape (n, ...), a hash of each row, and in its metadata how the columns were made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.data.problems import shown
from irm_fast.data.writing.lock import check_free
from irm_fast.data.writing.outputs import check_choice, check_folder_of
from irm_fast.data.writing.whole import is_unfinished
from irm_fast.models.passes import Passes, rows_bar
from irm_fast.models.processes import check_same, from_main_process, is_first
from irm_fast.models.rendering import RenderingCheck
from irm_fast.models.tensor_files import HASH, ROW_HASH, damage_to, in_order, memory_of, opened

if TYPE_CHECKING:
    from torch import Tensor

    from irm_fast.data.messages import Messages

PART_ROWS = 4096  # what an interruption loses at most, and what is sorted by length


@dataclass(frozen=True)
class Work:
    """What is computed of the rows of a file, and where it is written.

    Attributes:
        out: The file to write.
        ids: The ids of N rows; slices of them are read as they are needed.
        messages: The conversations of the N rows, likewise.
        about: How the columns are made, by name. A resumed run has to make them alike, but for the entry "model", which
            says where the model is; "fingerprint" tells whether it is the same.
        compute: A function that returns columns of n rows, given their ids and conversations, each of shape (n, ...).
        merge: A function that writes the parts, in their order, as one file.
        rendering: Gets all conversations before the work begins. None: nothing is checked.
        by_text: Whether a row is one of the same text, whatever its id.
        rows: The rows that the file holds. None: all.
    """

    out: Path
    ids: Sequence[str]
    messages: Sequence[Messages]
    about: Mapping[str, str]
    compute: Callable[[Sequence[str], Sequence[Messages], Passes], Mapping[str, Tensor]]
    merge: Callable[[Sequence[Path]], None]
    rendering: RenderingCheck | None = None
    by_text: bool = False
    rows: range | None = None

    @property
    def span(self) -> range:
        """The numbers of the rows that the file holds."""
        return range(len(self.ids)) if self.rows is None else self.rows

    @property
    def parts(self) -> dict[Path, slice]:
        """The rows of each part, by its file."""
        rows, folder = self.span, parts_folder(self.out)
        return {
            folder / f"part-{number:05}.safetensors": slice(start, min(start + PART_ROWS, rows.stop))
            for number, start in enumerate(range(rows.start, rows.stop, PART_ROWS))
        }

    def checked(self) -> np.ndarray:
        """Check that the chat template takes all rows, and return a hash (int64) of each, of shape (N,).

        Raises:
            ValueError: As `RenderingCheck.report`.
        """
        hashes = [np.empty(0, np.int64)]
        for rows in self.parts.values():
            messages = list(self.messages[rows])
            hashes.append(self._hashes(list(self.ids[rows]), messages))
            if self.rendering is not None:
                self.rendering.add(messages)
        if self.rendering is not None:
            self.rendering.report(self.ids)
        return np.concatenate(hashes)

    def columns(self, rows: slice, hashes: np.ndarray, passes: Passes) -> Mapping[str, Tensor]:
        """Compute the columns of a part.

        Args:
            rows: The rows of the part.
            hashes: What `checked` returned.
            passes: How rows go through the model.

        Raises:
            ValueError: The rows are others than those that were checked.
        """
        ids, messages = list(self.ids[rows]), list(self.messages[rows])
        if not np.array_equal(self._hashes(ids, messages), hashes[rows]):
            raise ValueError(f"data: rows {rows.start + 1} and on have changed since they were checked; start anew")
        return self.compute(ids, messages, passes)

    def _hashes(self, ids: Sequence[str], messages: Sequence[Messages]) -> np.ndarray:
        return row_hash(None if self.by_text else ids, messages)


def write_in_parts(work: Work, passes: Passes, *, resume: bool = False, overwrite: bool = False) -> None:
    """Compute columns of rows in parts, and then write them as one file.

    An interrupted run leaves its finished parts, and `resume` goes on with them. With several processes each computes
    its share of every part, and the first one writes.

    Args:
        work: What is computed.
        passes: How rows go through the model.
        resume: Whether to keep the finished parts of an interrupted run.
        overwrite: Whether to replace an earlier file and its parts.

    Raises:
        ValueError: A part was made from other rows or otherwise.
        KeyboardInterrupt: The run was interrupted; its text says how to go on.
    """
    hashes = work.checked()
    if passes.distributed:
        check_same("rows", len(hashes), int(np.bitwise_xor.reduce(hashes * np.arange(1, len(hashes) + 1))))
    write_parts(work, hashes, passes, resume=resume, overwrite=overwrite)


def write_parts(
    work: Work, hashes: np.ndarray, passes: Passes, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Do what `write_in_parts` does with rows that were checked.

    Args:
        work: As of `write_in_parts`.
        hashes: What `Work.checked` returned, of all rows.
        passes: As of `write_in_parts`, and so are the others.
    """
    parts, folder = work.parts, parts_folder(work.out)
    from_main = partial(from_main_process, distributed=passes.distributed)

    def prepare() -> set[Path]:
        finished = check_parts(work, hashes) if resume else set()
        if overwrite and folder.is_dir():
            shutil.rmtree(folder)
        if overwrite:
            work.out.unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)
        return finished

    finished = from_main(prepare)
    try:
        with rows_bar(len(work.span), passes.progress) as bar:
            done = 0
            for path, rows in parts.items():
                if path not in finished:
                    columns = work.columns(rows, hashes, replace(passes, done=bar.update))
                    from_main(partial(write_part, path, columns, hashes[rows], work.about))
                done += rows.stop - rows.start
                bar.update(done - bar.n)
        from_main(partial(work.merge, list(parts)))
        from_main(partial(shutil.rmtree, folder))
    except KeyboardInterrupt as stop:
        if any(path.exists() for path in parts):
            raise type(stop)("--resume goes on from the last whole part") from None
        raise
    finally:
        if is_first() or not passes.distributed:
            with suppress(OSError):  # of an empty folder nothing need be left
                folder.rmdir()


def check_parts(work: Work, hashes: np.ndarray) -> set[Path]:
    """Check the parts that an interrupted run has finished, and return their files.

    Args:
        work: What is computed.
        hashes: What `Work.checked` returned.

    Raises:
        ValueError: As `check_part`.
    """
    found = {path: rows for path, rows in work.parts.items() if path.exists() and not is_damaged(path)}
    for path, rows in found.items():
        check_part(path, work.ids, rows, hashes, work.about)
    return set(found)


def is_damaged(path: Path) -> bool:
    """Whether a file is not as it was written; a warning then says that its rows are computed anew."""
    if text := damage_to(path):
        warn_caller(f"{path} is passed over: {text}; its rows are computed anew")
    return bool(text)


def row_hash(ids: Sequence[str] | None, messages: Sequence[Messages]) -> np.ndarray:
    """Return a hash (int64) of each row, of shape (N,): 8 bytes of BLAKE2b over its id, roles and texts.

    Args:
        ids: The ids of the N rows. None leaves them out.
        messages: The conversations of the N rows.
    """
    rows: Iterable[object] = messages if ids is None else zip(ids, messages, strict=True)
    digests = (hashlib.blake2b(json.dumps(row).encode(), digest_size=8).digest() for row in rows)
    return np.fromiter((int.from_bytes(digest, "little", signed=True) for digest in digests), np.int64, len(messages))


def parts_folder(out: Path) -> Path:
    """The folder for the parts of a file."""
    return out.with_name(out.name + ".parts")


def check_target(out: Path, *, resume: bool = False, overwrite: bool = False, replaces: bool = False) -> None:
    """Check that a file may be written in parts; nothing is written.

    Args:
        out: The file to write.
        resume: Whether the parts of an interrupted run may exist.
        overwrite: Whether an earlier file and its parts may exist.
        replaces: Whether an earlier file may exist in any case.

    Raises:
        ValueError: `resume` and `overwrite` are both set; the folder of the file does not exist; another run writes the
            file (`HeldError`); the file is a folder; it exists and may not; parts of an interrupted run exist and
            neither option is set; or the folder of parts holds other files.
    """
    folder = parts_folder(out)
    check_choice(resume=resume, overwrite=overwrite)
    check_folder_of(out)
    check_free(out, folder=False, argument="out")
    if out.is_dir():
        raise ValueError(f"out: {out} is a folder; expected the name of a file")
    if out.exists() and not (overwrite or replaces):
        raise ValueError(f"out: {out} exists already; --overwrite replaces it")
    if folder.exists() and not (resume or overwrite):
        raise ValueError(f"out: {folder} holds an interrupted run; --resume goes on with it, --overwrite starts anew")
    foreign = [path.name for path in folder.iterdir() if not _is_of_parts(path)] if folder.is_dir() else []
    if foreign:
        raise ValueError(f"out: {folder} holds {foreign[0]!r}, not of an interrupted run; move it elsewhere")


def _is_of_parts(entry: Path) -> bool:
    """Whether an entry of the folder of parts is a part, or what a killed run left of one."""
    return fnmatch(entry.name, "part-*") or is_unfinished(entry)


def write_part(path: Path, columns: Mapping[str, Tensor], hashes: np.ndarray, about: Mapping[str, str]) -> None:
    """Write a part of a file; it appears under its name only when it is complete.

    Args:
        path: The file of the part.
        columns: What was computed, each of shape (n, ...).
        hashes: The row hashes (int64) of shape (n,).
        about: How the columns were made.
    """
    import torch

    from irm_fast.models.record import save_tensors

    tensors = {**columns, ROW_HASH: torch.from_numpy(hashes.copy())}
    digest = hashlib.blake2b(digest_size=16)
    for name in in_order(tensors):
        digest.update(memory_of(tensors[name]))
    save_tensors(tensors, path, {**about, HASH: digest.hexdigest()})


def check_part(path: Path, ids: Sequence[str], rows: slice, hashes: np.ndarray, about: Mapping[str, str]) -> None:
    """Check that a part holds the expected rows, computed as expected.

    Args:
        path: The file of the part.
        ids: The ids of the N rows of all parts, for the message.
        rows: The rows of this part.
        hashes: The expected row hashes (int64) of all rows, of shape (N,).
        about: How the columns are expected to be made.

    Raises:
        ValueError: The part is damaged, or its rows or settings are others.
    """
    choice = "repeat what the interrupted run had to resume it, or start anew with --overwrite"
    with opened(path) as file:
        earlier, held = file.metadata() or {}, file.get_tensor("row_hash").numpy()
    for name, now in about.items():
        was = earlier.get(name)
        if name == "model" or was == now:
            continue
        other = f"{name}: got {now} instead of {was}"
        got = "model: other weights or tokenizer" if name == "fingerprint" else other
        raise ValueError(f"{got}: {path} was written otherwise; {choice}")
    expected = hashes[rows]
    if not np.array_equal(held, expected):
        shared = min(len(held), len(expected))
        first = ids[rows.start + min(int((held[:shared] == expected[:shared]).cumprod().sum()), len(expected) - 1)]
        raise ValueError(f"data: row {shown(first)} is not what {path} was written from, in that place; {choice}")
