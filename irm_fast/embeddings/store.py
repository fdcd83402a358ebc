"""Embeddings on disk: one vector for every row of a data file, found by a hash of the row's id and text.

A file is in the safetensors format, with `embeddings` (N, D), float32 or bfloat16, and `row_hash` (N,), int64; its
metadata say how the embeddings were made. While a file is being written, its rows are in a folder of parts of the same
format.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from irm_fast.data.outputs import check_choice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from irm_fast.data.rows import Messages

FORMAT = "1"  # of the metadata entry "irm_fast_embeddings"
_DTYPES = {"float32": "F32", "bfloat16": "BF16"}  # safetensors' names


@dataclass(frozen=True)
class Source:
    """How embeddings were made: the settings with which further embeddings are comparable to them.

    Attributes:
        model: The folder or hub id of the language model.
        kind: "decoder" or "encoder".
        pooling: "last" or "mean".
        max_length: The largest number of tokens of a conversation.
        precision: The dtype of the forward pass, "float32" or "bfloat16".
        dtype: The dtype of the file, "float32" or "bfloat16".
        fingerprint: The `embedder.fingerprint` of the model and its tokenizer, which does not depend on where they are.
    """

    model: str
    kind: str
    pooling: str
    max_length: int
    precision: str
    dtype: str
    fingerprint: str

    def difference(self, other: Source) -> str:
        """Return the name of the first setting that differs, or "" if none does.

        The names of the models are not compared, because the fingerprint identifies a model.

        Args:
            other: The source to compare with.
        """
        names = [f.name for f in fields(self) if f.name != "model"]
        return next((name for name in names if getattr(self, name) != getattr(other, name)), "")


def row_hash(ids: Sequence[str], messages: Sequence[Messages]) -> np.ndarray:
    """Return a hash (int64) of each row, of shape (N,): 8 bytes of BLAKE2b over its id, roles and texts.

    Args:
        ids: The ids of the N rows.
        messages: The conversations of the N rows.
    """
    rows = zip(ids, messages, strict=True)
    digests = (hashlib.blake2b(json.dumps(row).encode(), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def read_source(path: str | Path) -> Source:
    """Read how the embeddings of a file were made.

    Args:
        path: A file that `irm-fast embed` wrote.

    Raises:
        ValueError: The file is missing, damaged, of another format, or not written by `irm-fast embed`.
    """
    with _opened(path) as file:
        return _source(path, file)


def read_embeddings(path: str | Path, ids: Sequence[str], messages: Sequence[Messages]) -> np.ndarray:
    """Read the embeddings of N rows, in their order, from a file that may hold more rows and in another order.

    Args:
        path: A file that `irm-fast embed` wrote.
        ids: The ids of the N rows.
        messages: The conversations of the N rows.

    Returns:
        Embeddings (float32) of shape (N, D); a float32 file with exactly these rows in this order is memory-mapped
        instead of copied.

    Raises:
        ValueError: The file is missing, damaged, of another format or not written by `irm-fast embed`; or rows have no
            embedding there, and the message says how many and names the first.
    """
    wanted = row_hash(ids, messages)
    with _opened(path) as file:
        _source(path, file)
        vectors, held = file.get_tensor("embeddings"), file.get_tensor("row_hash").numpy()
    if not np.array_equal(held, wanted):
        vectors = vectors[_places(path, ids, wanted, held)]
    return vectors.float().numpy()


def _places(path: str | Path, ids: Sequence[str], wanted: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return the positions (N,) of the wanted hashes among those held; raise ValueError if one is missing."""
    order = np.argsort(held, kind="stable")
    places = order[np.searchsorted(held, wanted, sorter=order).clip(max=len(held) - 1)]
    lacking = np.flatnonzero(held[places] != wanted)
    if len(lacking):
        raise ValueError(
            f"{path}: no embedding of row {ids[lacking[0]]!r} with its present text ({len(lacking)} of {len(ids)} rows "
            "lack one); the data have new rows, or rows of another id or text: run irm-fast embed on them"
        )
    return places


def check_target(out: Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Check that a file may be written, and return the folder for its parts; nothing is written.

    Args:
        out: The file to write.
        resume: Whether the parts of an interrupted run may exist.
        overwrite: Whether an earlier file and its parts may exist.

    Raises:
        ValueError: `resume` and `overwrite` are both set; the name does not end in ".safetensors"; its folder does not
            exist; it is a folder; it exists and `overwrite` is not set; parts of an interrupted run exist and neither
            option is set; or the folder of parts holds other files.
    """
    folder = out.with_name(out.name + ".parts")
    check_choice(resume=resume, overwrite=overwrite)
    if out.suffix != ".safetensors":
        raise ValueError(f"out: got {out.name!r}; expected a name that ends in .safetensors")
    if not out.parent.is_dir():
        raise ValueError(f"out: no such folder as {str(out.parent)!r}; make it first")
    if out.is_dir():
        raise ValueError(f"out: {out} is a folder; expected the name of a file")
    if out.exists() and not overwrite:
        raise ValueError(f"out: {out} exists already; --overwrite replaces it")
    if folder.exists() and not (resume or overwrite):
        raise ValueError(f"out: {folder} holds an interrupted run; --resume goes on with it, --overwrite starts anew")
    foreign = [path.name for path in folder.iterdir() if not path.match("part-*")] if folder.is_dir() else []
    if foreign:
        raise ValueError(f"out: {folder} holds {foreign[0]!r}, not of an interrupted run; move it elsewhere")
    return folder


def write_part(path: Path, vectors: Tensor, hashes: np.ndarray, source: Source) -> None:
    """Write a part of a file; it appears under its name only when it is complete.

    Args:
        path: The file of the part.
        vectors: Embeddings of shape (n, D), converted to `source.dtype`.
        hashes: The row hashes (int64) of shape (n,).
        source: How the embeddings were made.
    """
    import torch
    from safetensors.torch import save_file

    tensors = {"embeddings": vectors.to(getattr(torch, source.dtype)), "row_hash": torch.from_numpy(hashes.copy())}
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata=_metadata(source))
    os.replace(unfinished, path)


def check_part(path: Path, ids: Sequence[str], hashes: np.ndarray, source: Source) -> None:
    """Check that a part holds the expected rows, embedded with the expected settings.

    Args:
        path: The file of the part.
        ids: The ids of the n rows, for the message.
        hashes: The expected row hashes (int64) of shape (n,).
        source: The expected settings.

    Raises:
        ValueError: The part is damaged, or its rows or settings are others.
    """
    choice = "repeat what the interrupted run had to resume it, or start anew with --overwrite"
    with _opened(path) as file:
        earlier, held = _source(path, file), file.get_tensor("row_hash").numpy()
    if name := earlier.difference(source):
        was, now = getattr(earlier, name), getattr(source, name)
        got = (
            "model: other weights or tokenizer" if name == "fingerprint" else f"{name}: got {now!r} instead of {was!r}"
        )
        raise ValueError(f"{got}: {path} was written otherwise; {choice}")
    if not np.array_equal(held, hashes):
        shared = min(len(held), len(hashes))
        first = ids[min(int((held[:shared] == hashes[:shared]).cumprod().sum()), len(ids) - 1)]
        raise ValueError(f"data: row {first!r} is not what {path} was written from, in that place; {choice}")


def merge_parts(parts: Sequence[Path], out: Path, source: Source) -> None:
    """Write the parts as one file, with one part in memory at a time; it appears under its name only when complete.

    Args:
        parts: The files of the parts, in order; at least one.
        out: The file to write.
        source: How the embeddings were made.

    Raises:
        ValueError: A part is missing or damaged.
    """
    import torch

    sizes = []
    for path in parts:
        with _opened(path) as file:
            sizes.append(tuple(file.get_slice("embeddings").get_shape()))
    rows, width = sum(size[0] for size in sizes), sizes[0][1]
    unfinished = out.with_name(out.name + ".unfinished")
    with unfinished.open("wb") as file:
        file.write(_header(rows, width, source))
        for name in ("row_hash", "embeddings"):
            for path in parts:
                with _opened(path) as part:
                    part.get_tensor(name).view(torch.uint8).numpy().tofile(file)
    os.replace(unfinished, out)


def _header(rows: int, width: int, source: Source) -> bytes:
    """Return the header of a safetensors file, padded with spaces to 8 bytes, after its length."""
    split = 8 * rows  # the hashes come first, so that both tensors begin at a multiple of their items' size
    end = split + rows * width * (4 if source.dtype == "float32" else 2)
    content: dict[str, Any] = {
        "__metadata__": _metadata(source),
        "row_hash": {"dtype": "I64", "shape": [rows], "data_offsets": [0, split]},
        "embeddings": {"dtype": _DTYPES[source.dtype], "shape": [rows, width], "data_offsets": [split, end]},
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _metadata(source: Source) -> dict[str, str]:
    """Return the metadata entries of a file, all of them strings."""
    return {"irm_fast_embeddings": FORMAT, **{name: str(value) for name, value in asdict(source).items()}}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file to read tensors from; raise ValueError if it is missing or damaged."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: not found; expected a file that irm-fast embed wrote")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or no safetensors file: {error}; expected one of irm-fast embed") from error


def _source(path: str | Path, file: Any) -> Source:
    """Return the source that the metadata of an open file name; raise ValueError if they name none."""
    metadata = file.metadata() or {}
    version = metadata.pop("irm_fast_embeddings", None)
    if version != FORMAT:
        hint = "upgrade irm-fast" if version else "not written by irm-fast embed"
        raise ValueError(f"{path}: format: got {version}; expected {FORMAT}: {hint}")
    try:
        return Source(**{**metadata, "max_length": int(metadata["max_length"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged metadata ({error}); expected those that irm-fast embed wrote") from error
