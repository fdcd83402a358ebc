"""What a few pairs beside a log are worth: made text of known quality, a small decoder, and `irm-fast train --pairs`.

    python -m examples.pairs_beside_a_log --seeds 3 --pairs 200 --weights 1

Trains on the log alone, with the pairs, and with their mean at each of the weights; prints ranking on clean labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from irm_fast.data.simulation import write_simulation
from irm_fast.evaluation.evaluation import evaluate_rated
from irm_fast.experiments.demo import SETTINGS, make_simulation
from irm_fast.experiments.made_text import make_rated
from irm_fast.experiments.tiny_decoder import make_tiny_decoder
from irm_fast.models.foreign_files import quiet_transformers
from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=2500, help="of the log and its test part, two answers each")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--weights", type=float, nargs="*", default=[], help="weights of the mean over a step's pairs")
    args = parser.parse_args()
    for seed in range(args.seeds):
        for name, metrics in compare(seed, args.prompts, args.pairs, args.weights):
            shown = ", ".join(f"{key} {metrics[key]:.3f}" for key in ("auroc", "pair_accuracy"))
            print(f"seed {seed}  {name:<16} {shown}", flush=True)


def compare(seed: int, prompts: int, pairs: int, weights: list[float]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the name of each training on one log, and its metrics on the clean test part."""
    simulation = make_simulation(seed, prompts)
    assert simulation.test is not None
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        folder = Path(scratch)
        write_simulation(simulation, folder / "log.jsonl")
        texts = (turn["content"] for messages in simulation.log.messages for turn in messages)
        decoder = make_tiny_decoder(texts, folder / "decoder", seed=seed)
        beside = write_pairs(folder / "pairs.jsonl", seed, prompts, pairs)
        runs: dict[str, Mapping[str, Any]] = {"log alone": {}, "a pair is a row": {"pairs": beside}}
        runs |= {f"their mean x {weight:g}": {"pairs": beside, "pairs_weight": weight} for weight in weights}
        shared = {"model": str(decoder), "data": str(folder / "log.jsonl"), "seed": seed, **SETTINGS}
        for number, (name, own) in enumerate(runs.items()):
            result = train(TrainConfig(output=str(folder / str(number)), **shared, **own))
            yield name, evaluate_rated(result.model, simulation.test)


def write_pairs(path: Path, seed: int, first: int, count: int) -> str:
    """Write pairs of answers to prompts that the log does not have, of which one pleases; returns the path."""
    rated = make_rated(first + 4 * count, seed + 1000)
    rows = []
    for row in range(2 * first, len(rated), 2):
        sides = {int(rated.preference[row + side]): rated.messages[row + side] for side in (0, 1)}
        if len(sides) == 2:
            rows.append({"prompt": sides[1][:-1], "chosen": sides[1][-1:], "rejected": sides[0][-1:]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]), encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    main()
