"""The main job from end to end, offline: a made log with known truth, five ways to learn from it, one table."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.log import Log
from irm_fast.rated import Rated
from irm_fast.simulate import Simulation, simulate, write_simulation

PROMPTS, TEST_FRACTION, TARGET = 4000, 0.25, 0.3
METHODS = ("naive", "implicit, 1 signal", "implicit, 2 signals", "known propensities", "explicit labels")
SETTINGS: Mapping[str, Any] = {
    "epochs": 6,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "head_learning_rate": 2e-2,
    "max_length": 256,
    "progress": False,
}


def run(output: str | Path, seeds: int = 1) -> list[dict[str, dict[str, float]]]:
    """Makes the data, trains every method, prints and saves table, picture and checkpoint under `output`.

    seeds: how often to repeat, on fresh text, feedback and weights. Returns the metrics of each method, seed by seed.
    Raises ValueError if `output` holds something else than an earlier demo.
    """
    from irm_fast.report import comparison_table, draw_comparison

    output = Path(output)
    _clear(output)
    results = []
    for seed in range(seeds):
        print(f"seed {seed}: making a log", flush=True)
        simulation = make_simulation(seed)
        if seed == 0:
            write_simulation(simulation, output / "log.jsonl")
        results.append(compare(simulation, output, seed))
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = comparison_table(results)
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n")
    _show_scores(output / "model", output / "log.test.jsonl")
    picture = draw_comparison(results, output / "comparison.png")
    print(f"\nwrote {output}/: log, truth and test data, model (two signals), table.md, results.json")
    print(
        f"picture: {picture}" if picture else "no picture: it needs matplotlib, pip install 'irm-fast[plot]'"
    )
    return results


def make_simulation(seed: int, prompts: int = PROMPTS) -> Simulation:
    """Text with known quality and two signals whose propensities depend on the response, not on its quality."""
    from irm_fast.made_text import make_rated

    rated = make_rated(prompts, seed)
    return simulate(
        rated, protocol="feature", signals=2, target=TARGET, seed=seed, test_fraction=TEST_FRACTION
    )


def methods(simulation: Simulation) -> Iterator[tuple[str, Log, str]]:
    """Name, the log that the method sees, propensity design. All see the same rows and actions."""
    log = simulation.log
    yield "naive", labelled(log, log.feedback.max(axis=1)), "constant"
    yield (
        "implicit, 1 signal",
        replace(log, signals=log.signals[:1], polarity=(1,), feedback=log.feedback[:, :1]),
        "auto",
    )
    yield "implicit, 2 signals", log, "auto"
    yield "known propensities", replace(log, propensity=simulation.propensity.astype(np.float32)), "known"
    yield "explicit labels", labelled(log, simulation.truth.preference), "constant"


def labelled(log: Log, preference: np.ndarray) -> Log:
    """The same responses with a label (N,) for each instead of feedback: plain classification."""
    return replace(
        log,
        signals=(),
        polarity=(),
        feedback=np.empty((len(log), 0), np.int8),
        preference=preference.astype(np.int8),
    )


def compare(simulation: Simulation, output: Path, seed: int) -> dict[str, dict[str, float]]:
    """Trains every method from the same weights and measures it on clean labels that no method saw."""
    from irm_fast.config import TrainConfig
    from irm_fast.evaluation import evaluate_rated
    from irm_fast.tiny_decoder import make_tiny_decoder
    from irm_fast.trainer import train_log

    assert simulation.test is not None
    metrics = {}
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        texts = (turn["content"] for messages in simulation.log.messages for turn in messages)
        decoder = make_tiny_decoder(texts, Path(scratch) / "decoder", seed=seed)
        for name, log, design in methods(simulation):
            folder = Path(scratch) / name.replace(" ", "-")
            config = TrainConfig(
                model=str(decoder), output=str(folder), propensity=design, seed=seed, **SETTINGS
            )
            result = train_log(log, config)
            metrics[name] = evaluate_rated(result.model, simulation.test)
            print(f"  {name:<20} {result.design:<9} AUROC {metrics[name]['auroc']:.3f}", flush=True)
            if seed == 0 and name == "implicit, 2 signals":
                shutil.copytree(folder, output / "model")
    return metrics


def _show_scores(model: Path, test: Path) -> None:
    """Scores the best and the worst test response as a stranger would: with transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from irm_fast.data import read_rated

    rated: Rated = read_rated(test)
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    print("The checkpoint under AutoModelForSequenceClassification:")
    for row in (int(rated.rating.argmax()), int(rated.rating.argmin())):
        encoded = tokenizer.apply_chat_template(rated.messages[row], return_tensors="pt", return_dict=True)
        with torch.no_grad():
            reward = classifier(**encoded).logits.item()
        text = " / ".join(rated.messages[row][-1]["content"].splitlines())
        print(f"  reward {reward:+.2f}  {text if len(text) < 90 else text[:87] + '...'}")


def _clear(output: Path) -> None:
    """Removes an earlier demo; anything else in the folder is an error."""
    if output.exists() and any(output.iterdir()):
        if not (output / "log.jsonl").is_file() or not (output / "log.truth.jsonl").is_file():
            raise ValueError(
                f"output: {output} is not empty and holds no earlier demo; choose another folder"
            )
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and progress lines of the libraries below: the demo prints its own."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
