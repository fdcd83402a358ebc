"""Processes for the tests of experiments."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from irm_fast.experiments import processes
from tests.training import forked


@pytest.fixture
def forked_children() -> Iterator[None]:
    """Children of `side_by_side` come from a process that has imported everything, which takes each of them longer than
    its work; as in a new process, nothing is patched there. test_processes.py has new ones."""
    context = SimpleNamespace(get_context=lambda method: forked.SERVER, active_children=multiprocessing.active_children)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "multiprocessing", context)
        yield
