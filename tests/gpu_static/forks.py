"""Modules of this folder run as programs, each in a fork of one process that has imported what they share.

Triton's interpreter, which the other tests use, replaces the compiler when triton is imported. So these programs have a
process of their own, and importing takes it longer than most of them run.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = ("tests.gpu_static.cases", "tests.gpu_static.launches", "tests.gpu_static.sass")
LIMIT = 900  # seconds that a program may take


def without_interpreter() -> dict[str, str]:
    """The environment of a process in which Triton compiles."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


class Forks:
    """The process that programs are forked from; a context, at whose end it ends.

    Args:
        folder: Where the kernels that were compiled are kept.
    """

    def __init__(self, folder: Path) -> None:
        environment = without_interpreter() | {"TRITON_CACHE_DIR": str(folder)}
        command = [sys.executable, "-m", "tests.gpu_static.forks"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, cwd=ROOT, text=True)

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, program: str, *arguments: str) -> Any:
        """What a module of this folder prints as JSON when it is run with these arguments."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([f"tests.gpu_static.{program}", *arguments]) + "\n")
        self._process.stdin.flush()
        code, printed, said = json.loads(self._process.stdout.readline())
        assert code == 0, f"{program} {arguments} ended with {code}: {said[-4000:]}"
        return json.loads(printed)


def serve() -> None:
    """Run the program of each line that comes, and answer with its exit code and what it printed and said."""
    for name in IMPORTED:
        import_module(name)
    for line in sys.stdin:
        with TemporaryFile("w+") as printed, TemporaryFile("w+") as said:
            child = os.fork()
            if not child:
                os.dup2(printed.fileno(), 1)
                os.dup2(said.fileno(), 2)
                _run(*json.loads(line))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            printed.seek(0)
            said.seek(0)
            print(json.dumps([code, printed.read(), said.read()]), flush=True)


def _run(program: str, *arguments: str) -> None:
    """Run a program in this process, and end it."""
    code = 1
    try:
        signal.alarm(LIMIT)
        sys.argv = [program, *arguments]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
