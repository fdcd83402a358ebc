"""A file is whole or absent: every record, output and tensor file of this package is written here.

A file is written aside, in a folder beside its place whose name ends in `.unfinished`; then it is flushed to the disk,
and takes its name in one step. Who is killed in between leaves such a folder, which `is_unfinished` knows and the next
writer replaces. Where a disk is full, `disk_errors` says so, names the file, and says what to do.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TextIO

UNFINISHED = ".unfinished"  # the end of the names of what is being written
_OF_SAFETENSORS = ".tmp" + 6 * "[0-9A-Za-z]"  # what its library leaves beside a file when it is killed
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID_TO_BE_FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")
_SAID_TO_BE_LARGE = ("File too large", "os error 27")
_SAID_BY_TORCH = ("inline_container", "PytorchStreamWriter")  # a short write, whatever was the cause


class UnwrittenError(OSError):
    """A file could not be written to its end; the text says which, why, and what to do."""


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Lend the path of a file to write, of the same name, which takes its place only when it is whole.

    After an error nothing is left of it, and an earlier file is as it was. It gets the permissions of an ordinary new
    file. A link and what is no ordinary file, such as /dev/stdout, are written to directly.

    Args:
        path: The file. One of this name is replaced.

    Raises:
        UnwrittenError: The disk is full, or refuses to write.
        OSError: The file cannot be written otherwise.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with disk_errors(path):
            yield path
        return
    with disk_errors(path), _moved(path.parent / f"{path.name}{UNFINISHED}", path.parent) as scratch:
        yield scratch / path.name


@contextmanager
def whole_file(path: Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file to write, which takes its name only when it is whole, as of `whole_path`.

    Args:
        path: The file.
        newline: As of `open`.
    """
    with whole_path(path) as unfinished, unfinished.open("w", encoding="utf-8", newline=newline) as file:
        yield file


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file at once, as of `whole_path`.

    Args:
        path: The file. One of this name is replaced.
        content: All of it; text is written as UTF-8.
    """
    with whole_path(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_files(folder: Path, *, last: str = "") -> Iterator[Path]:
    """Lend an empty folder to write files into, each of which then takes its place in another one, whole.

    It is for libraries that write several files at once, and for copies of folders. The files move one by one.

    Args:
        folder: The folder that the files are for, which is made where there is none. Others in it stay as they are.
        last: The name of a file that moves last, because it says that all are there.

    Raises:
        UnwrittenError: The disk is full, or refuses to write.
        OSError: The files cannot be written otherwise.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _moved(folder / UNFINISHED, folder, last) as scratch:
            yield scratch


@contextmanager
def _moved(scratch: Path, folder: Path, last: str = "") -> Iterator[Path]:
    """Lend a new folder; at the end its files are flushed to the disk and move to their places in another folder."""
    remove_unfinished(scratch)
    scratch.mkdir()
    try:
        yield scratch
        files = sorted(
            (path for path in scratch.rglob("*") if path.is_file()), key=lambda path: (path.name == last, path)
        )
        for file in files:
            file.chmod(_usual_mode())
            flush(file)
        for file in files:
            place = folder / file.relative_to(scratch)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
        for parent in {(folder / file.relative_to(scratch)).parent for file in files}:
            flush(parent)
    finally:
        remove_unfinished(scratch)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; some file systems cannot do it for folders."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def is_unfinished(entry: Path, names: Collection[str] = ("*",)) -> bool:
    """Whether an entry of a folder is what a killed writer left of a file, of ours or of safetensors' library.

    Args:
        entry: The entry.
        names: Names or patterns of the files and folders that are written there.
    """
    if entry.is_symlink():
        return False
    if not entry.is_dir() and fnmatch(entry.name, _OF_SAFETENSORS):
        return True
    name = entry.name.removesuffix(UNFINISHED)
    return name != entry.name and (not name or any(fnmatch(name, pattern) for pattern in names))


def remove_unfinished(entry: Path) -> None:
    """Remove what a writer left unfinished, file or folder, if it is there."""
    with suppress(FileNotFoundError):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _usual_mode() -> int:
    """The permissions of an ordinary new file, which the umask decides; some libraries let only the owner read."""
    mask = os.umask(0o077)  # the one way to ask is to set it; what another thread makes meanwhile stays private
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Within it, an error of a full disk names a file and the remedy, whatever library met it.

    Args:
        path: The file, or the folder of the files, that is written.

    Raises:
        UnwrittenError: In the place of such an error.
    """
    try:
        yield
    except UnwrittenError:
        raise
    except Exception as error:
        text = disk_words(error)
        if not text and type(error) is OSError and error.errno is not None and error.filename is None:
            text = f"could not be written: {error.strerror}; see that its disk works, or choose another place"
        if text:
            raise UnwrittenError(f"{path}: {text}") from error
        raise


def disk_words(error: Exception) -> str:
    """What an error says of a full disk and what to do, in words; "" if it is of something else."""
    text, number = str(error), getattr(error, "errno", None)
    if number in _FULL or any(said in text for said in _SAID_TO_BE_FULL):
        return "could not be written: no space is left on its disk; make room there, or choose another place"
    if number == errno.EFBIG or any(said in text for said in _SAID_TO_BE_LARGE):
        return "could not be written: it is larger than files may be here; see ulimit -f, or choose another place"
    if any(said in text for said in _SAID_BY_TORCH):
        return "could not be written to its end; its disk may be full: make room there, or choose another place"
    return ""
