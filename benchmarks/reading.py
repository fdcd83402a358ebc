"""Rows a second that reading a log takes, beside polars where it is installed, and its memory.

    python -m benchmarks.reading FOLDER [--rows 1000000] [--rounds 3] [--before CHECKOUT]

Makes a log of 440 bytes a row in FOLDER, as JSON Lines and as Parquet. In each round every reader reads it once, in
turns and in a process of its own: `validate`, `read_log` and `polars.read_ndjson`, which keeps all columns and checks
none; with `--before` `validate` and `read_log` of another checkout, too. Printed are the medians of rows a second,
their ratio to polars in the same round, and the largest resident memory of a process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

READERS = ("polars", "validate", "read_log")
KINDS = ("jsonl", "parquet")


def make_rows(folder: Path, rows: int) -> None:
    """Write the log in both forms, unless it is there."""
    import pyarrow.json
    import pyarrow.parquet

    path = folder / f"rows-{rows}.jsonl"
    if path.with_suffix(".parquet").exists():
        return
    random.seed(0)
    words = [f"w{i}x" for i in range(3000)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            click = None if random.random() < 0.1 else int(random.random() < 0.2)
            row = {
                "id": f"r{i}",
                "prompt": " ".join(random.choices(words, k=20)),
                "completion": " ".join(random.choices(words, k=27)),
                "feedback": {"copy": int(random.random() < 0.1), "share": int(random.random() < 0.05), "click": click},
                "user_id": f"u{random.randrange(max(1, rows // 10))}",
                "timestamp": 1_700_000_000 + i,
            }
            file.write(json.dumps(row) + "\n")
    pyarrow.parquet.write_table(pyarrow.json.read_json(path), path.with_suffix(".parquet"))


def read(reader: str, path: Path) -> tuple[int, float]:
    """Read the log once; return the rows and the seconds."""
    if reader == "polars":
        import polars

        start = time.perf_counter()
        frame = polars.read_ndjson(path) if path.suffix == ".jsonl" else polars.read_parquet(path)
        return len(frame), time.perf_counter() - start
    from irm_fast.data.read import read_log
    from irm_fast.data.validation import validate

    start = time.perf_counter()
    absent: Any = "error" if path.suffix == ".jsonl" else "missing"  # in tables null is absent
    found = validate(path, absent=absent)["valid_rows"] if reader == "validate" else len(read_log(path, absent=absent))
    return found, time.perf_counter() - start


def measured(reader: str, path: Path, checkout: Path | None = None) -> dict[str, float]:
    """Read the log in a process of its own: rows a second, and the largest resident memory in MB."""
    command = [sys.executable, str(Path(__file__).resolve()), str(path), "--one", reader]
    command += [] if checkout is None else ["--before", str(checkout)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def largest_resident() -> float:
    """Return the largest resident memory of this program in MB; `ru_maxrss` counts the process that started it, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def use(checkout: Path) -> None:
    """Import irm_fast from another checkout, whatever is installed."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__.lower()]
    sys.path.insert(0, str(checkout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        if args.before:
            use(args.before)
        rows, seconds = read(args.one, args.folder)
        print(json.dumps({"rows_per_second": rows / seconds, "resident": largest_resident()}))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    make_rows(args.folder, args.rows)
    try:
        import polars

        print(f"polars {polars.__version__}")
        readers = list(READERS)
    except ImportError:
        readers = [reader for reader in READERS if reader != "polars"]
    turns = [(reader, None) for reader in readers]
    turns += [(reader, args.before) for reader in READERS[1:] if args.before]
    for kind in KINDS:
        path = args.folder / f"rows-{args.rows}.{kind}"
        rounds = [[measured(reader, path, checkout) for reader, checkout in turns] for _ in range(args.rounds)]
        print(f"{kind}, {args.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB, {args.rounds} rounds")
        for number, (reader, checkout) in enumerate(turns):
            speeds = [found[number]["rows_per_second"] for found in rounds]
            resident = max(found[number]["resident"] for found in rounds)
            text = f"{statistics.median(speeds):12,.0f} rows/s, {resident:6,.0f} MB"
            if readers[0] == "polars":
                ratios = [found[number]["rows_per_second"] / found[0]["rows_per_second"] for found in rounds]
                text += f", {statistics.median(ratios):.2f} of polars ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"  {reader:<10}{' before' if checkout else '':<8}{text}")


if __name__ == "__main__":
    main()
