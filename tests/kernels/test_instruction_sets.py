"""The copies of the C++ kernels that this processor would not choose: the tests of both kernels, once more by each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import irm_fast

TESTS = Path(__file__).parents[1]
FILES = (TESTS / "kernels" / "test_linear_cpu_kernel.py", TESTS / "losses" / "test_pointwise.py")
CHOSEN = "test_linear_cpu_kernel or (cpu and (definition or layout or contributes or finite))"


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_smaller_instruction_sets(name: str) -> None:
    """In one process for both files: it imports as long as it tests."""
    if irm_fast.backends()["cpu"] != "available":
        pytest.skip(irm_fast.backends()["cpu"])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, FILES), "-k", CHOSEN]
    done = subprocess.run(command, env={**os.environ, "IRM_FAST_ISA": name}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
