"""The option that keeps results, and the table at the end of a run."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness, report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--save-results",
        type=Path,
        metavar="FOLDER",
        help="write what was measured to FOLDER/<device>.json, after every case; kept ones are in benchmarks/results",
    )
    parser.addoption("--seconds", type=float, help=f"time for each provider and mode, default {harness.SECONDS}")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--seconds") is not None:
        harness.SECONDS = config.getoption("--seconds")
    folder = config.getoption("--save-results")
    if folder:
        report.machine()  # now: the load is to be that before the run
        harness.after_each_case.append(partial(report.save, harness.measured, folder))


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: Any) -> Generator[None, Any, Any]:
    outcome = yield  # pytest-benchmark prints first: what matters stands last
    lines = report.table(report.as_record(case, results) for case, results in harness.measured.items())
    if lines:
        terminalreporter.section("medians beside ours, and beside the floor")
        terminalreporter.write("\n".join(lines) + "\n")
    return outcome
