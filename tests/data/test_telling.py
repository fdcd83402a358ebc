"""What is said of progress goes to who listens, else to the standard error, and never to the standard output."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from irm_fast.data.telling import LOGGER, QUIET, tell


def test_a_program_that_listens_gets_a_record(caplog: Any, capsys: Any) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        tell("step 1 of 2")
    [record] = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (LOGGER, "INFO", "step 1 of 2")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("level", [logging.NOTSET, logging.WARNING])
def test_elsewhere_it_is_a_line_that_steers_no_terminal(caplog: Any, capsys: Any, level: int) -> None:
    with caplog.at_level(level, logger=LOGGER):
        tell("step 1\x1b[2J")
    assert capsys.readouterr() == ("", "step 1\\u001b[2J\n") and not caplog.records


def test_quiet_silences_both(caplog: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(QUIET, "1")
    with caplog.at_level(logging.INFO, logger=LOGGER):
        tell("step 1")
    assert capsys.readouterr() == ("", "") and not caplog.records
    monkeypatch.setenv(QUIET, "0")
    tell("step 2")
    assert capsys.readouterr().err == "step 2\n"
