"""Embeddings on disk: one vector for every row of a data file, found by a hash of the row's text.

A file is in the safetensors format, with `embeddings` (N, D), float32 or bfloat16, and `row_hash` (N,), int64; its
metadata say how the embeddings were made. While a file is being written, its rows are in parts of the same format
(`models.parts`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from irm_fast.data.whole import whole_path
from irm_fast.models.parts import opened, parts_folder, row_hash

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

FORMAT = "2"  # of the metadata entry "irm_fast_embeddings"
_WITH_IDS = "1"  # the format whose hashes are of ids, too
_DTYPES = {"float32": "F32", "bfloat16": "BF16"}  # safetensors' names


@dataclass(frozen=True)
class Source:
    """How embeddings were made: the settings with which further embeddings are comparable to them.

    Attributes:
        model: The folder or hub id of the language model.
        kind: "decoder" or "encoder".
        pooling: "last", "mean" or "cls".
        max_length: The largest number of tokens of a conversation.
        precision: The dtype of the forward pass, "float32" or "bfloat16".
        dtype: The dtype of the file, "float32" or "bfloat16".
        fingerprint: The `embedder.fingerprint` of the model and its tokenizer, which does not depend on where they are.
        normalize: Whether the embeddings are divided by their length.
        prompt: The text that was put before every text.
        lower_case: Whether texts were read in lower case.
        date: The date that the chat template printed; "" if it prints none.
    """

    model: str
    kind: str
    pooling: str
    max_length: int
    precision: str
    dtype: str
    fingerprint: str
    normalize: bool = False
    prompt: str = ""
    lower_case: bool = False
    date: str = ""

    def difference(self, other: Source) -> str:
        """Return the name of the first setting that differs, or "" if none does.

        The names of the models are not compared, because the fingerprint identifies a model.

        Args:
            other: The source to compare with.
        """
        names = [f.name for f in fields(self) if f.name != "model"]
        return next((name for name in names if getattr(self, name) != getattr(other, name)), "")


def read_source(path: str | Path) -> Source:
    """Read how the embeddings of a file were made.

    Args:
        path: A file that `irm-fast embed` wrote.

    Raises:
        ValueError: The file is missing, damaged, of another format, or not written by `irm-fast embed`.
    """
    with opened(path) as file:
        return _source(path, file)


def read_embeddings(path: str | Path, ids: Sequence[str], messages: Sequence[Messages]) -> np.ndarray:
    """Read the embeddings of N rows, in their order, from a file that may hold more rows and in another order.

    Args:
        path: A file that `irm-fast embed` wrote.
        ids: The ids of the N rows, for errors; in files of earlier versions rows are found by id and text.
        messages: The conversations of the N rows.

    Returns:
        Embeddings (float32) of shape (N, D); a float32 file with exactly these rows in this order is memory-mapped
        instead of copied.

    Raises:
        ValueError: The file is missing, damaged, of another format or not written by `irm-fast embed`; or rows have no
            embedding there, and the message says how many and names the first.
    """
    with opened(path) as file:
        _source(path, file)
        with_ids = file.metadata()["irm_fast_embeddings"] == _WITH_IDS
        vectors, held = file.get_tensor("embeddings"), file.get_tensor("row_hash").numpy()
    wanted = row_hash(ids if with_ids else None, messages)
    if not np.array_equal(held, wanted):
        vectors = vectors[_places(path, ids, wanted, held, with_ids=with_ids)]
    return vectors.float().numpy()


def _places(
    path: str | Path, ids: Sequence[str], wanted: np.ndarray, held: np.ndarray, *, with_ids: bool
) -> np.ndarray:
    """Return the positions (N,) of the wanted hashes among those held; raise ValueError if one is missing."""
    order = np.argsort(held, kind="stable")
    places = order[np.searchsorted(held, wanted, sorter=order).clip(max=len(held) - 1)]
    lacking = np.flatnonzero(held[places] != wanted)
    if len(lacking):
        ids_too = " id or" if with_ids else ""
        unnamed = with_ids and ids[lacking[0]].rpartition("/")[2].startswith("row-")
        numbers = "; where a log has no ids, line numbers stand for them, and files of this version hold them"
        raise ValueError(
            f"{path}: no embedding of row {ids[lacking[0]]!r} with its present text ({len(lacking)} of {len(ids)} rows "
            f"lack one); the data have new rows, or rows of another{ids_too} text{numbers if unnamed else ''}: run "
            "irm-fast embed on them"
        )
    return places


def date_of_parts(out: Path) -> str | None:
    """Return the date that a chat template printed for the parts of an interrupted run, or None if there are none.

    Args:
        out: The file or the folder that the run was to write.

    Raises:
        ValueError: The first part is damaged.
    """
    found = (*parts_folder(out).glob("part-*.safetensors"), *out.glob("*.safetensors"), *out.glob("*.parts/part-*"))
    first = next(iter(sorted(found)), None)
    return None if first is None else read_source(first).date


def merge_parts(parts: Sequence[Path], *, out: Path, source: Source) -> None:
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
        with opened(path) as file:
            sizes.append(tuple(file.get_slice("embeddings").get_shape()))
    rows, width = sum(size[0] for size in sizes), sizes[0][1]
    with whole_path(out) as unfinished, unfinished.open("wb") as file:
        file.write(_header(rows, width, source))
        for name in ("row_hash", "embeddings"):
            for path in parts:
                with opened(path) as part:
                    part.get_tensor(name).view(torch.uint8).numpy().tofile(file)


def _header(rows: int, width: int, source: Source) -> bytes:
    """Return the header of a safetensors file, padded with spaces to 8 bytes, after its length."""
    split = 8 * rows  # the hashes come first, so that both tensors begin at a multiple of their items' size
    end = split + rows * width * (4 if source.dtype == "float32" else 2)
    content: dict[str, Any] = {
        "__metadata__": about(source),
        "row_hash": {"dtype": "I64", "shape": [rows], "data_offsets": [0, split]},
        "embeddings": {"dtype": _DTYPES[source.dtype], "shape": [rows, width], "data_offsets": [split, end]},
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def about(source: Source) -> Mapping[str, str]:
    """Return the metadata entries of a file, all of them strings."""
    return {"irm_fast_embeddings": FORMAT, **{name: str(value) for name, value in asdict(source).items()}}


def _source(path: str | Path, file: Any) -> Source:
    """Return the source that the metadata of an open file name; raise ValueError if they name none."""
    metadata = file.metadata() or {}
    version = metadata.pop("irm_fast_embeddings", None)
    if version not in (FORMAT, _WITH_IDS):
        hint = "upgrade irm-fast" if version else "not written by irm-fast embed"
        raise ValueError(f"{path}: format: got {version}; expected {FORMAT}: {hint}")
    try:
        flags = {name: metadata[name] == "True" for name in ("normalize", "lower_case") if name in metadata}
        return Source(**{**metadata, **flags, "max_length": int(metadata["max_length"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged metadata ({error}); expected those that irm-fast embed wrote") from error
