"""Embeddings on their way to disk: one file of all rows, or a folder of shards, which several processes write.

A shard is a file like that of all rows (`store`), named by its number and the number of all. Each process writes whole
shards and nothing else, so that none has the vectors of another.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from irm_fast.data.problems import row_named
from irm_fast.data.writing.lock import check_free
from irm_fast.data.writing.outputs import OutputFolder, check_choice, check_folder_of
from irm_fast.data.writing.whole import is_unfinished
from irm_fast.embeddings.embedder import Embedder, check_choice_of
from irm_fast.embeddings.store import about, merge_parts
from irm_fast.models.parts import (
    Work,
    check_part,
    check_parts,
    check_target,
    is_damaged,
    parts_folder,
    write_in_parts,
    write_parts,
)
from irm_fast.models.passes import Passes
from irm_fast.models.processes import alone, check_same, from_all, from_main_process, joined

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

DTYPES = ("float32", "bfloat16")
SHARD_ROWS = 16_384  # four parts: 268 MB of 4,096 numbers a row
_NAME = "embeddings-{:05}-of-{:05}.safetensors"
_SHARDS = "embeddings-*-of-*.safetensors"
_FOLDER = OutputFolder(
    run="run of irm-fast embed",
    files=(_SHARDS,),
    folders=(f"{_SHARDS}.parts",),
    is_marked=lambda folder: any(folder.glob(f"{_SHARDS}*")),
    argument="out",
)


def write_embeddings(
    ids: Sequence[str],
    messages: Sequence[Messages],
    embedder: Embedder,
    out: str | Path,
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    dtype: str = "float32",
    shard_rows: int = SHARD_ROWS,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    distributed: bool = False,
) -> int:
    """Embed N rows, in parts of 4,096 rows, into a file, or into a folder of files.

    An interrupted run leaves its finished parts, in a folder of the file's name and ".parts".

    Args:
        ids: The ids of the N rows, of which slices are read.
        messages: The conversations of the N rows, likewise.
        embedder: The model that embeds them.
        out: The file to write, whose name ends in ".safetensors"; or a folder, of a name without an end, which gets
            files such as embeddings-00000-of-00004.safetensors.
        batch_size: The number of conversations per forward pass, at most. None: no limit.
        token_budget: The number of tokens per forward pass, at most. None: 16,384 on a GPU, and 2,048 on a CPU.
        dtype: The dtype of the files: "float32" or "bfloat16".
        shard_rows: The number of rows of a file of a folder.
        resume: Whether to keep what an interrupted run has finished.
        overwrite: Whether to replace what an earlier run wrote.
        progress: Whether to show a progress bar on stderr, if that is a terminal.
        distributed: Whether all processes of a torchrun share the rows: of a file each part, which the first one
            writes; of a folder the files, which each writes by itself.

    Returns:
        How many rows were truncated to the model's limit; rows of parts that were kept are not counted.

    Raises:
        ValueError: `dtype` is unknown, `out` may not be written, a part was made from other rows or with other
            settings, or an embedding is not finite.
    """
    check_choice_of("dtype", dtype, DTYPES)
    out, source, truncated = Path(out), replace(embedder.source, dtype=dtype), 0
    check = partial(check_embeddings_target, out, resume=resume, overwrite=overwrite)
    from_main_process(check, distributed=distributed)

    def compute(names: Sequence[str], some: Sequence[Messages], passes: Passes) -> dict[str, Tensor]:
        nonlocal truncated
        vectors, longer = embedder.embed(some, passes)
        truncated += longer
        bad = torch.nonzero(~vectors.isfinite().all(1))
        if len(bad):
            first = int(bad[0])
            raise ValueError(
                f"{row_named(names[first], first)}: its embedding is not finite (nor those of {len(bad) - 1} more "
                f"rows); expected numbers; the model may be too imprecise in {source.precision}"
            )
        return {"embeddings": vectors.to(getattr(torch, dtype))}

    merge, rendering = partial(merge_parts, out=out, source=source), embedder.rendering()
    work = Work(out, ids, messages, about(source), compute, merge, rendering, by_text=True)
    passes = Passes(batch_size, token_budget, distributed, progress)
    with alone(out, "irm-fast embed", folder=is_folder(out), argument="out", distributed=distributed):
        from_main_process(check, distributed=distributed)  # once more: nobody else writes there from now on
        if not is_folder(out):
            write_in_parts(work, passes, resume=resume, overwrite=overwrite)
            return truncated
        _write_shards(work, passes, shard_rows, resume=resume, overwrite=overwrite)
    return sum(from_all(truncated)) if distributed else truncated


def is_folder(out: Path) -> bool:
    """Whether embeddings go to a folder, by its name: one that exists, or that has no end."""
    return out.suffix != ".safetensors" and (out.is_dir() or not out.suffix)


def check_embeddings_target(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Check that a file or a folder of embeddings may be written; nothing is written.

    Args:
        out: The file, whose name ends in ".safetensors", or the folder.
        resume: Whether what an interrupted run has finished may exist.
        overwrite: Whether what an earlier run wrote may exist.

    Raises:
        ValueError: As `check_target`, or the folder holds something else.
    """
    if not is_folder(out):
        if out.suffix != ".safetensors":
            raise ValueError(
                f"out: got {out.name!r}; expected a name that ends in .safetensors, or for several files the name of a "
                "folder, without an end"
            )
        check_target(out, resume=resume, overwrite=overwrite)
        return
    check_choice(resume=resume, overwrite=overwrite)
    check_folder_of(out)
    check_free(out, folder=True, argument="out")
    if _FOLDER.check(out) != "ours":
        return
    _FOLDER.check_replaceable(out)
    names = [path.name for path in out.glob(_SHARDS)]
    numbers = {re.findall(r"\d+", name)[1] for name in names}
    whole = len(numbers) == 1 and len(names) == int(*numbers)
    if not overwrite and (whole or not resume):
        raise _FOLDER.held(out, "a finished run" if whole else "an interrupted run", resume=not whole)


def _write_shards(work: Work, passes: Passes, shard_rows: int, *, resume: bool, overwrite: bool) -> None:
    """Write the shards of a folder, each process every so manieth; arguments as of `write_embeddings`.

    Raises:
        ValueError: The folder holds shards or parts of other rows, or that were made otherwise.
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows: got {shard_rows}; expected 1 or more")
    hashes, distributed = work.checked(), passes.distributed
    if distributed:
        check_same("rows", len(hashes), int(hashes.sum()))
    starts = range(0, len(hashes), shard_rows)
    shards = [
        replace(
            work,
            out=(path := work.out / _NAME.format(number, len(starts))),
            rows=range(start, min(start + shard_rows, len(hashes))),
            merge=partial(work.merge, out=path),  # type: ignore[call-arg]
        )
        for number, start in enumerate(starts)
    ]

    def prepare() -> set[Path]:
        if overwrite:
            _FOLDER.clear_own(work.out)
        work.out.mkdir(exist_ok=True)
        left = [path for path in work.out.glob(f"{_SHARDS}*") if not is_unfinished(path)]
        found = {path.with_name(path.name.removesuffix(".parts")) for path in left}
        other = sorted(path.name for path in found - {shard.out for shard in shards})
        if other:
            raise ValueError(
                f"out: {work.out} holds {other[0]}, where these rows make {len(shards)} files; repeat the rows and "
                "--shard-rows of the interrupted run to resume it, or start anew with --overwrite"
            )
        whole = {shard.out for shard in shards if shard.out.is_file() and not is_damaged(shard.out)}
        for path in whole:  # of which a killed run has left the parts
            shutil.rmtree(parts_folder(path), ignore_errors=True)
        for shard in shards:  # all of them before the work begins
            if shard.out in whole:
                check_part(shard.out, shard.ids, slice(shard.span.start, shard.span.stop), hashes, shard.about)
            elif parts_folder(shard.out).is_dir():
                check_parts(shard, hashes)
        return whole

    finished = from_main_process(prepare, distributed=distributed)
    place = joined() if distributed else None
    mine = shards[place.process_index :: place.num_processes] if place else shards
    for shard in mine:
        if shard.out not in finished:
            write_parts(shard, hashes, replace(passes, distributed=False), resume=resume)
    from_main_process(lambda: None, distributed=distributed)  # waits until all shards are there
