"""Language models end to end, in worlds of text: propensities fitted first against naive, joint, known and explicit.

    python examples/propensities_first.py --seeds 3 --output worlds

Worlds: `rare`, actions of a mean propensity of 0.3 that depend two thirds as much on the text as in the demo;
`words`, propensities that depend on every word, with few co-actions; `folded`, a preference that no linear function of
a frozen state is near: users prefer answers that are very helpful or very dismissive to those between.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from irm_fast.data.rated import Rated
from irm_fast.data.simulation import Simulation, draw_feedback, simulate, stream
from irm_fast.evaluation.evaluation import evaluate_rated
from irm_fast.experiments.demo import SETTINGS, labelled
from irm_fast.experiments.made_text import make_rated
from irm_fast.experiments.report import method_table
from irm_fast.experiments.tiny_decoder import make_tiny_decoder
from irm_fast.models.foreign_files import quiet_transformers
from irm_fast.training.config import TrainConfig
from irm_fast.training.run import train_log

PROMPTS, TEST_FRACTION = 5000, 0.2  # 8,000 rows to learn from
RARE, WORDS = 0.3, 0.2  # mean propensities
METHODS = {  # name: propensity design and estimator
    "naive": ("constant", "joint"),
    "joint": ("auto", "joint"),
    "propensities first": ("auto", "auto"),
    "known propensities": ("known", "joint"),
    "explicit labels": ("constant", "joint"),
}


def make_world(name: str, seed: int) -> Simulation:
    """Make a log and its truth.

    Args:
        name: One of `WORLDS`.
        seed: The seed of text and actions.
    """
    rated = make_rated(PROMPTS, seed)
    if name == "folded":
        rated = _folded(rated, seed)
    world = simulate(
        rated, protocol="feature", signals=2, target=WORDS if name == "words" else RARE, seed=seed,
        test_fraction=TEST_FRACTION,
    )  # fmt: skip
    logit = np.log(world.propensity / (1 - world.propensity))
    if name == "words":
        logit = _of_words([turns[-1]["content"] for turns in world.log.messages], seed)
    slopes = logit - logit.mean(axis=0)
    chance = _with_mean(slopes * (1 if name == "words" else 2 / 3), WORDS if name == "words" else RARE)
    feedback = draw_feedback(world.truth.preference, chance, seed)
    return replace(world, log=replace(world.log, feedback=feedback), propensity=chance)


WORLDS = ("rare", "words", "folded")


def _folded(rated: Rated, seed: int) -> Rated:
    """The same answers, of which users prefer those whose quality is far from the middle, on either side."""
    distance = np.abs(rated.rating)
    quality = 2 * (distance - np.median(distance))
    preferred = stream(seed, "folded").random(len(quality)) < 1 / (1 + np.exp(-quality))
    return replace(rated, rating=quality, preference=preferred.astype(np.int8))


def _of_words(texts: Sequence[str], seed: int) -> np.ndarray:
    """Logits (N, 2) of a standard deviation of 1.5 that are linear in the number of every word."""
    words = [text.split() for text in texts]
    number = {word: i for i, word in enumerate(sorted({word for row in words for word in row}))}
    counts = np.zeros((len(texts), len(number)))
    for row, line in enumerate(words):
        for word in line:
            counts[row, number[word]] += 1
    counts = (counts - counts.mean(0)) / counts.std(0)
    logit = counts @ stream(seed, "words").normal(size=(len(number), 2))
    spread: np.ndarray = 1.5 * logit / logit.std(0)
    return spread


def _with_mean(slopes: np.ndarray, target: float) -> np.ndarray:
    """Propensities (N, K) of these logits, whose level is moved until each column has this mean."""
    low, high = np.full(slopes.shape[1], -20.0), np.full(slopes.shape[1], 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = (1 / (1 + np.exp(-slopes - middle))).mean(0) > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    chance: np.ndarray = 1 / (1 + np.exp(-slopes - low))
    return chance


def run(world: str, seed: int, methods: Sequence[str]) -> dict[str, Mapping[str, float]]:
    """Train every method from the same weights on the same log, and measure it on clean labels."""
    made = make_world(world, seed)
    both = (made.log.feedback == 1).all(axis=1).sum()
    print(f"{world}, seed {seed}: {len(made.log)} rows, {made.log.feedback.mean():.3f} act, {both} co-actions")
    results: dict[str, Mapping[str, float]] = {}
    logs = {
        "naive": labelled(made.log, made.log.feedback.max(axis=1)),
        "known propensities": replace(made.log, propensity=made.propensity.astype(np.float32)),
        "explicit labels": labelled(made.log, made.truth.preference),
    }
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        texts = (turn["content"] for messages in made.log.messages for turn in messages)
        decoder = str(make_tiny_decoder(texts, Path(scratch) / "decoder", seed=seed))
        for name in methods:
            design, estimator = METHODS[name]
            config = TrainConfig(
                model=decoder, output=str(Path(scratch) / name), propensity_design=design, estimator=estimator,
                **{**SETTINGS, "seed": seed},
            )  # fmt: skip
            result = train_log(logs.get(name, made.log), config)
            assert made.test is not None
            results[name] = evaluate_rated(result.model, made.test)
            print(f"  {name:<20} {result.design:<9} AUROC {results[name]['auroc']:.3f}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    args.output.mkdir(parents=True, exist_ok=True)
    for world in args.worlds:
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        results = [run(world, seed, args.methods) for seed in seeds]
        (args.output / f"{world}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        by_method = {method: [seed[method] for seed in results] for method in results[0]}
        columns = {"auroc": "AUROC", "ece": "ECE"}
        if {"naive", "known propensities"} <= by_method.keys():
            last, naive, known = "of naive to known", lambda method: "naive", "known propensities"
            print(method_table(by_method, columns, last=last, naive_of=naive, goal=known))


if __name__ == "__main__":
    main()
