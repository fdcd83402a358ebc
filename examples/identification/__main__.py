"""What identification is worth: every variant on logs of which the truth is known, and the pictures of the docs.

    python -m examples.identification --output out --quick                 a small part, within a minute
    python -m examples.identification --output out --pictures docs --log ifllm \\
        --text harmless-base.test.jsonl.gz --model path/to/all-MiniLM-L6-v2      everything, some hours on two cores

Text is read from a file in the layout of Anthropic's hh-rlhf, and embedded by any encoder; without --text only the made
worlds are run. `ifllm.py` says what --log is. Writes OUTPUT/results.json with every number, and prints a table for each
case: mean and standard deviation over the redraws of a log.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process a core; read when torch is imported

from examples.identification import pictures, worlds
from examples.identification.compare import KNOWN, NAIVE, TRUTH, Variant, measure, table
from examples.identification.ifllm import ifllm, ifllm_table
from examples.identification.intervals import coverage_table, intervals
from examples.identification.kinds import kinds_table, real_logs
from examples.identification.worlds import World

TABLES = {"intervals": coverage_table, "real logs": kinds_table, "ifllm": ifllm_table}  # cases with one of their own
LINEAR: dict[str, Any] = {"hidden_layers": ()}
JOINT: dict[str, Any] = {"propensity_design": "hidden", "estimator": "joint"}
MADE = (
    Variant(NAIVE, "any"),
    Variant("constant propensities", settings={"propensity_design": "constant"}),
    Variant("joint likelihood", settings=JOINT),
    Variant("two-step (default)"),
    Variant(KNOWN, "known"),
    Variant("explicit labels", "labels"),
    Variant(TRUTH, "truth"),
)
PROTOCOL = (
    Variant("plain prototype, free propensity, 1 signal", signals=1, prototype="free"),
    Variant("plain prototype, 1 signal", signals=1, prototype="constant"),
    Variant("naive, 1 signal", "any", signals=1),
    Variant("default, 1 signal", signals=1),
    Variant("plain prototype, 2 signals", prototype="constant"),
    Variant(NAIVE, "any"),
    Variant("default, 2 signals"),
    Variant(KNOWN, "known"),
    Variant("explicit labels", "labels"),
    Variant(TRUTH, "truth"),
)
TEXT = (
    Variant(NAIVE, "any"),
    Variant("constant propensities", settings={"propensity_design": "constant"}),
    Variant("joint likelihood, linear reward", settings=JOINT | LINEAR),
    Variant("joint likelihood", settings=JOINT),
    Variant("two-step, linear reward", settings=LINEAR),
    Variant("two-step (default)"),
    Variant("two-step, reads text features", features=True),
    Variant(KNOWN, "known"),
    Variant("explicit labels", "labels"),
    Variant(TRUTH, "truth"),
)
RISE = (TEXT[0], *TEXT[5:9])  # drawn by the number of rows
BENT = (TEXT[0], *TEXT[2:6], *TEXT[7:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json and the embeddings")
    parser.add_argument("--text", type=Path, help="JSONL of chosen and rejected, .gz or not")
    parser.add_argument("--model", type=Path, help="folder of an encoder that embeds the text")
    parser.add_argument("--log", type=Path, help="folder of the real log IFLLM; needs --model")
    parser.add_argument("--pictures", type=Path, help="folder to draw into")
    parser.add_argument("--only", nargs="+", default=[], help="cases to run; those of an earlier run are kept")
    parser.add_argument("--redraws", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="at most two redraws, of small logs")
    args = parser.parse_args()
    if (args.text or args.log) and not args.model:
        parser.error("--text and --log need --model, the folder of an encoder")
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.json"
    redraws = min(args.redraws, 2) if args.quick else args.redraws
    chosen = {name: run for name, run in cases(args).items() if not args.only or name in args.only}
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("fork")) as pool:
        for name, run in chosen.items():
            found = run(pool, redraws)
            path.write_text(_as_json(_read(path) | {name: found}), encoding="utf-8")
            if name not in pictures.CASES:
                print(f"\n{name}\n{TABLES.get(name, table)(found)}", flush=True)
    if args.pictures:
        pictures.draw(_read(path), args.pictures)


Run = Callable[[ProcessPoolExecutor, int], Any]


def _read(path: Path) -> dict[str, Any]:
    """Results of this run and earlier ones."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _as_json(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each case and variant; numbers with four decimals."""
    rounded = json.loads(json.dumps(results), parse_float=lambda text: round(float(text), 4))
    cases = (
        f"{json.dumps(case)}: {{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "\n}"
        for case, found in rounded.items()
    )
    return "{\n" + ",\n".join(cases) + "\n}\n"


def cases(args: argparse.Namespace) -> dict[str, Run]:
    """Every case by name, as a function of the pool and the number of redraws."""
    quick = args.quick
    found: dict[str, Run] = {
        "synthetic": compared(worlds.synthetic(*((2000, 1000) if quick else ())), MADE),
        "published protocol": compared(worlds.published(*((2500, 64) if quick else ())), PROTOCOL),
    }
    made = {"intervals": intervals, "real logs": real_logs, **pictures.CASES}
    found |= {name: lambda pool, redraws, case=case: case(pool, redraws, quick) for name, case in made.items()}
    if args.log:
        found["ifllm"] = lambda pool, redraws: ifllm(args.log, args.model, args.output / "ifllm.safetensors")
    if args.text is None or not args.text.exists():
        print("no --text: the cases on real text are left out", flush=True)
        return found
    cache = args.output / ("embeddings-quick.safetensors" if quick else "embeddings.safetensors")
    X, features, turns = worlds.read_text(args.text, args.model, cache, 600 if quick else None)
    test, sizes = (200, (300,)) if quick else (3000, (1000, 2000, 4000))
    text = worlds.on_text(X, features, worlds.smooth, 6.0, test)
    on_text = {
        "text, 8,000 rows": (text.sized(8000), TEXT),
        "turns, 8,000 rows": (worlds.on_text(X[turns], features[turns], worlds.smooth, 6.0, test).sized(8000), TEXT),
        "text, all rows": (text, TEXT),
        "text, quadratic reward": (worlds.on_text(X, features, worlds.quadratic, 4.0, test), BENT),
    }
    on_text |= {f"text, {size:,} rows": (text.sized(size), RISE) for size in sizes}
    return found | {name: compared(world, variants) for name, (world, variants) in on_text.items()}


def compared(world: World, variants: Sequence[Variant]) -> Run:
    """A function that fits every variant to every redraw, in processes; it returns the metrics by variant."""

    def run(pool: ProcessPoolExecutor, redraws: int) -> dict[str, list[dict[str, float]]]:
        jobs = {
            variant.name: [pool.submit(measure, world, variant, seed) for seed in range(redraws)]
            for variant in variants
        }
        return {name: [job.result() for job in waiting] for name, waiting in jobs.items()}

    return run


if __name__ == "__main__":
    main()
