"""Commands that are stopped at each of their file operations, and what became of their folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MODES = {"counted": 0, "killed": 1, "torn": 2, "full": 3}
_LEFT = ("*.unfinished", ".unfinished", ".tmp??????", "*.lock", "*.parts", "checkpoints")  # no result has them


class Result(NamedTuple):
    """What came of one run of a command.

    Attributes:
        code: Its exit code, the negative number of the signal that ended it, or None if it did not end in time.
        said: Its output.
        operations: Its file operations, each a name and a path.
    """

    code: int | None
    said: str
    operations: list[str]

    @property
    def line(self) -> str:
        """The last line that it said."""
        lines = self.said.replace("\r", "\n").strip().splitlines()
        return lines[-1] if lines else ""

    @property
    def is_line(self) -> bool:
        """Whether its error is a line for people, not a traceback."""
        return self.line.startswith(("error:", "interrupted", "terminated")) and "Traceback" not in self.said


class Command(NamedTuple):
    """A command to be stopped.

    Attributes:
        name: Its name in the table.
        arguments: A function that returns its arguments, given the place that it writes to.
        results: Patterns of the files that are its result, within the place.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    results: tuple[str, ...]


class Outcome(NamedTuple):
    """What became of a place where a command was stopped.

    Attributes:
        fault: What was done: "killed", "torn" or "full" at an operation, or killed at a "moment".
        number: At which operation, or the number of the moment.
        operation: Its name and path, or the moment.
        verdict: "exact": by the stopped command, or after --resume, the result is that of a run without a fault.
            "refused": --resume was refused in a line, and --overwrite made the exact result. "different", or "stuck":
            neither of them did.
        line: What the refusal said, or the stopped command if that was no line for people or it was not stopped.
        left: Files that stayed beside the result.
    """

    fault: str
    number: int
    operation: str
    verdict: str
    line: str
    left: tuple[str, ...]


class Server:
    """A process that runs commands under plans of faults, within a folder.

    Args:
        folder: The folder for all that the commands read and write.

    Raises:
        RuntimeError: The library that makes the faults cannot be built.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder.resolve(), folder.resolve() / "place"
        library = self.folder / "operations.so"
        source = Path(__file__).with_name("operations.c")
        compiler = os.environ.get("CC", "cc")
        built = subprocess.run(
            [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], text=True
        )
        if built.returncode:
            raise RuntimeError(f"faults: {compiler} does not build {source}; expected a C compiler on Linux")
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.server"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, arguments: Sequence[str], mode: str = "counted", number: int = 0, moment: float | None = None
    ) -> Result:
        """Run a command, with a fault at one of its file operations within the place, or counted alone.

        Args:
            arguments: Its arguments.
            mode: One of `MODES`.
            number: The number of the operation, from 1.
            moment: When to kill it if it has not ended, in seconds; None: never.
        """
        plan = {"arguments": list(arguments), "mode": MODES[mode], "number": number}
        plan |= {"within": str(self.place), "scratch": str(self.folder), "moment": moment}
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(plan), file=self._process.stdin, flush=True)
        return Result(**json.loads(self._process.stdout.readline()))

    def fresh(self) -> Path:
        """The place, empty."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        return self.place

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def prepare(server: Server) -> list[Command]:
    """Make a log, a tiny model, and what the commands need of each other; return the commands."""
    folder = server.folder
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(160):
        good = bool(rng.random() < 0.5)
        text = " ".join(["good" if good else "bad"] * int(rng.integers(1, 9)))
        acted = {name: int(good and rng.random() < 0.6) for name in ("copy", "share")}
        rows.append({"id": f"r{number}", "prompt": f"question {number}", "completion": text, "feedback": acted})
    log, short = folder / "log.jsonl", folder / "short.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    short.write_text("".join(json.dumps(row) + "\n" for row in rows[:64]))
    model = ["--model", str(folder / "model")]
    trained = ["--epochs", "1", "--batch-size", "16", "--eval-steps", "2", "--no-progress", "--patience", "0"]
    trained += ["--learning-rate", "1e-3"]

    def train(place: Path) -> list[str]:
        return ["train", "--data", str(short), *model, "--output", str(place / "out"), *trained, "--estimator", "joint"]

    def one_design(place: Path) -> list[str]:
        return [*train(place), "--propensity-design", "constant"]

    def propensities_first(place: Path) -> list[str]:
        return ["train", "--data", str(log), *model, "--output", str(place / "out"), *trained]

    def embed(place: Path) -> list[str]:
        return ["embed", "--data", str(short), *model, "--out", str(place / "out.safetensors"), "--no-progress"]

    def shards(place: Path) -> list[str]:
        reads = ["--data", str(short), *model]
        return ["embed", *reads, "--out", str(place / "out"), "--no-progress", "--shard-rows", "32"]

    def score(place: Path) -> list[str]:
        reads = ["--model", str(folder / "trained" / "out"), "--data", str(short)]
        return ["score", *reads, "--out", str(place / "out.jsonl"), "--no-progress"]

    def fit(place: Path) -> list[str]:
        reads = ["--embeddings", str(folder / "embedded" / "out.safetensors"), "--data", str(log)]
        return ["train", *reads, "--output", str(place / "out"), "--no-progress", "--hidden-layers", "linear"]

    whole_log = ["embed", "--data", str(log), *model, "--no-progress", "--out"]
    for name, arguments in (
        ("model", ["model", str(folder / "model")]),
        ("trained", one_design(folder / "trained")),
        ("embedded", [*whole_log, str(folder / "embedded" / "out.safetensors")]),
    ):
        (folder / name).mkdir()
        made = server.run(arguments)
        if made.code:
            raise RuntimeError(f"faults: {' '.join(arguments)} failed: {made.said}")
    weights = ("out/**/*.safetensors",)
    return [
        Command("train", one_design, weights),
        Command("train, two designs", train, weights),
        Command("train, propensities first", propensities_first, weights),
        Command("embed", embed, ("out.safetensors",)),
        Command("embed to a folder", shards, ("out/*.safetensors",)),
        Command("score", score, ("out.jsonl",)),
        Command("train --embeddings", fit, weights),
    ]


def digest(place: Path, command: Command) -> str:
    """A hash of the result of a command; "" if there is none."""
    files = sorted(
        path for pattern in command.results for path in place.glob(pattern) if "checkpoints" not in path.parts
    )
    held = hashlib.sha256()
    for path in files:
        held.update(str(path.relative_to(place)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return held.hexdigest() if files else ""


def stopped(server: Server, command: Command, fault: str, numbers: Iterable[int], whole: str) -> Iterator[Outcome]:
    """Stop a command at some of its operations, and go on with it.

    Args:
        server: Runs the commands.
        command: The command.
        fault: "killed", "torn" or "full".
        numbers: The numbers of the operations, from 1.
        whole: The digest of its result without a fault.

    Yields:
        An outcome for each of them.
    """
    for number in numbers:
        first = server.run(command.arguments(server.fresh()), fault, number)
        operation = first.operations[number - 1] if len(first.operations) >= number else "not reached"
        yield _gone_on(server, command, first, fault, number, whole, operation)


def killed(server: Server, command: Command, moments: Iterable[float], whole: str) -> Iterator[Outcome]:
    """Kill a command at some moments, whatever it does then, and go on with it.

    Args:
        server: Runs the command.
        command: The command.
        moments: When, in seconds.
        whole: The digest of its result without a fault.

    Yields:
        An outcome for each of them.
    """
    for number, moment in enumerate(moments, 1):
        first = server.run(command.arguments(server.fresh()), moment=moment)
        last = first.operations[-1] if first.operations else "nothing"
        operation = f"{moment:.3f} s, after {last}"
        yield _gone_on(server, command, first, "moment", number, whole, operation)


def _gone_on(
    server: Server, command: Command, first: Result, fault: str, number: int, whole: str, operation: str
) -> Outcome:
    """Resume a command that was stopped, or start it anew, and compare its result with that of a run without a fault.

    Args:
        first: What came of the command that was stopped.
        operation: Where it was stopped; the other arguments are as of `stopped`.
    """
    arguments = command.arguments(server.place)
    verdict, line = "exact", ""
    if first.code is None or (fault == "full" and first.code and not first.is_line):
        line = f"said: {first.line}"  # its verdict is what --resume makes of it
    if fault in ("killed", "torn") and first.code != -signal.SIGKILL:
        line = f"was not stopped, exit code {first.code}"
    if first.code or digest(server.place, command) != whole:
        again = server.run([*arguments, "--resume"])
        if again.code:
            finished = "finished run" in again.line or "exists already" in again.line
            if not (finished and digest(server.place, command) == whole):
                verdict, line = "refused", again.line if again.is_line else f"said: {again.line}"
                anew = server.run([*arguments, "--overwrite"])
                if anew.code:
                    verdict, line = "stuck", f"{line} | {anew.line}"
        if verdict != "stuck" and digest(server.place, command) != whole:
            verdict = "different"
    left = sorted({path.name for pattern in _LEFT for path in server.place.rglob(pattern)})
    return Outcome(fault, number, operation, verdict, line, tuple(left))


def reference(server: Server, command: Command, runs: int = 2) -> tuple[str, list[str]]:
    """The digest of a command's result without a fault, and its file operations.

    Args:
        server: Runs the command.
        command: The command.
        runs: How often to run it.

    Raises:
        RuntimeError: It fails, or does not give the same result each time.
    """
    digests = set()
    for _ in range(runs):
        result = server.run(command.arguments(server.fresh()))
        digests.add(digest(server.place, command))
        if result.code or len(digests) > 1:
            raise RuntimeError(f"faults: {command.name} fails, or gives one result and then another: {result.said}")
    return digests.pop(), result.operations
