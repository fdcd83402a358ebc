"""One guard for everything that a command writes: its own earlier output may be replaced, anything else stays.

A command that writes a folder describes it with an `OutputFolder`; one that writes single files calls `check_file`.
Nothing in this module follows a symbolic link or deletes what the command did not write itself. Files are written by
`irm_fast.data.writing.whole`, so that each is whole or absent.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from irm_fast.data.writing.lock import LOCK
from irm_fast.data.writing.whole import is_unfinished

State = Literal["new", "empty", "ours", "foreign"]


class OutputExistsError(FileExistsError, ValueError):
    """The error for a file that exists and may not be replaced: a file system's error, and an argument's."""


@dataclass(frozen=True)
class OutputFolder:
    """A folder that one kind of run writes.

    Attributes:
        run: The kind of run, as errors name it: "demo", "training run".
        files: Names or patterns of the files that a run writes into the folder.
        folders: Names or patterns of the folders that a run writes into the folder, with all they hold.
        is_marked: Says whether a folder bears the mark of such a run, usually a file with a certain content.
        argument: The argument that names the folder, with which each error begins.
        mark: The file of the mark, which is deleted last: until then the folder is known as one of such a run.

    Examples:
        >>> import tempfile
        >>> kind = OutputFolder("demo", ("table.md",), (), lambda folder: (folder / "table.md").is_file())
        >>> folder = Path(tempfile.mkdtemp())
        >>> kind.state(folder)
        'empty'
        >>> _ = (folder / "table.md").write_text("1"), (folder / "thesis.tex").write_text("mine")
        >>> kind.state(folder), kind.foreign(folder)
        ('ours', ['thesis.tex'])
        >>> kind.clear_own(folder)
        >>> [path.name for path in folder.iterdir()]
        ['thesis.tex']
    """

    run: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    is_marked: Callable[[Path], bool]
    argument: str = "output"
    mark: str = ""

    def state(self, folder: Path) -> State:
        """Tell in what state a folder is; nothing is written.

        Args:
            folder: The folder that a run is about to write.

        Returns:
            "new" if it does not exist, "empty" if it holds nothing that is whole, "ours" if it bears the mark of such a
            run, and "foreign" otherwise.

        Raises:
            ValueError: The path is no folder.
        """
        if not folder.exists() and not folder.is_symlink():
            return "new"
        if not folder.is_dir():
            raise ValueError(f"{self.argument}: {folder} is a file; expected a new or empty folder")
        if all(self._is_passing(entry) for entry in folder.iterdir()):
            return "empty"
        return "ours" if self.is_marked(folder) else "foreign"

    def check(self, folder: Path) -> State:
        """Tell in what state a folder is, as `state` does, and refuse a foreign one.

        Raises:
            ValueError: The path is no folder, or the folder holds something and no such run wrote it.
        """
        state = self.state(folder)
        if state == "foreign":
            raise ValueError(
                f"{self.argument}: {folder} is not empty and holds no earlier {self.run}; "
                "expected a new or empty folder"
            )
        return state

    def check_replaceable(self, folder: Path, *, alone: bool = False) -> None:
        """See that `clear_own` would make room in a folder for a new run; nothing is deleted.

        Args:
            folder: The folder of an earlier run.
            alone: Also refuse entries that are not in the way.

        Raises:
            ValueError: An entry with a name that a run writes is a symbolic link, through which a run would write, or
                of another kind, or (where `alone` is set) the folder holds any entry that no run wrote.
        """
        for name in self.foreign(folder):
            if alone or any(fnmatch(name, pattern) for pattern in (*self.files, *self.folders)):
                raise ValueError(
                    f"{self.argument}: {folder} holds {name!r}, not written by an earlier {self.run}, and it is not "
                    "deleted; move it elsewhere, or choose another folder"
                )

    def held(self, folder: Path, what: str, *, resume: bool) -> ValueError:
        """The error for a folder that holds an earlier run where neither `--resume` nor `--overwrite` was given.

        Args:
            folder: The folder.
            what: What it holds: "a finished run", "an interrupted run".
            resume: Whether `--resume` could go on with it.
        """
        choice = "--resume goes on with it, --overwrite replaces it" if resume else "--overwrite replaces it"
        return ValueError(f"{self.argument}: {folder} is not empty: it holds {what}; {choice}")

    def is_own(self, entry: Path) -> bool:
        """Whether an entry of the folder has a name that a run writes, and is of that kind; no symbolic link is.

        What a killed run left of a file that it was writing is its own, too, and the lock of the folder.
        """
        if entry.is_symlink():
            return False
        if self._is_passing(entry):
            return True
        patterns = self.folders if entry.is_dir() else self.files
        return any(fnmatch(entry.name, pattern) for pattern in patterns)

    def _is_passing(self, entry: Path) -> bool:
        """Whether an entry is the lock of the folder, or what a killed run left of a file that it was writing."""
        return entry.name == LOCK or is_unfinished(entry, (*self.files, *self.folders, f"{LOCK}.*"))

    def foreign(self, folder: Path) -> list[str]:
        """Sorted names of the entries that no run wrote."""
        return sorted(entry.name for entry in folder.iterdir() if not self.is_own(entry))

    def clear_own(self, folder: Path) -> None:
        """Delete what a run wrote into the folder, if there is one; everything else stays, and so does the lock."""
        if not folder.is_dir():
            return
        own = [entry for entry in folder.iterdir() if self.is_own(entry) and entry.name != LOCK]
        for entry in sorted(own, key=lambda entry: entry.name == self.mark):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def check_choice(*, resume: bool, overwrite: bool) -> None:
    """Refuse `--resume` and `--overwrite` together.

    Raises:
        ValueError: Both are set.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite: both are set; choose one")


def check_suffix(path: Path, suffix: str, *, argument: str = "out") -> None:
    """Refuse the name of a file that does not end as its content asks for.

    Args:
        path: The file that a command is about to write.
        suffix: The end that its name should have, such as ".jsonl".
        argument: The argument that names the file.

    Raises:
        ValueError: The name ends otherwise.
    """
    if path.suffix != suffix:
        raise ValueError(f"{argument}: got {path.name!r}; expected a name that ends in {suffix}")


def check_folder_of(path: Path, *, argument: str = "out") -> None:
    """Refuse a file whose folder does not exist.

    Raises:
        ValueError: There is no such folder.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{argument}: no such folder as {str(path.parent)!r}; make it first")


def check_file(path: Path, *, overwrite: bool, argument: str = "out") -> None:
    """See that a command may write a file; nothing is written.

    Args:
        path: The file.
        overwrite: Whether a file of this name may be replaced.
        argument: The argument that names the file.

    Raises:
        ValueError: The path is a folder.
        OutputExistsError: There is a file already, and it may not be replaced.
    """
    if path.is_dir():
        raise ValueError(f"{argument}: {path} is a folder; expected the name of a file")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{argument}: {path} exists already; --overwrite replaces it")
