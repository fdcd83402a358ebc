"""The demo: the main job from end to end and offline, on a made log whose truth is known.

Six methods learn from the same responses and actions, side by side in processes; a table and a picture compare them on
clean labels.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from irm_fast.common.extras import missing
from irm_fast.data.log import Log
from irm_fast.data.rated import Rated
from irm_fast.data.simulation import Simulation, simulate, write_simulation
from irm_fast.data.telling import tell
from irm_fast.data.writing.lock import only_run
from irm_fast.data.writing.outputs import OutputFolder
from irm_fast.data.writing.whole import whole_files, write_whole
from irm_fast.experiments.processes import side_by_side

KEPT = "implicit, 2 signals"  # the method whose model stays in the folder
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
    mark="README.txt",
)
SETTINGS: Mapping[str, Any] = {
    "epochs": 5,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "head_learning_rate": 2e-2,
    "max_length": 256,
    "progress": False,
}


class Method(NamedTuple):
    """A way to learn from the simulated log.

    Attributes:
        name: Its name in the table.
        log: What it sees of the log.
        settings: Its own settings, fields of `TrainConfig`.
    """

    name: str
    log: Log
    settings: Mapping[str, Any]


class Training(NamedTuple):
    """A method, and all that a process needs to train and measure it.

    Attributes:
        seed: The seed of its world.
        row: Its row in the table, from 0.
        method: The method.
        settings: Fields of `TrainConfig` that all methods share.
        decoder: The folder of the model to start from.
        output: The folder of the run.
        test: Rated responses to measure it on.
    """

    seed: int
    row: int
    method: Method
    settings: Mapping[str, Any]
    decoder: Path
    output: Path
    test: Rated


class Measured(NamedTuple):
    """What came of a training: the metrics, the propensity design that the run chose, and the seconds it took."""

    metrics: dict[str, float]
    design: str
    seconds: float


class Demo(NamedTuple):
    """What came of a demo: for each seed the metrics of each method, their table in Markdown, and what to say of it."""

    results: list[dict[str, dict[str, float]]]
    table: str
    lines: list[str]


def run_demo(output: str | Path, seeds: int = 1, processes: int | None = None) -> Demo:
    """Make the data, train every method, and leave table, picture and checkpoint in a folder.

    Args:
        output: The folder; an earlier demo in it is replaced.
        seeds: How often to repeat, each time on fresh text, feedback and weights.
        processes: How many methods to train at once; None for one a core. It does not change the results.

    Raises:
        ValueError: The folder holds something else than an earlier demo.
    """
    output = Path(output)
    with only_run(output, "irm-fast demo", folder=True):
        return _run_demo(output, seeds, processes)


def _run_demo(output: Path, seeds: int, processes: int | None) -> Demo:
    """`run_demo` in a folder that no other run writes to."""
    from irm_fast.experiments.report import comparison_table, draw_comparison

    _prepare(output)
    with tempfile.TemporaryDirectory() as scratch:
        results = _train_all(_worlds(seeds, output, Path(scratch)), processes)
        _copy_model(Path(scratch) / "0" / KEPT, output / "model")
    write_whole(output / "results.json", json.dumps(results, indent=2) + "\n")
    table = comparison_table(results)
    write_whole(output / "table.md", table + "\n")
    picture = draw_comparison(results, output / "comparison.png")
    lines = [
        *_scores(output / "model", output / "log.test.jsonl"),
        f"wrote {output}/: log, truth and test data, model (two signals), table.md, results.json",
        f"picture: {picture}" if picture else f"no picture: it {missing('matplotlib')}",
    ]
    return Demo(results, table, lines)


def _worlds(seeds: int, output: Path, scratch: Path) -> Iterator[Training]:
    """The trainings of all seeds; the log of a seed is made when its first training is asked for."""
    from irm_fast.experiments.tiny_decoder import make_tiny_decoder

    for seed in range(seeds):
        tell(f"seed {seed}: making a log")
        simulation = make_simulation(seed)
        if seed == 0:
            write_simulation(simulation, output / "log.jsonl")
        texts = (turn["content"] for messages in simulation.log.messages for turn in messages)
        decoder = make_tiny_decoder(texts, scratch / str(seed) / "decoder", seed=seed)
        yield from trainings(simulation, decoder, {**SETTINGS, "seed": seed}, scratch / str(seed))


def make_simulation(seed: int, prompts: int = PROMPTS) -> Simulation:
    """Make text of known quality, and two signals whose propensities depend on the response but not on its quality.

    Args:
        seed: The seed of text and actions.
        prompts: The number of prompts, with two responses each.
    """
    from irm_fast.experiments.made_text import make_rated

    rated = make_rated(prompts, seed)
    return simulate(rated, protocol="feature", signals=2, target=TARGET, seed=seed, test_fraction=TEST_FRACTION)


def methods(simulation: Simulation) -> Iterator[Method]:
    """Yield each method of the table, in its order.

    All methods see the same rows and the same actions. The naive ones take a row in which any signal acted for a
    preferred one, and all others for not preferred.
    """
    log = simulation.log
    one = replace(log, signals=log.signals[:1], polarity=(1,), feedback=log.feedback[:, :1])
    for name, seen in (("1 signal", one), ("2 signals", log)):
        acted = labelled(log, seen.feedback.max(axis=1))  # any action is a label of 1
        yield Method(f"naive, {name}", acted, {"propensity_design": "constant"})
        yield Method(f"implicit, {name}", seen, {"propensity_design": "constant" if name == "1 signal" else "auto"})
    known = replace(log, propensity=simulation.propensity.astype(np.float32))
    yield Method("known propensities", known, {"propensity_design": "known"})
    yield Method("explicit labels", labelled(log, simulation.truth.preference), {"propensity_design": "constant"})


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
    simulation: Simulation,
    decoder: Path,
    settings: Mapping[str, Any],
    keep: Path | None = None,
    processes: int | None = None,
) -> dict[str, dict[str, float]]:
    """Train every method from the same weights, and measure it on clean labels that no method saw.

    Args:
        simulation: The log, its truth, and the clean test set.
        decoder: The folder of the model to start from.
        settings: Fields of `TrainConfig`, the same for all methods.
        keep: The folder that gets the checkpoint of "implicit, 2 signals"; None to keep none.
        processes: How many methods to train at once; None for one a core. It does not change the results.

    Returns:
        For each method the metrics of `irm_fast.diagnostics.metrics.reward_metrics`.

    Raises:
        ValueError: The simulation has no test set.
    """
    with tempfile.TemporaryDirectory() as scratch:
        [metrics] = _train_all(trainings(simulation, decoder, settings, Path(scratch)), processes)
        if keep is not None:
            _copy_model(Path(scratch) / KEPT, keep)
    return metrics


def _copy_model(model: Path, folder: Path) -> None:
    """Copy the folder of a saved model."""
    from irm_fast.models.record import RECORD

    with whole_files(folder, last=RECORD) as unfinished:
        shutil.copytree(model, unfinished, dirs_exist_ok=True)


def trainings(simulation: Simulation, decoder: Path, settings: Mapping[str, Any], folder: Path) -> Iterator[Training]:
    """Yield the training of each method, those first that train several models.

    Args:
        simulation: The log, its truth, and the clean test set.
        decoder: The folder of the model to start from.
        settings: Fields of `TrainConfig`, the same for all methods.
        folder: The folder for the runs.

    Raises:
        ValueError: The simulation has no test set.
    """
    if simulation.test is None:
        raise ValueError("simulation: holds no clean test part; simulate with a test_fraction")
    seed = settings.get("seed", 0)
    order = sorted(enumerate(methods(simulation)), key=lambda numbered: -len(numbered[1].log.signals))
    for row, method in order:
        yield Training(seed, row, method, settings, decoder, folder / method.name, simulation.test)


def _train_all(work: Iterator[Training], processes: int | None) -> list[dict[str, dict[str, float]]]:
    """The metrics of all trainings, by seed, then by method; a line is said as each training ends."""
    done = []
    for training, measured in side_by_side(
        train_and_measure,
        work,
        processes=processes,
        imports=("irm_fast.training.run", "irm_fast.evaluation.evaluation"),
    ):
        auroc, name = measured.metrics["auroc"], training.method.name
        tell(f"  {name:<20} {measured.design:<9} AUROC {auroc:.3f} {measured.seconds:5.0f} s")
        done.append((training.seed, training.row, name, measured.metrics))
    done.sort(key=lambda entry: entry[:2])
    seeds = sorted({seed for seed, *_ in done})
    return [{name: metrics for seed, _, name, metrics in done if seed == wanted} for wanted in seeds]


def train_and_measure(training: Training) -> Measured:
    """Train one method and measure it on clean labels; a process of its own may do it."""
    from irm_fast.evaluation.evaluation import evaluate_rated
    from irm_fast.models.foreign_files import quiet_transformers
    from irm_fast.training.config import TrainConfig
    from irm_fast.training.run import train_log

    start = time.perf_counter()
    method = training.method
    settings = {**training.settings, **method.settings}
    config = TrainConfig(model=str(training.decoder), output=str(training.output), **settings)
    with quiet_transformers():
        result = train_log(method.log, config)
        metrics = evaluate_rated(result.model, training.test)
    return Measured(metrics, result.design, time.perf_counter() - start)


def _scores(model: Path, test: Path) -> Iterator[str]:
    """Say the rewards of the best and the worst test response by the checkpoint, under transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from irm_fast.data.read import read_rated
    from irm_fast.models.foreign_files import quiet_transformers

    rated = read_rated(test)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with quiet_transformers():
        classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    yield "The checkpoint under AutoModelForSequenceClassification:"
    for row in (int(rated.rating.argmax()), int(rated.rating.argmin())):
        text = tokenizer.apply_chat_template(rated.messages[row], tokenize=False)
        with torch.no_grad():
            reward = classifier(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item()
        text = " / ".join(rated.messages[row][-1]["content"].splitlines())
        yield (f"  reward {reward:+.2f}  {text if len(text) < 90 else text[:87] + '...'}")


def _prepare(output: Path) -> None:
    """Make the folder, without what an earlier demo left in it; a folder that holds something else is an error."""
    if FOLDER.check(output) == "ours":
        FOLDER.check_replaceable(output)
        FOLDER.clear_own(output)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "README.txt", NOTE)
