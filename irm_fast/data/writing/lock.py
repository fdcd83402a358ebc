"""One run a place: a lock file names the run that writes to a folder or a file, and a second one is refused.

A killed run leaves its lock, which does not stand in the way: on the same machine its process is gone, and another
machine sees that the lock is not renewed any more.
"""

from __future__ import annotations

import _thread
import glob
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from irm_fast.data.writing.whole import UNFINISHED, disk_errors, flush

try:
    import fcntl
except ImportError:  # not on Windows, where of two runs that find a stale lock at the same moment both may begin
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

LOCK = "irm_fast.lock"  # in a folder; the lock of a file stands beside it, as NAME.lock
RENEWED, LEASE = 60.0, 300.0  # seconds between renewals, and after which a lock counts as left
_TRIES = 100


class HeldError(ValueError):
    """Another run writes to the same place; the text names it."""


_lost = threading.Event()  # set once a lock of this process was taken by another one


def check_held() -> None:
    """Raise KeyboardInterrupt if another run has taken a lock of this one: nothing is written there any more."""
    if _lost.is_set():
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Holder:
    """The run that holds a lock.

    Attributes:
        command: What it does.
        host: The name of its machine.
        space: The machine's name for the processes that it belongs to: containers may share the name of a machine.
        process: Its number among them.
        started: When it started, as the machine counts; "" where that is not known.
        since: When it took the lock, for people.
    """

    command: str
    host: str
    space: str
    process: int
    started: str
    since: str

    @staticmethod
    def this(command: str) -> Holder:
        """This process."""
        here = os.getpid()
        return Holder(command, socket.gethostname(), _space(), here, _started(here), time.strftime("%Y-%m-%d %H:%M:%S"))

    def is_gone(self) -> bool | None:
        """Whether its process is gone; None if that cannot be known here."""
        if (self.host, self.space) != (socket.gethostname(), _space()):
            return None
        alive = _is_alive(self.process)
        if not alive:
            return None if alive is None else True
        return self.started != _started(self.process) if self.started else None  # its number may be another one's


class RunLock:
    """The lock of a place.

    Args:
        place: The folder or the file that a run writes.
        command: What the run does, for who is refused: "irm-fast train".
        folder: Whether the place is a folder, which is made where there is none.
        argument: The argument that names the place, for errors.
    """

    def __init__(self, place: Path, command: str, *, folder: bool, argument: str) -> None:
        self.place, self.command, self.folder, self.argument = place, command, folder, argument
        self.path = place / LOCK if folder else place.with_name(f"{place.name}.lock")
        self._text = ""
        self._made: list[Path] = []
        self._left = threading.Event()

    def take(self) -> None:
        """Take the lock, and renew it from now on in a thread.

        Raises:
            HeldError: Another run has it.
            OSError: The folder cannot be written to.
        """
        _lost.clear()
        if self.folder:
            self._make_folder()
        me = Holder.this(self.command)
        self._text = json.dumps(asdict(me)) + "\n"
        own = self.path.with_name(f"{self.path.name}.{me.process}{UNFINISHED}")
        try:
            with disk_errors(self.path):
                self._take(own)
        except BaseException:
            self._remove_folder()
            raise
        finally:
            own.unlink(missing_ok=True)
        self._sweep()
        threading.Thread(target=self._renew, daemon=True).start()

    def leave(self) -> None:
        """Leave the lock, and folders that were made for it alone."""
        self._left.set()
        with suppress(OSError):
            if self.path.read_text(encoding="utf-8") == self._text:
                self.path.unlink()
        self._remove_folder()

    def _sweep(self) -> None:
        """Remove what runs left that were killed while they took the lock."""
        for path in self.path.parent.glob(f"{glob.escape(self.path.name)}.*{UNFINISHED}"):
            process = path.name.removesuffix(UNFINISHED).rpartition(".")[2]
            if process.isdecimal() and _is_alive(int(process)) is False:
                path.unlink(missing_ok=True)

    def _take(self, own: Path) -> None:
        """Give the own file the name of the lock, unless another one has it that is alive."""
        for _ in range(_TRIES):
            own.write_text(self._text, encoding="utf-8")
            flush(own)
            try:
                os.link(own, self.path)
                return
            except FileNotFoundError:  # another machine took it for what a killed run left
                continue
            except FileExistsError:
                if self._replaced(own):
                    return
            except OSError:  # a file system without links
                with suppress(FileExistsError):
                    handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                    os.write(handle, self._text.encode())
                    os.close(handle)
                    return
                if self._replaced(own):
                    return
        raise HeldError(f"{self.argument}: {self.path} is taken by others again and again; try once more")

    def _replaced(self, own: Path) -> bool:
        """Take over the lock of a run that is gone, if nobody else did so meanwhile.

        Raises:
            HeldError: The run is not gone, as far as that can be known.
        """
        try:
            with self.path.open("rb") as file:
                if fcntl is not None:
                    with suppress(OSError):  # a file system that does not know it
                        fcntl.flock(file, fcntl.LOCK_EX)
                held = os.fstat(file.fileno())
                self.refuse_living(file.read(), own.stat().st_mtime - held.st_mtime)
                if not os.path.samestat(held, self.path.stat()):
                    return False
                os.replace(own, self.path)
                return True
        except FileNotFoundError:  # left in this moment
            return False

    def refuse_living(self, text: bytes, age: float, *, others: bool = False) -> None:
        """Refuse the lock of a run that may go on.

        Args:
            text: What the lock says.
            age: How many seconds ago it was renewed.
            others: Whether a run of this process does not count.

        Raises:
            HeldError: The run may go on.
        """
        try:
            holder = Holder(**json.loads(text))
            if others and replace(holder, command="", since="") == replace(Holder.this(""), since=""):
                return
            gone, who = holder.is_gone(), f"{holder.command}, process {holder.process} on {holder.host}"
            since = f" since {holder.since}"
        except (ValueError, TypeError):
            gone, who, since = None, "a run that did not say its name", ""
        if gone or (gone is None and age > LEASE):
            return
        hint = "wait for it, end it, or choose another place"
        if gone is None:
            left = LEASE - age
            hint = f"wait for it, or, if it is gone, {left:.0f} s: it was last heard of {max(age, 0):.0f} s ago"
        raise HeldError(f"{self.argument}: {self.place} is being written by {who}{since}; {hint}")

    def _renew(self) -> None:
        """Renew the lock now and then; end this run if another one has taken it."""
        while not self._left.wait(RENEWED):
            try:
                if self.path.read_text(encoding="utf-8") == self._text:
                    os.utime(self.path)
                    continue
            except FileNotFoundError:
                pass
            except OSError:  # for the moment, perhaps
                continue
            if not self._left.is_set():
                _log.error("%s was taken from this run, which stops: another one may write there", self.path)
                _lost.set()
                _thread.interrupt_main()
            return

    def _make_folder(self) -> None:
        """Make the folder, and note which ones were made."""
        if self.place.exists() and not self.place.is_dir():
            raise ValueError(f"{self.argument}: {self.place} is a file; expected a new or empty folder")
        missing = [path for path in (self.place, *self.place.parents) if not path.exists()]
        self.place.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _remove_folder(self) -> None:
        """Remove the folders that were made, as far as nothing is in them."""
        with suppress(OSError):
            for path in self._made:
                path.rmdir()


def check_free(place: Path, *, folder: bool, argument: str = "output") -> None:
    """See that no other process writes to a place, before the work; nothing is written. Arguments as of `RunLock`.

    Raises:
        HeldError: Another process does.
    """
    lock = RunLock(place, "", folder=folder, argument=argument)
    with suppress(FileNotFoundError):
        lock.refuse_living(lock.path.read_bytes(), time.time() - lock.path.stat().st_mtime, others=True)


@contextmanager
def only_run(place: Path, command: str, *, folder: bool, argument: str = "output") -> Iterator[None]:
    """A context in which no other run writes to a place; arguments as of `RunLock`.

    Raises:
        HeldError: Another run does.
    """
    lock = RunLock(place, command, folder=folder, argument=argument)
    lock.take()
    try:
        yield
    finally:
        lock.leave()


def _is_alive(process: int) -> bool | None:
    """Whether there is a process of this number on this machine; None on Windows, where asking so would end it."""
    if sys.platform == "win32":
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def _space() -> str:
    """The machine's name for the processes that this one belongs to; "" where it has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process of this machine started: the boot of the machine, and its ticks since then; "" if not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path(f'/proc/{process}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return ""
