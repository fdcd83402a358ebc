"""Warnings name the line that called the package."""

from __future__ import annotations

import inspect

import pytest

from irm_fast.common.warning import warn_caller

OURS = """
from contextlib import contextmanager

def deep(depth):
    deep(depth - 1) if depth else warn_caller("look here", category)

@contextmanager
def context():
    deep(1)
    yield

@context()
def decorated():
    pass

def within(call):
    with context():
        call()
"""


@pytest.fixture
def ours() -> dict:
    """Functions of a module of the package."""
    names = {"__name__": "irm_fast.room.module", "warn_caller": warn_caller, "category": FutureWarning}
    exec(OURS, names)
    return names


@pytest.mark.parametrize(("name", "arguments"), [("deep", [0]), ("deep", [3]), ("decorated", []), ("within", [int])])
def test_however_deep_it_is_given(ours, name, arguments) -> None:
    with pytest.warns(FutureWarning) as said:
        line = inspect.currentframe().f_lineno + 1
        ours[name](*arguments)
    assert [(str(one.message), one.filename, one.lineno) for one in said] == [("look here", __file__, line)]


def test_a_name_that_begins_alike_is_not_ours(ours) -> None:
    theirs = {"__name__": "irm_fast_extra", "deep": ours["deep"]}
    exec(compile("def call():\n    deep(2)", "theirs.py", "exec"), theirs)
    with pytest.warns(FutureWarning) as said:
        theirs["call"]()
    assert [(one.filename, one.lineno) for one in said] == [("theirs.py", 2)]
