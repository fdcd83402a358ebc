"""Manifests: which files belong together, how large they are and what they hold, so that damage shows.

A folder that was written to its end holds `irm_fast_files.json`, which is written last. What is damaged or missing is
named by `damage`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from irm_fast.data.writing.whole import flush, is_unfinished, write_whole

MANIFEST = "irm_fast_files.json"
FORMAT = 1
QUICK = 64 * 2**20  # bytes of the largest file that is hashed where a quick answer is wanted
_PIECE = 2**18  # bytes that are hashed at a time
_THREADS = 4  # hashing leaves the interpreter free


def write_manifest(
    folder: Path, names: Iterable[str], *, contents: Mapping[str, str] | None = None, at: Path | None = None
) -> None:
    """Wait until files are on the disk, and write down how large they are and what they hold.

    Args:
        folder: The folder that holds the files.
        names: Their paths within it.
        contents: The contents of files that are to be written after the manifest, by name.
        at: The manifest to write; None: `MANIFEST` in the folder.
    """
    names = sorted(names)
    for name in names:
        flush(folder / name)
    for parent in {(folder / name).parent for name in names}:
        flush(parent)
    entries = dict(zip(names, _entries([folder / name for name in names]), strict=True))
    for name, text in (contents or {}).items():
        held = text.encode()
        entries[name] = {"bytes": len(held), "blake2b": hashlib.blake2b(held, digest_size=16).hexdigest()}
    content = {"format": FORMAT, "files": entries}
    write_whole(at or folder / MANIFEST, json.dumps({**content, "check": check_of(content)}, indent=2) + "\n")


def check_of(content: Mapping[str, Any]) -> str:
    """A hash of what is written down, which stands beside it, so that damage to it shows."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def checked(path: Path) -> dict[str, Any]:
    """Read an object that was written with its `check_of` beside it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        check = content.pop("check")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is damaged: {type(error).__name__}: {error}") from error
    if check != check_of(content):
        raise ValueError(f"{path.name} is damaged: it holds something else than was written")
    return dict(content)


def files_of(folder: Path) -> list[str]:
    """The paths of all files within a folder, but for its manifest and what a killed writer left unfinished."""

    def walk(place: Path) -> Iterator[Path]:
        for entry in sorted(place.iterdir()):
            if entry.is_dir() and not is_unfinished(entry):
                yield from walk(entry)
            elif entry.is_file() and not is_unfinished(entry) and entry != folder / MANIFEST:
                yield entry

    return [path.relative_to(folder).as_posix() for path in walk(folder)]


def read_manifest(at: Path) -> dict[str, dict[str, Any]]:
    """The entries of a manifest by the paths of their files: each has its size in `bytes`, and its `blake2b`.

    Raises:
        ValueError: It is missing or damaged, or of a newer version.
    """
    try:
        held = checked(at)
    except FileNotFoundError:
        raise ValueError(f"{at.name} is missing, which is written last") from None
    if held.get("format") != FORMAT:
        raise ValueError(f"{at.name} has format {held.get('format')}; expected {FORMAT}: upgrade irm-fast")
    files: dict[str, dict[str, Any]] = held["files"]
    return files


def damage(folder: Path, *, at: Path | None = None, quick: bool = False) -> str:
    """Say what is wrong with the files of a manifest, or "" if they are as they were written.

    Args:
        folder: The folder that holds the files.
        at: The manifest; None: `MANIFEST` in the folder.
        quick: Whether to compare only the sizes of files above 64 MB, not what they hold.
    """
    try:
        entries = read_manifest(at or folder / MANIFEST)
    except ValueError as error:
        return str(error)
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
    hashed = [name for name, entry in entries.items() if not quick or entry["bytes"] <= QUICK]
    found = zip(hashed, _entries([folder / name for name in hashed]), strict=True)
    changed = [name for name, entry in found if entry != entries[name]]
    return f"{changed[0]} holds other bytes than were written" if changed else ""


def refuse_damage(folder: Path, writer: str) -> None:
    """Refuse a saved model whose files are not as they were written: sizes of all, and what files up to 64 MB hold.

    A folder without a manifest is of an earlier version, and passes.

    Args:
        folder: The folder.
        writer: The command or method that writes such folders, for the error.

    Raises:
        ValueError: A file is damaged or missing.
    """
    if (folder / MANIFEST).is_file() and (text := damage(folder, quick=True)):
        raise ValueError(
            f"{folder}: {text}: damaged or edited since {writer} wrote it; copy the folder anew or write it again, or "
            f"remove {MANIFEST} from it if the change is meant"
        )


def _entries(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The size of each file, and a hash of what it holds."""
    if len(paths) < 2:
        yield from map(_entry, paths)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(_entry, paths)


def _entry(path: Path) -> dict[str, Any]:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "blake2b": digest.hexdigest()}
