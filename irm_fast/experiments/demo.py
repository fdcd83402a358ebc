"""The demo: the main job from end to end and offline, on a made log whose truth is known.

Six methods learn from the same responses and actions; a table and a picture compare them on clean labels.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from irm_fast.data.log import Log
from irm_fast.data.outputs import OutputFolder
from irm_fast.data.signals import DesignChoice
from irm_fast.data.simulation import Simulation, simulate, write_simulation

PROMPTS, TEST_FRACTION, TARGET = 6000, 0.2, 0.5
NOTE = """Written by `irm-fast demo`; the next demo into this folder replaces it.

log.jsonl        the log that the methods learn from: prompts, answers, actions
log.truth.jsonl  the same answers with their true quality and propensities
log.test.jsonl   rated answers that are not in the log: the table is measured on them
model/           the reward model of "implicit, 2 signals", an ordinary transformers checkpoint
results.json, table.md, comparison.png
"""


def _is_marked(folder: Path) -> bool:
    """Whether the note of a demo lies in a folder."""
    note = folder / "README.txt"
    return note.is_file() and note.read_text(encoding="utf-8") == NOTE


FOLDER = OutputFolder(
    "demo",
    files=(
        *("README.txt", "log.jsonl", "log.truth.jsonl", "log.test.jsonl"),
        *("results.json", "table.md", "comparison.png"),
    ),
    folders=("model",),
    is_marked=_is_marked,
)
SETTINGS: Mapping[str, Any] = {
    "epochs": 5,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "head_learning_rate": 2e-2,
    "max_length": 256,
    "progress": False,
}


def run_demo(output: str | Path, seeds: int = 1) -> list[dict[str, dict[str, float]]]:
    """Make the data, train every method, print the table, and leave table, picture and checkpoint in a folder.

    Args:
        output: The folder; an earlier demo in it is replaced.
        seeds: How often to repeat, each time on fresh text, feedback and weights.

    Returns:
        For each seed the metrics of each method.

    Raises:
        ValueError: The folder holds something else than an earlier demo.
    """
    from irm_fast.experiments.report import comparison_table, draw_comparison

    output = Path(output)
    _prepare(output)
    results = [_one_seed(seed, output if seed == 0 else None) for seed in range(seeds)]
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = comparison_table(results)
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n")
    _show_scores(output / "model", output / "log.test.jsonl")
    picture = draw_comparison(results, output / "comparison.png")
    print(f"\nwrote {output}/: log, truth and test data, model (two signals), table.md, results.json")
    print(f"picture: {picture}" if picture else "no picture: it needs matplotlib, pip install 'irm-fast[plot]'")
    return results


def _one_seed(seed: int, keep: Path | None) -> dict[str, dict[str, float]]:
    """Compare all methods on a log of its own; `keep` is the folder that gets the log and the model."""
    from irm_fast.experiments.tiny_decoder import make_tiny_decoder

    print(f"seed {seed}: making a log", flush=True)
    simulation = make_simulation(seed)
    if keep is not None:
        write_simulation(simulation, keep / "log.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        texts = (turn["content"] for messages in simulation.log.messages for turn in messages)
        decoder = make_tiny_decoder(texts, Path(scratch) / "decoder", seed=seed)
        return compare(simulation, decoder, {**SETTINGS, "seed": seed}, keep and keep / "model")


def make_simulation(seed: int, prompts: int = PROMPTS) -> Simulation:
    """Make text of known quality, and two signals whose propensities depend on the response but not on its quality.

    Args:
        seed: The seed of text and actions.
        prompts: The number of prompts, with two responses each.
    """
    from irm_fast.experiments.made_text import make_rated

    rated = make_rated(prompts, seed)
    return simulate(rated, protocol="feature", signals=2, target=TARGET, seed=seed, test_fraction=TEST_FRACTION)


def methods(simulation: Simulation) -> Iterator[tuple[str, Log, DesignChoice]]:
    """Yield the name of each method, the log that it sees, and its propensity design.

    All methods see the same rows and the same actions. The naive ones take a row in which any signal acted for a
    preferred one, and all others for not preferred.
    """
    log = simulation.log
    one = replace(log, signals=log.signals[:1], polarity=(1,), feedback=log.feedback[:, :1])
    for name, seen in (("1 signal", one), ("2 signals", log)):
        yield f"naive, {name}", labelled(log, seen.feedback.max(axis=1)), "constant"  # any action is a label of 1
        yield f"implicit, {name}", seen, "constant" if name == "1 signal" else "auto"
    yield "known propensities", replace(log, propensity=simulation.propensity.astype(np.float32)), "known"
    yield "explicit labels", labelled(log, simulation.truth.preference), "constant"


def labelled(log: Log, preference: np.ndarray) -> Log:
    """The same responses with a label for each instead of feedback: plain classification.

    Args:
        log: The log, N rows.
        preference: (N,) of 0 and 1.
    """
    return replace(
        log,
        signals=(),
        polarity=(),
        feedback=np.empty((len(log), 0), np.int8),
        preference=preference.astype(np.int8),
    )


def compare(
    simulation: Simulation, decoder: Path, settings: Mapping[str, Any], keep: Path | None = None
) -> dict[str, dict[str, float]]:
    """Train every method from the same weights, and measure it on clean labels that no method saw.

    Args:
        simulation: The log, its truth, and the clean test set.
        decoder: The folder of the model to start from.
        settings: Fields of `TrainConfig`, the same for all methods.
        keep: The folder that gets the checkpoint of "implicit, 2 signals"; None to keep none.

    Returns:
        For each method the metrics of `irm_fast.diagnostics.metrics.reward_metrics`.

    Raises:
        ValueError: The simulation has no test set.
    """
    from irm_fast.evaluation.evaluation import evaluate_rated
    from irm_fast.models.backbone import quiet_transformers
    from irm_fast.training.config import TrainConfig
    from irm_fast.training.run import train_log

    if simulation.test is None:
        raise ValueError("simulation: holds no clean test part; simulate with a test_fraction")
    metrics = {}
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        for name, log, design in methods(simulation):
            folder = Path(scratch) / name
            config = TrainConfig(model=str(decoder), output=str(folder), propensity_design=design, **settings)
            result = train_log(log, config)
            metrics[name] = evaluate_rated(result.model, simulation.test)
            print(f"  {name:<20} {result.design:<9} AUROC {metrics[name]['auroc']:.3f}", flush=True)
            if keep is not None and name == "implicit, 2 signals":
                shutil.copytree(folder, keep)
    return metrics


def _show_scores(model: Path, test: Path) -> None:
    """Print the rewards of the best and the worst test response by the checkpoint, under transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from irm_fast.data.read import read_rated
    from irm_fast.models.backbone import quiet_transformers

    rated = read_rated(test)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with quiet_transformers():
        classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    print("The checkpoint under AutoModelForSequenceClassification:")
    for row in (int(rated.rating.argmax()), int(rated.rating.argmin())):
        text = tokenizer.apply_chat_template(rated.messages[row], tokenize=False)
        with torch.no_grad():
            reward = classifier(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item()
        text = " / ".join(rated.messages[row][-1]["content"].splitlines())
        print(f"  reward {reward:+.2f}  {text if len(text) < 90 else text[:87] + '...'}")


def _prepare(output: Path) -> None:
    """Make the folder, without what an earlier demo left in it; a folder that holds something else is an error."""
    if FOLDER.check(output) == "ours":
        FOLDER.check_replaceable(output)
        FOLDER.clear_own(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "README.txt").write_text(NOTE, encoding="utf-8")
