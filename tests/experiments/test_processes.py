"""Jobs side by side in processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import warnings

import pytest

from irm_fast.experiments.processes import side_by_side


def add(job: int, more: int) -> tuple[int, int, str]:
    if job == 0:
        time.sleep(0.5)
    warnings.warn(f"job {job}", stacklevel=1)
    return job + more, os.getpid(), os.environ["OMP_NUM_THREADS"]


def leave(job: int) -> None:
    if job:
        os._exit(3)
    time.sleep(30)


def test_results_come_as_calls_end_with_their_warnings(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    taken = []

    def jobs():
        for job in range(4):
            taken.append(job)
            yield job

    with pytest.warns(UserWarning, match="job 3") as said:
        found = []
        for job, (result, process, threads) in side_by_side(add, jobs(), shared=(10,), processes=2):
            assert len(taken) <= len(found) + 3  # made when a process is free for it
            assert result == job + 10 and process != os.getpid() and int(threads) >= 1
            found.append(job)
    assert sorted(found) == [0, 1, 2, 3] and found[0] != 0
    assert sorted(str(warning.message) for warning in said) == [f"job {i}" for i in range(4)]
    assert "OMP_NUM_THREADS" not in os.environ


def test_threads_that_the_user_sets_stay(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with pytest.warns(UserWarning):
        assert {threads for _, (*_, threads) in side_by_side(add, [1, 2], shared=(0,), processes=2)} == {"7"}


def loaded(job: str) -> bool:
    return job in sys.modules


def test_modules_are_imported_before_the_first_call() -> None:
    found = side_by_side(loaded, ["tabnanny"] * 2, processes=2, imports=("tabnanny",))
    assert any(result for _, result in found)  # one child may have imported twice, and the other not


def test_one_process_is_this_one() -> None:
    assert list(side_by_side(abs, [-1, 2], processes=1)) == [(-1, 1), (2, 2)]


def test_a_process_that_is_lost_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="ended abruptly, of too little memory perhaps; expected room for all"):
        list(side_by_side(leave, [1, 0], processes=2))
    assert not multiprocessing.active_children()
