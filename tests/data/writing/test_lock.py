"""One run a place: a second one is refused by name, and a killed one stands in nobody's way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from irm_fast.data.writing import lock
from irm_fast.data.writing.lock import LOCK, HeldError, Holder, RunLock, check_free, only_run
from irm_fast.data.writing.outputs import OutputFolder


def hold(folder: Path, seconds: float = 60.0) -> subprocess.Popen:
    """A process that holds the lock of a folder; it is ready."""
    code = "import sys, time; from pathlib import Path; from irm_fast.data.writing.lock import only_run\n"
    code += f"with only_run(Path({str(folder)!r}), 'irm-fast test', folder=True): print('ready', flush=True); "
    code += f"time.sleep({seconds})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_second_run_is_refused_by_name_until_the_first_is_gone(tmp_path) -> None:
    folder = tmp_path / "out"
    first = hold(folder)
    try:
        with pytest.raises(
            HeldError, match=rf"output: {folder} is being written by irm-fast test, process {first.pid} on"
        ):
            RunLock(folder, "irm-fast train", folder=True, argument="output").take()
        with pytest.raises(HeldError, match="wait for it, end it, or choose another place"):
            check_free(folder, folder=True)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert (folder / LOCK).exists(), "a killed run leaves its lock"
    check_free(folder, folder=True)
    with only_run(folder, "irm-fast train", folder=True):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
        check_free(folder, folder=True)  # by itself
        with pytest.raises(HeldError), only_run(folder, "irm-fast train", folder=True):
            pass
    assert list(folder.iterdir()) == []


def test_what_was_killed_as_it_took_the_lock_leaves_nothing_for_good(tmp_path) -> None:
    left, other = tmp_path / f"{LOCK}.{2**22 + 1}.unfinished", tmp_path / f"{LOCK}.{os.getppid()}.unfinished"
    left.write_text('{"comm')
    other.write_text("of a process that is alive")
    with only_run(tmp_path, "irm-fast train", folder=True):
        assert not left.exists() and other.exists()


def test_folders_that_were_made_for_the_lock_alone_do_not_stay(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such log"), only_run(tmp_path / "a" / "b", "irm-fast train", folder=True):
        raise ValueError("no such log")
    assert list(tmp_path.iterdir()) == []
    with only_run(tmp_path / "a" / "b", "irm-fast train", folder=True):
        (tmp_path / "a" / "result").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]
    with only_run(tmp_path / "out.jsonl", "irm-fast score", folder=False, argument="out"):
        assert (tmp_path / "out.jsonl.lock").exists()
    assert not (tmp_path / "out.jsonl.lock").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; expected a new or empty folder"):
        RunLock(tmp_path / "file", "irm-fast train", folder=True, argument="output").take()


@pytest.mark.parametrize("where", ["another host", "another container", "no name"])
@pytest.mark.parametrize("age", [lock.LEASE - 60, lock.LEASE + 60])
def test_the_lock_of_another_machine_holds_until_its_lease_is_over(tmp_path, where, age) -> None:
    me = Holder.this("irm-fast train")
    there = {"another host": replace(me, host="elsewhere"), "another container": replace(me, space="pid:[1]")}.get(
        where
    )
    path = tmp_path / LOCK
    path.write_text(json.dumps(asdict(there)) if there else "")
    os.utime(path, (time.time() - age,) * 2)
    if age > lock.LEASE:
        with only_run(tmp_path, "irm-fast train", folder=True):
            assert json.loads(path.read_text())["host"] == me.host
        return
    with pytest.raises(
        HeldError, match=r"wait for it, or, if it is gone, (59|60|61) s: it was last heard of 2\d\d s ago"
    ):
        RunLock(tmp_path, "irm-fast train", folder=True, argument="output").take()


def test_a_number_that_was_given_to_another_process_is_no_sign_of_life(tmp_path) -> None:
    me = Holder.this("irm-fast train")
    if not me.started:
        pytest.skip("this machine does not say when processes started")
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(me, process=os.getppid(), started="an earlier boot 12"))))
    with only_run(tmp_path, "irm-fast train", folder=True):
        pass


def try_it(folder: Path, go, results) -> None:
    taking = RunLock(folder, "irm-fast test", folder=True, argument="output")
    go.wait()
    try:
        taking.take()
        results.put("taken")
        time.sleep(0.5)
        taking.leave()
    except HeldError:
        results.put("held")


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_come_at_once_one_gets_it(tmp_path, stale) -> None:
    if stale:
        (tmp_path / LOCK).write_text(json.dumps(asdict(replace(Holder.this("killed"), process=2**22 + 1))))
    context = multiprocessing.get_context("fork")
    go, results = context.Event(), context.Queue()
    runs = [context.Process(target=try_it, args=(tmp_path, go, results)) for _ in range(6)]
    for run in runs:
        run.start()
    go.set()
    found = sorted(results.get(timeout=30) for _ in runs)
    for run in runs:
        run.join()
    assert found == ["held"] * 5 + ["taken"]


def test_a_file_system_without_links(tmp_path, monkeypatch) -> None:
    def no_links(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with only_run(tmp_path, "irm-fast train", folder=True), pytest.raises(HeldError):
        RunLock(tmp_path, "irm-fast train", folder=True, argument="output").take()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_renewed_and_a_run_that_lost_it_stops(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(lock, "RENEWED", 0.02)
    path = tmp_path / LOCK
    with pytest.raises(KeyboardInterrupt), only_run(tmp_path, "irm-fast train", folder=True):
        os.utime(path, (1, 1))
        until = time.monotonic() + 10
        while path.stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 2
        path.write_text("another run")
        time.sleep(10)
    assert "was taken from this run, which stops" in caplog.text
    assert path.read_text() == "another run", "that of another run stays"


def test_a_lock_neither_fills_a_folder_nor_is_cleared_nor_foreign(tmp_path) -> None:
    kind = OutputFolder("demo", ("note.txt",), (), lambda folder: (folder / "note.txt").is_file())
    (tmp_path / LOCK).touch()
    (tmp_path / f"{LOCK}.12.unfinished").touch()
    (tmp_path / "note.txt.unfinished").mkdir()
    assert kind.foreign(tmp_path) == []
    assert kind.check(tmp_path) == "empty"
    (tmp_path / f"{LOCK}.12.unfinished").unlink()
    (tmp_path / "note.txt").touch()
    kind.check_replaceable(tmp_path, alone=True)
    kind.clear_own(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_on_windows_no_process_is_signalled_and_a_lock_counts_until_it_is_old(tmp_path, monkeypatch) -> None:
    """There os.kill ends the process whatever the signal: the age of the lock decides, as between machines."""
    place = tmp_path / LOCK
    place.write_text(json.dumps(asdict(replace(Holder.this("irm-fast train"), process=2**22 + 1))) + "\n")
    left = tmp_path / f"{LOCK}.{2**22 + 1}.unfinished"
    left.write_text("")
    monkeypatch.setattr(lock.sys, "platform", "win32")
    monkeypatch.setattr(lock.os, "kill", lambda *_: pytest.fail("a process was signalled"))
    with pytest.raises(HeldError, match=r"if it is gone, \d+ s: it was last heard of 0 s ago"):
        check_free(tmp_path, folder=True)
    os.utime(place, (time.time() - lock.LEASE - 1,) * 2)
    with only_run(tmp_path, "irm-fast train", folder=True):
        assert left.exists()
