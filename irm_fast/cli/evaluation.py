"""Commands that judge a log or a model, and those that use a model: `evaluate`, `diagnose`, `score`, `label`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from irm_fast.cli.options import AsJson, BatchSize, Data, Model, Polarity
from irm_fast.data.signals import Absent, DesignChoice
from irm_fast.training.config import parse_polarity


def evaluate(model: Model, data: Data, batch_size: BatchSize = 32, as_json: AsJson = False) -> None:
    """Measure a model: on clean ratings or pairs, or on a log by likelihood and calibration."""
    from irm_fast.evaluation.evaluation import evaluate as measure
    from irm_fast.training.run_folder import plain

    metrics = measure(model, data, batch_size=batch_size)
    if as_json:
        typer.echo(json.dumps(plain(metrics), indent=2))
        return
    ends = {f"{name}_{end}" for name in metrics for end in ("low", "high")} & metrics.keys()
    width = max(map(len, metrics.keys() - ends))
    for name, value in metrics.items():
        if name in ends:
            continue
        line = f"{name:<{width}}  {value:{'.4f' if isinstance(value, float) else 'd'}}"
        if f"{name}_low" in ends:
            line += f"  90% interval {metrics[f'{name}_low']:.4f} to {metrics[f'{name}_high']:.4f}"
        typer.echo(line)


def diagnose(
    data: Data,
    model: Annotated[Path | None, typer.Option(help="A folder that irm-fast train wrote on another log.")] = None,
    propensity_design: Annotated[DesignChoice, typer.Option(help="Without a model: the design to judge.")] = "auto",
    absent: Annotated[Absent | None, typer.Option(help="The meaning of a feedback key that some rows lack.")] = None,
    polarity: Polarity = None,
    labels_ignorable: Annotated[
        bool, typer.Option("--labels-ignorable", help="Which rows have a preference does not depend on it.")
    ] = False,
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
) -> None:
    """Is the reward identified? What is assumed, tested, and uncertain. Exit code 1 if the log contradicts it.

    With a model, the log should be one that it was not trained on; without, only what the log alone shows is tested.
    """
    from irm_fast.evaluation.log_diagnosis import diagnose_file

    found = diagnose_file(
        data,
        model,
        propensity_design=propensity_design,
        absent=absent,
        polarity=parse_polarity(polarity),
        labels_ignorable=labels_ignorable,
        batch_size=batch_size,
    )
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
    raise typer.Exit(found.kind == "contradicted")


def score(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="JSONL to write: id and reward (null if not finite).")],
    batch_size: BatchSize = 32,
    lower: Annotated[
        float | None,
        typer.Option(help="On embeddings: also reward_lower, below which the true reward lies with this probability."),
    ] = None,
) -> None:
    """Write the reward of every response; no feedback or rating is needed."""
    from irm_fast.data.files import check_not_input
    from irm_fast.data.outputs import check_folder_of, whole_file
    from irm_fast.data.rated import read_conversations
    from irm_fast.evaluation.scoring import load
    from irm_fast.evaluation.scoring import score as rewards_of

    check_not_input(out, data)
    check_folder_of(out)
    ids, conversations = read_conversations(data)
    if lower is None:
        columns = {"reward": rewards_of(load(model), conversations, batch_size=batch_size)}
    else:
        found = rewards_of(load(model), conversations, batch_size=batch_size, lower=lower)
        columns = dict(zip(("reward", "reward_lower"), found, strict=True))
    with whole_file(out) as file:
        for name, *numbers in zip(ids, *(values.tolist() for values in columns.values()), strict=True):
            finite = [number if math.isfinite(number) else None for number in numbers]  # JSON has no NaN
            file.write(json.dumps({"id": name, **dict(zip(columns, finite, strict=True))}) + "\n")
    typer.echo(f"wrote {out}: {len(ids)} rewards")


def label(
    count: Annotated[int, typer.Option("--next", min=1, help="How many rows to have rated.")],
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option(help="JSONL to write, NAME.jsonl: rows with a preference to fill in.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same rows.")] = 0,
    batch_size: BatchSize = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file, labels and all.")] = False,
) -> None:
    """Draw rows of a log to have rated, with known probabilities, where a label says most.

    With one signal that is where its splits into preference and propensity disagree, with more where the reward is
    least sure. Rows that have a preference are left out.
    """
    from irm_fast.data.files import check_not_input
    from irm_fast.data.outputs import check_file, check_folder_of, check_suffix
    from irm_fast.data.read import read_log
    from irm_fast.evaluation.labelling import rows_to_label, write_labels
    from irm_fast.evaluation.scoring import load
    from irm_fast.models.record import read_record

    check_not_input(out, data)
    check_suffix(out, ".jsonl")
    check_folder_of(out)
    check_file(out, overwrite=overwrite)
    absent = read_record(model).get("training", {}).get("absent", "error")
    log = read_log(data, absent=absent, misclick=True)
    rows, probability = rows_to_label(load(model), log, count, seed, batch_size=batch_size)
    write_labels(out, log, rows, probability)
    typer.echo(f"wrote {out}: {count} of {len(log)} rows")
    typer.echo(
        "  Fill in preference, 1 where the response pleases and 0 where it does not; copy it and label_probability to\n"
        "  the rows of these ids in the log; then irm-fast train again, on embeddings with --labels-ignorable."
    )
