"""Fits a linear reward to embeddings in shards or in memory, and tells time and peak memory of every process.

    python -m benchmarks.sharded_fit make FOLDER [--rows 20000000] [--width 64] [--shards 4]
    python -m benchmarks.sharded_fit fit FOLDER [--rows 5000000] [--in-memory]
    torchrun --nproc-per-node 2 -m benchmarks.sharded_fit fit FOLDER
    python -m benchmarks.sharded_fit compare FOLDER

`make` writes made embeddings (float32) and feedback of two signals. `fit` takes the first rows, and appends a line to
FOLDER/fits.jsonl: seconds, also those of the processor, `peak_gb` (the largest resident size, with pages of the files,
which the system takes back when it needs them), `held_gb` (the largest anonymous memory, which it cannot take back),
and rewards of some rows. `compare` prints how far the rewards of fits to the same rows lie apart.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.memory import anonymous
from benchmarks.report import machine

CHUNK = 500_000
SHOWN = 1000  # rows whose rewards are kept


def make(folder: Path, rows: int, width: int, shards: int) -> None:
    """Write shards of embeddings and the feedback of two signals, whose propensities depend on the embedding."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    reward, propensity = rng.normal(size=width) / width**0.5, rng.normal(size=(width, 2)) / width**0.5
    feedback = np.lib.format.open_memmap(folder / "feedback.npy", "w+", np.int8, (rows, 2))
    edges = np.linspace(0, rows, shards + 1).astype(int).tolist()
    for number, (first, last) in enumerate(pairwise(edges)):
        path = folder / f"embeddings-{number:05}-of-{shards:05}.npy"
        x = np.lib.format.open_memmap(path, "w+", np.float32, (last - first, width))
        for start in range(0, last - first, CHUNK):
            part = rng.standard_normal((min(CHUNK, last - first - start), width), dtype=np.float32)
            x[start : start + len(part)] = 3 * part + 1
            preferred = rng.random(len(part)) < 1 / (1 + np.exp(-1.5 * part @ reward))
            acts = rng.random((len(part), 2)) < 1 / (1 + np.exp(1 - 0.7 * part @ propensity))
            feedback[first + start : first + start + len(part)] = preferred[:, None] & acts
        x.flush()
    feedback.flush()


class HeldMemory(threading.Thread):
    """The largest anonymous memory of this process, looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.over = 0.0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.most = max(self.most, anonymous() / 1e9)


def first_rows(folder: Path, rows: int) -> list[np.ndarray]:
    """Return the first rows of the shards, memory-mapped."""
    found, left = [], rows
    for path in sorted(folder.glob("embeddings-*.npy")):
        found.append(np.load(path, mmap_mode="r")[:left])
        left -= len(found[-1])
        if not left:
            break
    return found


def fit(folder: Path, rows: int | None, *, in_memory: bool) -> dict:
    """Fit to the first rows, and return what it took."""
    from irm_fast.embeddings.estimator import EmbeddingRewardModel

    feedback = np.load(folder / "feedback.npy")[:rows]
    shards = first_rows(folder, len(feedback))
    shown = np.array(shards[0][:SHOWN])
    held = HeldMemory()
    held.start()
    x = np.concatenate(shards) if in_memory else shards
    started, computed = time.perf_counter(), time.process_time()
    model = EmbeddingRewardModel(hidden_layers=(), random_state=0, device="cpu", verbose=1).fit(x, feedback)
    seconds, computed = time.perf_counter() - started, time.process_time() - computed
    held.over.set()
    held.join()
    return {
        "rows": len(feedback),
        "in_memory": in_memory,
        "process": int(os.environ.get("RANK", "0")),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(computed, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "held_gb": round(held.most, 2),
        "diagnosis": model.diagnosis_.kind,
        "rewards": model.decision_function(shown).tolist(),
        "propensities": model.training_propensity_[:SHOWN].tolist(),
        "machine": machine(),
    }


def compare(folder: Path) -> None:
    """Print the fits, and how far rewards and propensities lie from those of the first fit to as many rows."""
    first: dict[int, dict] = {}
    for line in (folder / "fits.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        other = first.setdefault(one["rows"], one)
        apart = [np.abs(np.subtract(one[name], other[name])).max() for name in ("rewards", "propensities")]
        shown = {name: value for name, value in one.items() if name not in ("rewards", "propensities", "machine")}
        print(shown, "apart", *apart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "fit", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--in-memory", action="store_true")
    args = parser.parse_args()
    if args.what == "make":
        make(args.folder, args.rows or 20_000_000, args.width, args.shards)
    elif args.what == "compare":
        compare(args.folder)
    else:
        found = fit(args.folder, args.rows, in_memory=args.in_memory)
        with (args.folder / "fits.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
