"""Runs commands of irm-fast under a plan of faults, each in a fork of a process that has imported everything.

Reads a plan a line from the standard input, and writes what came of it: see `sweep.Server`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

LIMIT = 120.0  # seconds of a command
MODULES = (
    *("irm_fast.cli.commands", "irm_fast.training.run", "irm_fast.training.on_embeddings", "irm_fast.training.designs"),
    *("irm_fast.training.propensities", "irm_fast.embeddings.writing", "irm_fast.evaluation.rewards_file"),
    *("irm_fast.experiments.tiny_decoder", "irm_fast.models.varlen", "transformers.models.llama.modeling_llama"),
    *("pyarrow", "scipy.optimize", "sklearn.linear_model", "tokenizers", "typer._adapters"),
)


def main() -> None:
    """Serve plans until the standard input ends."""
    for name in MODULES:
        with contextlib.suppress(ImportError):  # what a command needs it says itself
            importlib.import_module(name)
    from irm_fast.models import parts

    parts.PART_ROWS = 16  # so that kills meet many
    faults = ctypes.CDLL(None)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line), faults)), flush=True)


def _run(plan: dict[str, Any], faults: Any) -> dict[str, Any]:
    """Run one command in a fork; returns its exit code, what it said, and its file operations."""
    said, operations = Path(plan["scratch"], "said"), Path(plan["scratch"], "operations")
    for path in (said, operations):
        path.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 99
        try:
            handle = os.open(said, os.O_CREAT | os.O_WRONLY)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.setsid()
            gc.freeze()  # what all forks share is neither collected nor copied
            within = str(plan["within"]).encode()
            faults.faults_plan(within, plan["mode"], ctypes.c_long(plan["number"]), str(operations).encode())
            code = _command(plan["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    moment = plan["moment"]
    until = time.monotonic() + (LIMIT if moment is None else moment)
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and time.monotonic() < until:
        time.sleep(0.001)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status) if ended or moment is not None else None
    words, lines = (path.read_text(errors="replace") if path.exists() else "" for path in (said, operations))
    return {"code": code, "said": words, "operations": lines.splitlines()}


def _command(arguments: list[str]) -> int:
    """Run a command in this process, or make a tiny model for one; returns the exit code."""
    from irm_fast.cli import commands
    from irm_fast.experiments.tiny_decoder import make_tiny_decoder

    if arguments[0] == "model":
        make_tiny_decoder(["good good", "bad bad"], arguments[1], hidden_size=32, vocab_size=300)
        return 0
    sys.argv = ["irm-fast", *arguments]
    try:
        commands.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    main()
