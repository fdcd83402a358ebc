"""The commands `train` and `verify`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irm_fast.cli.answers import Answer, path_of
from irm_fast.cli.help import example
from irm_fast.cli.options import with_settings
from irm_fast.data.problems import redacting
from irm_fast.training.config import EmbeddingTrainConfig, TrainConfig, load_config

if TYPE_CHECKING:
    from irm_fast.training.result import TrainResult


@example(
    "irm-fast train --data log.jsonl --model PATH_OR_HUB_ID --output reward_model",
    "irm-fast train --data log.jsonl --model PATH_OR_HUB_ID --output reward_model \\",
    "    --lora-rank 16 --token-budget 16384 --dry-run",
    "irm-fast train --data log.jsonl --embeddings log.safetensors \\",
    "    --output reward_model",
)
@with_settings
def train(
    config: Annotated[Path | None, typer.Option(help="YAML of settings; options override it.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell rows, steps, memory and time by a few steps, and write nothing.")
    ] = False,
    **settings: Any,
) -> Answer | None:
    """Train a reward model on a log. Each option is also a key of the YAML file."""
    run = load_config(config, **settings)
    if dry_run:
        return _dry_run(run)
    from irm_fast.models.processes import is_first
    from irm_fast.publish.names import PAGE
    from irm_fast.training.run import train as run_training
    from irm_fast.training.run_folder import can_resume

    try:
        result = run_training(run)
    except KeyboardInterrupt as stop:
        if not stop.args and isinstance(run, TrainConfig) and can_resume(run):
            raise type(stop)("--resume goes on from what is finished") from None
        raise
    if not is_first():
        return None
    found = {"wrote": path_of(run.output), "design": result.design, **result.record(run)}
    said = [f"wrote {run.output}: propensity design {result.design}"]
    if (page := Path(run.output) / PAGE).is_file():
        found["page"] = path_of(page)
        warning = "" if redacting() else "; it shows texts of the log, mind who gets it"
        said.append(f"  what it found, as a page: {page}{warning}")
    return Answer(found, [*said, *_in_words(run, result)])


def _in_words(run: TrainConfig | EmbeddingTrainConfig, result: TrainResult) -> Iterator[str]:
    """What came of a training, line by line."""
    if isinstance(run, EmbeddingTrainConfig):
        from irm_fast.training.on_embeddings import what_was_written

        yield f"  {what_was_written(result)}"
    for name, value in {**result.metrics, **result.learned}.items():
        yield f"  held-out {name}: {value if isinstance(value, str) else f'{value:.4f}'}"
    for design, value in result.designs.items() if len(result.designs) > 1 else ():
        yield f"  held-out nll with propensity design {design}: {value:.4f}"
    if result.pairs:
        held_out = result.pairs.get("held_out", 0)
        yield f"  {result.pairs['training']} pairs were trained on beside the log, {held_out} were held out"
    longer = f"rows were longer than {result.model.spec.max_length} tokens and"
    if result.truncated:
        yield f"  {result.truncated} {longer} lost their beginning"
    if result.dropped:
        yield f"  {result.dropped} {longer} were left out"
    if result.skipped_steps:
        yield f"  {result.skipped_steps} steps were left out, as their loss or gradient was not finite"
    if result.trained:
        from irm_fast.training.memory import parameters_in_words

        trained, total, optimizer = result.trained.values()
        yield f"  trained {parameters_in_words(trained, total)}; optimiser {optimizer / 1e6:,.1f} MB a device"
    if result.throughput:
        from irm_fast.training.throughput import in_words

        yield f"  attention {result.attention}: {in_words(result.throughput)}"
    if result.diagnosis is not None:
        yield result.diagnosis.summary()


def _dry_run(run: TrainConfig | EmbeddingTrainConfig) -> Answer | None:
    """What a run would do."""
    if isinstance(run, EmbeddingTrainConfig):
        raise ValueError("dry-run: it tries steps of a language model, and a fit on embeddings has none; leave it out")
    from irm_fast.models.processes import is_first
    from irm_fast.training.run import dry_run

    plan, trial = dry_run(run)
    if not is_first():
        return None
    found = {"would_write": path_of(run.output), "plan": plan, "trial": trial._asdict(), "seconds": plan.seconds(trial)}
    found["memory_bytes"] = plan.memory.total
    return Answer(found, [f"{run.output} would be written, and is not:\n{plan.in_words(trial)}"])


@example("irm-fast verify reward_model")
def verify(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A saved model, a training run, a checkpoint, or a file of embeddings."),
    ],
) -> Answer:
    """Is what irm-fast wrote as it was written? Every file is read and compared. Exit code 1 if one is damaged."""
    from irm_fast.training.verification import verify as check

    found = check(path)
    said = []
    for one in found:
        state = f"DAMAGED: {one.wrong}" if one.wrong else ", ".join(filter(None, ("whole", one.note)))
        said.append(f"{one.path}: {one.kind}: {state}")
    damaged = any(one.wrong for one in found)
    return Answer({"whole": not damaged, "files": found}, said, code=damaged)
