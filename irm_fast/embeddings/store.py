"""Embeddings on disk: one vector for every row of a data file, found by a hash of the row's text.

A file is in the safetensors format, with `embeddings` (N, D), float32 or bfloat16, and `row_hash` (N,), int64; its
metadata say how the embeddings were made. While a file is being written, its rows are in parts of the same format
(`models.parts`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from irm_fast.data.problems import FieldError, row_named
from irm_fast.data.writing.whole import whole_path
from irm_fast.embeddings.shards import Shards, files_of, open_files
from irm_fast.models.parts import parts_folder, row_hash
from irm_fast.models.record import SOURCE
from irm_fast.models.tensor_files import HASH, ROW_HASH, damage_to, in_order, memory_of, opened

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

FORMAT = "2"  # of the metadata entry "irm_fast_embeddings"
_WITH_IDS = "1"  # the format whose hashes are of ids, too
_FLAGS = ("normalize", "lower_case", "keeps_bos")  # of a source
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
        keeps_bos: Whether a truncated text kept the BOS token that it began with; of earlier versions, it did not.
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
    keeps_bos: bool = False

    def difference(self, other: Source) -> str:
        """Return the name of the first setting that differs, or "" if none does.

        The names of the models are not compared, because the fingerprint identifies a model.

        Args:
            other: The source to compare with.
        """
        names = [f.name for f in fields(self) if f.name != "model"]
        return next((name for name in names if getattr(self, name) != getattr(other, name)), "")


def read_source(path: str | Path) -> Source:
    """Read how embeddings were made.

    Args:
        path: A file that `irm-fast embed` wrote, a folder of such files, or a pattern of their paths.

    Raises:
        ValueError: A file is missing, damaged, of another format, or not written by `irm-fast embed`; or the files were
            made otherwise than the first of them.
    """
    return _sources(files_of(path))[0]


def read_embeddings(path: str | Path, ids: Sequence[str], messages: Sequence[Messages]) -> np.ndarray:
    """Read the embeddings of N rows, in their order, from files that may hold more rows and in another order.

    Args:
        path: As of `read_source`.
        ids: The ids of the N rows, for errors; in files of earlier versions rows are found by id and text.
        messages: The conversations of the N rows.

    Returns:
        Embeddings (float32) of shape (N, D); a float32 file with exactly these rows in this order is memory-mapped
        instead of copied.

    Raises:
        ValueError: As `read_source`; or rows have no embedding there, and the message says how many and names the
            first.
    """
    rows = open_embeddings(path, [(ids, messages)])
    return rows.read(0, len(rows)).numpy()


def open_embeddings(path: str | Path, parts: Sequence[tuple[Sequence[str], Sequence[Messages]]]) -> Shards:
    """Find the embeddings of N rows in files that may hold more rows and in another order. They are not read yet.

    Args:
        path: As of `read_source`.
        parts: The ids and the conversations of the rows, as of `read_embeddings`, of one part of the rows after the
            other.

    Returns:
        The N rows, memory-mapped, in the order of the parts.

    Raises:
        ValueError: As `read_embeddings`.
    """
    files = files_of(path)
    with_ids = _sources(files)[1] == _WITH_IDS
    held = np.concatenate([_hashes(file) for file in files])
    wanted = np.concatenate([row_hash(ids if with_ids else None, messages) for ids, messages in parts])
    rows = open_files(files)
    if np.array_equal(held, wanted):
        return rows
    return rows[_places(path, [ids for ids, _ in parts], wanted, held, with_ids=with_ids)]


def _sources(files: Sequence[Path]) -> tuple[Source, str]:
    """Return how files were made, and their format; raise ValueError unless they are alike."""
    found = list[tuple[Source, str]]()
    for path in files:
        with opened(path) as file:
            found.append((_source(path, file), file.metadata()["irm_fast_embeddings"]))
        first, now = found[0], found[-1]
        other = first[0].difference(now[0]) or ("format" if first[1] != now[1] else "")
        if other:
            got, expected = (getattr(each[0], other, each[1]) for each in (now, first))
            raise ValueError(
                f"{path}: {other}: got {got!r} where {files[0]} has {expected!r}; expected files of one run of "
                "irm-fast embed: give the folder of one"
            )
    return found[0]


def _hashes(path: Path) -> np.ndarray:
    """Return the row hashes (int64) of a file, of shape (n,)."""
    with opened(path) as file:
        found: np.ndarray = file.get_tensor("row_hash").numpy()
        return found


def _places(
    path: str | Path, ids: Sequence[Sequence[str]], wanted: np.ndarray, held: np.ndarray, *, with_ids: bool
) -> np.ndarray:
    """Return the positions (N,) of the wanted hashes among those held; raise ValueError if one is missing.

    Args:
        path: For the error.
        ids: The ids of the rows, of one part after the other.
        wanted: The hashes of the rows, of shape (N,).
        held: The hashes of the files.
        with_ids: Whether the hashes are of ids, too.
    """
    order = np.argsort(held, kind="stable")
    places = order[np.searchsorted(held, wanted, sorter=order).clip(max=len(held) - 1)]
    lacking = np.flatnonzero(held[places] != wanted)
    if len(lacking):
        ids_too = " id or" if with_ids else ""
        name = next(islice(chain.from_iterable(ids), int(lacking[0]), None))
        unnamed = with_ids and name.rpartition("/")[2].startswith("row-")
        numbers = "; where a log has no ids, line numbers stand for them, and files of this version hold them"
        raise ValueError(
            f"{path}: no embedding of {row_named(name, int(lacking[0]))} with its present text ({len(lacking)} of "
            f"{len(wanted)} rows lack one); the data have new rows, or rows of another{ids_too} "
            f"text{numbers if unnamed else ''}: run irm-fast embed on them"
        )
    return places


def date_of_parts(out: Path) -> str | None:
    """Return the date that a chat template printed for the parts of an interrupted run, or None if none is whole.

    Args:
        out: The file or the folder that the run was to write.
    """
    found = (*parts_folder(out).glob("part-*.safetensors"), *out.glob("*.safetensors"), *out.glob("*.parts/part-*"))
    first = next((path for path in sorted(found) if path.is_file() and not damage_to(path)), None)
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
    sizes = []
    for path in parts:
        with opened(path) as file:
            sizes.append(tuple(file.get_slice("embeddings").get_shape()))
    rows, width = sum(size[0] for size in sizes), sizes[0][1]
    digest = hashlib.blake2b(digest_size=16)
    with whole_path(out) as unfinished, unfinished.open("wb") as file:
        file.write(_header(rows, width, source, digest.hexdigest()))
        for name in in_order(("embeddings", ROW_HASH)):
            for path in parts:
                with opened(path) as part:
                    held = memory_of(part.get_tensor(name))
                    digest.update(held)
                    file.write(held)
        file.seek(0)
        file.write(_header(rows, width, source, digest.hexdigest()))


def damage_to_embeddings(path: str | Path) -> str:
    """Say what is wrong with a file of embeddings, or "" if it holds what was written.

    Args:
        path: A file that `irm-fast embed` wrote. One of an earlier version has no hash of what it holds.
    """
    if text := damage_to(path):
        return text
    try:
        with opened(path) as file:
            _source(path, file)
            rows, hashes = file.get_slice("embeddings").get_shape()[0], file.get_slice(ROW_HASH).get_shape()[0]
    except (ValueError, SafetensorError) as error:
        return str(error)
    return "" if rows == hashes else f"it has {rows} embeddings and {hashes} hashes of rows"


def _header(rows: int, width: int, source: Source, digest: str) -> bytes:
    """Return the header of a safetensors file, padded with spaces to 8 bytes, after its length."""
    split = 8 * rows  # the hashes come first, so that both tensors begin at a multiple of their items' size
    end = split + rows * width * (4 if source.dtype == "float32" else 2)
    content: dict[str, Any] = {
        "__metadata__": {**about(source), HASH: digest},
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
    metadata.pop(HASH, None)
    if version not in (FORMAT, _WITH_IDS):
        hint = "upgrade irm-fast" if version else "not written by irm-fast embed"
        raise ValueError(f"{path}: format: got {version}; expected {FORMAT}: {hint}")
    try:
        flags = {name: metadata[name] == "True" for name in _FLAGS if name in metadata}
        told = {**metadata, **flags, "max_length": int(metadata["max_length"])}
        SOURCE("", told)
        return Source(**told)
    except FieldError as error:
        raise ValueError(f"{path}: damaged metadata: {error.field}: {error.text}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged metadata ({error}); expected those that irm-fast embed wrote") from error
