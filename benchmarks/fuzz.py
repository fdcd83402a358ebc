"""Hostile files at random: `python -m benchmarks.fuzz --seconds 60 --seed 1 --keep FOLDER`.

Every input has to be read, or refused by one of the documented errors that names the file, within seconds and a bound
of memory. The work is done in a process of its own, so that a crash, a hang or a lack of memory is seen. Inputs that
break a promise are kept in the folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz_inputs import SEEDS, changed

SECONDS, MEMORY = 10, 2**30  # of the processor, and bytes, that an input may take
_UNSAID = (UnicodeError, json.JSONDecodeError)  # are ValueErrors by descent, and say nothing of a file


class Hang(BaseException):
    """An input took too long."""


def targets(name: str, folder: Path) -> list[Callable[[Path], Any]]:
    """Return what reads an input.

    Args:
        name: The name of its seed.
        folder: A folder for what is written.
    """
    from irm_fast.data.conversations import read_conversations
    from irm_fast.data.importing.exports import import_traces
    from irm_fast.data.importing.records import import_records
    from irm_fast.data.pairs import read_pairs
    from irm_fast.data.read import read_log, read_log_or_rated, read_rated
    from irm_fast.data.validation import validate

    if name.startswith("irm_fast"):
        return [_record_in(folder)]
    if name.startswith("embedding_model"):
        return [_embedding_model_in(folder, name)]
    if name.startswith("train"):
        from irm_fast.training.config import load_config, log_settings

        return [load_config, lambda path: log_settings(path, {})]
    if name.startswith("export-"):
        product = name.split("-", 1)[1].rsplit(".", 1)[0]
        return [lambda path: import_traces(product, path, folder / "out.jsonl", overwrite=True)]
    readers: list[Callable[[Path], Any]] = [
        lambda path: validate(path, absent="missing"),
        lambda path: read_log(path, absent="silent"),
        lambda path: read_log(path, misclick=True),
        lambda path: list(read_conversations(path)[1]),
        read_rated,
        read_pairs,
        read_log_or_rated,
    ]
    if name.startswith("import-"):
        layout = name.split("-", 1)[1].rsplit(".", 1)[0]
        readers.append(lambda path: import_records(layout, path, folder / "out.jsonl", overwrite=True))
    return readers


def _record_in(folder: Path) -> Callable[[Path], Any]:
    from irm_fast.evaluation.scoring import declared_for
    from irm_fast.models.record import read_record, spec_of_record

    def read(path: Path) -> Any:
        path.rename(folder / "irm_fast.json")
        return spec_of_record(read_record(folder)), declared_for(folder)

    return read


def _embedding_model_in(folder: Path, name: str) -> Callable[[Path], Any]:
    from irm_fast.embeddings.estimator import EmbeddingRewardModel

    def read(path: Path) -> Any:
        for whole in SEEDS.glob("embedding_model.*"):
            shutil.copy(whole, folder)
        path.rename(folder / name)
        return EmbeddingRewardModel.load(folder)

    return read


def _interrupt(*_: Any) -> None:
    raise Hang


def work(seconds: float, inputs: float, seed: int, status: Path) -> None:
    """Read so many inputs, or until the time is over; the status tells the parent how far it is."""
    from irm_fast.data.guards import bounded_memory

    signal.signal(signal.SIGPROF, _interrupt)
    warnings.simplefilter("ignore")
    rng, counts, found = random.Random(seed), Counter[str](), dict[str, str]()
    folder = status.parent / "work"
    folder.mkdir(exist_ok=True)
    seeds = {path.name: path.read_bytes() for path in sorted(SEEDS.iterdir()) if path.is_file()}
    reads = {name: targets(name, folder) for name in seeds}
    names = [name for name in seeds for _ in range(1 if name.startswith("export") else 200)]  # those start a database
    until = time.monotonic() + seconds
    while time.monotonic() < until and counts.total() < inputs:
        name = rng.choice(names)
        content, read = changed(seeds[name], name, rng), rng.choice(reads[name])
        path = status.parent / f"input-{name}"
        path.write_bytes(content)
        (status.parent / "current").write_bytes(content)
        outcome, text = _outcome(read, path, bounded_memory)
        kind = name.split("-")[0].split(".")[0] + (" in parquet" if content.startswith(b"PAR1") else "")
        counts[f"{kind}: {outcome if outcome in ('read', 'refused') else 'broken'}"] += 1
        if outcome not in ("read", "refused") and outcome not in found:
            found[outcome] = f"{name}: {text[:200]}"
            (status.parent / f"found-{seed}-{len(found)}-{name}").write_bytes(content)
        if sum(counts.values()) % 200 == 0:
            _write(status, counts, found)
    _write(status, counts, found)


def _write(status: Path, counts: Counter[str], found: dict[str, str]) -> None:
    status.with_suffix(".new").write_text(json.dumps({"counts": counts, "found": found}))
    status.with_suffix(".new").replace(status)


def _outcome(read: Callable[[Path], Any], path: Path, bounded_memory: Callable[[int], Any]) -> tuple[str, str]:
    """Return what became of an input, "read", "refused", or which promise it broke and where, and its message."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with bounded_memory(MEMORY):
            read(path)
        return "read", ""
    except (Exception, Hang) as error:
        text, kind = str(error), type(error).__name__
        if not isinstance(error, (ValueError, OSError)) or isinstance(error, _UNSAID):
            return f"undocumented {kind}{_place(error)}", text
        of_tables = text.startswith(("impressions: ", "actions: "))  # which stand for the files of an import
        named = str(path.parent) in text or of_tables or path.suffix == ".yaml"
        return ("refused" if named else f"names no file: {kind}{_place(error)}"), text
    except BaseException as error:  # a panic of a library in Rust
        return f"undocumented {type(error).__name__}{_place(error)}", str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _place(error: BaseException) -> str:
    """Return where an error was raised, in ours."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "irm_fast" in frame.filename]
    return f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""


def run(seconds: float, seed: int, keep: Path | None = None, inputs: float = math.inf) -> dict[str, Any]:
    """Read so many inputs, or until the time is over, in processes that may die.

    Returns:
        The number of inputs of each kind and outcome, and what broke a promise, with the seed of each.
    """
    counts, found = Counter[str](), dict[str, str]()
    until, number = time.monotonic() + seconds, 0
    while (left := until - time.monotonic()) > 0.5 and (rest := inputs - counts.total()) > 0:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as at:
            status = Path(at) / "status.json"
            command = [sys.executable, "-m", "benchmarks.fuzz", "--child", at]
            command += ["--seconds", str(min(left, 300)), "--inputs", str(rest), "--seed", str(seed + 1000 * number)]
            try:
                done = subprocess.run(
                    command, stderr=subprocess.PIPE, timeout=min(left, 300) + 6 * SECONDS, check=False
                )
                died = (
                    f"crash {done.returncode} {done.stderr.decode(errors='replace')[-300:]}" if done.returncode else ""
                )
            except subprocess.TimeoutExpired:
                died = "hang within C"
            if status.exists():
                told = json.loads(status.read_text())
                counts.update(told["counts"])
                found |= told["found"]
            if died:
                found[died] = "current"
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                for path in Path(at).glob("found-*"):
                    shutil.copy(path, keep)
                if died:
                    shutil.copy(Path(at) / "current", keep / f"died-{seed + 1000 * number}")
        number += 1
    return {"inputs": counts.total(), "counts": dict(sorted(counts.items())), "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--inputs", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        work(options.seconds, options.inputs, options.seed, options.child / "status.json")
        return
    result = run(options.seconds, options.seed, options.keep, options.inputs)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["found"]))


if __name__ == "__main__":
    main()
