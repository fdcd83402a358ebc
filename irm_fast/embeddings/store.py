"""Embeddings on disk: one vector for every row of a data file, found again by what the row says.

A file is safetensors with `embeddings` (N, D), float32 or bfloat16, and `row_hash` (N,) int64; its metadata say how the
embeddings were made. While it grows it is a folder of parts of the same form.
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from irm_fast.data.rows import Messages

FORMAT = "1"  # of the metadata entry "irm_fast_embeddings"
_DTYPES = {"float32": "F32", "bfloat16": "BF16"}  # safetensors' names


@dataclass(frozen=True)
class Source:
    """How embeddings were made: what makes more of the same kind.

    model: folder or hub id.  kind: "decoder" or "encoder".  pooling: "last" or "mean".  max_length: tokens.
    precision: of the forward pass, "float32" or "bfloat16".  dtype: of the file, the same names.
    fingerprint: of the model's weights and tokens, by `embed.fingerprint`: the same wherever the model lies.
    """

    model: str
    kind: str
    pooling: str
    max_length: int
    precision: str
    dtype: str
    fingerprint: str

    def difference(self, other: Source) -> str:
        """The first setting in which the other differs, "" if none; the model is known by its fingerprint."""
        names = [f.name for f in fields(self) if f.name != "model"]
        return next((name for name in names if getattr(self, name) != getattr(other, name)), "")


def row_hash(ids: Sequence[str], messages: Sequence[Messages]) -> np.ndarray:
    """(N,) int64 from N ids and conversations: 8 bytes of BLAKE2b over each row's id, roles and texts."""
    rows = zip(ids, messages, strict=True)
    digests = (hashlib.blake2b(json.dumps(row).encode(), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def read_source(path: str | Path) -> Source:
    """How the embeddings of a file were made. Raises ValueError for what is no such file."""
    with _opened(path) as file:
        return _source(path, file)


def read_embeddings(path: str | Path, ids: Sequence[str], messages: Sequence[Messages]) -> np.ndarray:
    """Embeddings (N, D) float32 of N rows, in their order.

    The file may hold more rows, and in another order. In the same order, float32 is mapped, not copied.

    Raises:
        ValueError: the file is none of `irm-fast embed`, or a row has no embedding there: which, and how many.
    """
    wanted = row_hash(ids, messages)
    with _opened(path) as file:
        _source(path, file)
        vectors, held = file.get_tensor("embeddings"), file.get_tensor("row_hash").numpy()
    if not np.array_equal(held, wanted):
        vectors = vectors[_places(path, ids, wanted, held)]
    return vectors.float().numpy()


def _places(path: str | Path, ids: Sequence[str], wanted: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(N,) positions of the wanted hashes among those held."""
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
    """The folder for the parts of a file that may be written; writes nothing.

    Raises:
        ValueError: the file exists, or parts of an interrupted run do, and neither `resume` nor `overwrite` applies.
    """
    folder = out.with_name(out.name + ".parts")
    if resume and overwrite:
        raise ValueError("resume and overwrite: both are set; choose one")
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
    """Write `vectors` (n, D) in `source.dtype` with their row hashes (n,); the file appears when it is whole."""
    import torch
    from safetensors.torch import save_file

    tensors = {"embeddings": vectors.to(getattr(torch, source.dtype)), "row_hash": torch.from_numpy(hashes.copy())}
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata=_metadata(source))
    os.replace(unfinished, path)


def check_part(path: Path, ids: Sequence[str], hashes: np.ndarray, source: Source) -> None:
    """Raise ValueError unless a part holds these rows, made in this way."""
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
    """Write the parts as one file, a part in memory at a time; the file appears when it is whole."""
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
    """The beginning of a safetensors file: length of the header, and the header, padded to 8 bytes with spaces."""
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
    return {"irm_fast_embeddings": FORMAT, **{name: str(value) for name, value in asdict(source).items()}}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file, to read tensors from; ValueError where there is none."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: not found; expected a file that irm-fast embed wrote")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or no safetensors file: {error}; expected one of irm-fast embed") from error


def _source(path: str | Path, file: Any) -> Source:
    metadata = file.metadata() or {}
    version = metadata.pop("irm_fast_embeddings", None)
    if version != FORMAT:
        hint = "upgrade irm-fast" if version else "not written by irm-fast embed"
        raise ValueError(f"{path}: format: got {version}; expected {FORMAT}: {hint}")
    try:
        return Source(**{**metadata, "max_length": int(metadata["max_length"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged metadata ({error}); expected those that irm-fast embed wrote") from error
