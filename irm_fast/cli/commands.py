"""The command line. Heavy imports stand inside the commands, so that help comes at once."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from irm_fast.cli.options import Commands, with_settings
from irm_fast.data.signals import Absent, DesignChoice
from irm_fast.training.config import EmbeddingTrainConfig, TrainConfig, load_config, parse_polarity

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut names at 80 columns
)

Data = Annotated[Path, typer.Option("--data", help="A .jsonl, .jsonl.gz or .parquet file.")]
Model = Annotated[Path, typer.Option("--model", help="A folder that irm-fast train wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per forward pass.")]
AbsentKeys = Annotated[Absent, typer.Option("--absent", help="The meaning of a feedback key that some rows lack.")]
Polarity = Annotated[str | None, typer.Option(help="NAME=1 or NAME=-1, comma separated.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from irm_fast import __version__
        from irm_fast.losses.dispatch import backends

        typer.echo(f"irm-fast {__version__}")
        states = backends()
        if states["cpu"] == "available":
            from irm_fast.kernels.cpu.library import INSTRUCTION_SET

            states["cpu"] += f" (C++, {INSTRUCTION_SET})"
        for name, state in states.items():
            typer.echo(f"  loss backend {name}: {state}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version and backends.")
    ] = False,
) -> None:
    """Reward models from clicks, copies and shares."""


@app.command()
def validate(
    data: Annotated[Path, typer.Argument(help="The log: .jsonl, .jsonl.gz or .parquet.")],
    absent: AbsentKeys = "error",
    polarity: Polarity = None,
    misclick: Annotated[
        bool, typer.Option("--misclick", help="Actions may be misclicks: evidence for both sides is allowed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a log: counts, rates, missing entries, duplicates, nested signals. Exit code 1 if it has problems."""
    from irm_fast.data.validation import format_validation
    from irm_fast.data.validation import validate as check

    report = check(data, absent=absent, polarity=parse_polarity(polarity), misclick=misclick)
    typer.echo(json.dumps(report, indent=2) if as_json else format_validation(report))
    raise typer.Exit(bool(report["problem_count"]))


@app.command()
def simulate(
    rated: Annotated[Path, typer.Argument(help="Rated responses, or pairs of chosen and rejected ones.")],
    out: Annotated[Path, typer.Option(help="The log to write, NAME.jsonl; the truth is NAME.truth.jsonl.")],
    protocol: Annotated[str, typer.Option(help="Propensity by rating (as published) or by text feature.")] = "rating",
    alpha: Annotated[float, typer.Option(help="Decay of the rating protocol.")] = 0.5,
    target: Annotated[float, typer.Option(help="Mean propensity of each signal.")] = 0.2,
    signals: Annotated[int, typer.Option(help="How many, 1 to 4: click, copy, share, save.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 0,
    test_fraction: Annotated[float, typer.Option(help="Share written to NAME.test.jsonl instead.")] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace log, truth and test if they exist.")] = False,
) -> None:
    """Turn ratings or pairs into an implicit log whose truth is known.

    Protocol "feature" writes to the log the very features that the propensities are made of (logistic in them), so
    that `train --propensity-design features` is well specified there.
    """
    from irm_fast.data.files import check_not_input
    from irm_fast.data.read import read_rated
    from irm_fast.data.simulation import output_paths, write_simulation
    from irm_fast.data.simulation import simulate as draw

    for path in output_paths(out, overwrite=True):
        check_not_input(path, rated)
    output_paths(out, overwrite=overwrite)  # before the work, not after it
    simulation = draw(
        read_rated(rated),
        protocol=protocol,  # type: ignore[arg-type]
        signals=signals,
        alpha=alpha,
        target=target,
        seed=seed,
        test_fraction=test_fraction,
    )
    for path in write_simulation(simulation, out, overwrite=overwrite):
        typer.echo(f"wrote {path}")
    if simulation.test is not None:
        typer.echo(f"wrote {out.with_suffix('.test.jsonl')}")


@app.command()
@with_settings
def train(
    config: Annotated[Path | None, typer.Option(help="YAML of settings; options override it.")] = None,
    **settings: Any,
) -> None:
    """Train a reward model on a log. Each option is also a key of the YAML file."""
    run = load_config(config, **settings)
    from irm_fast.training.run import train as run_training
    from irm_fast.training.run_folder import can_resume

    try:
        result = run_training(run)
    except KeyboardInterrupt:
        if isinstance(run, TrainConfig) and can_resume(run):
            raise KeyboardInterrupt("--resume goes on from the last checkpoint") from None
        raise
    if os.environ.get("RANK", "0") != "0":  # torchrun: one process reports
        return
    typer.echo(f"wrote {run.output}: propensity design {result.design}")
    if isinstance(run, EmbeddingTrainConfig):
        from irm_fast.training.on_embeddings import what_was_written

        typer.echo(f"  {what_was_written(result)}")
    for name, value in result.metrics.items():
        typer.echo(f"  held-out {name}: {value:.4f}")
    for design, value in result.designs.items() if len(result.designs) > 1 else ():
        typer.echo(f"  held-out nll with propensity design {design}: {value:.4f}")
    if result.truncated:
        length = result.model.spec.max_length
        typer.echo(f"  {result.truncated} rows were longer than {length} tokens and lost their beginning")
    if result.dropped:
        typer.echo(f"  {result.dropped} rows were longer than {result.model.spec.max_length} tokens and were left out")
    if result.throughput:
        from irm_fast.training.throughput import in_words

        typer.echo(f"  attention {result.attention}: {in_words(result.throughput)}")
    if result.diagnosis is not None:
        typer.echo(result.diagnosis.summary())


@app.command()
def evaluate(model: Model, data: Data, batch_size: BatchSize = 32, as_json: AsJson = False) -> None:
    """Measure a model: on clean ratings or pairs, or on a log by likelihood and calibration.

    On a log copy_lost_hiding_0.1, say, is the share of the copies that would be lost if the tenth of the responses with
    the lowest rewards were hidden.
    """
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


@app.command()
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


@app.command()
def mask(
    what: Annotated[list[str], typer.Argument(help='Signals and where, as diagnose: "share where platform=android".')],
    data: Data,
    out: Annotated[Path, typer.Option(help="The log to write, of the same kind of file.")],
    absent: AbsentKeys = "error",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a log with null for signals in a part of it, where silence is a broken button, as diagnose advises."""
    from irm_fast.data.files import check_not_input
    from irm_fast.data.outputs import check_file, check_folder_of
    from irm_fast.evaluation.masking import mask_log

    check_not_input(out, data)
    check_folder_of(out)
    check_file(out, overwrite=overwrite)
    found = mask_log(data, out, what, absent=absent)
    typer.echo(f"wrote {out}: {found.rows - found.left_out} of {found.rows} rows")
    for phrase, silent in found.silent.items():
        typer.echo(f"  {phrase}: {silent} entries of 0 and {found.acted[phrase]} of 1 are null")
    if found.left_out:
        typer.echo(f"  {found.left_out} rows record nothing any more and were left out")


@app.command()
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


@app.command()
def label(
    data: Data,
    out: Annotated[Path, typer.Option(help="To write: NAME.jsonl of rows to rate; or the log with their ratings.")],
    count: Annotated[int | None, typer.Option("--next", min=1, help="How many rows to have rated.")] = None,
    merge: Annotated[Path | None, typer.Option(help="Such rows, rated: write the log with their ratings.")] = None,
    model: Annotated[Path | None, typer.Option(help="With --next: a folder that irm-fast train wrote.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same rows.")] = 0,
    batch_size: BatchSize = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file, labels and all.")] = False,
) -> None:
    """Draw rows of a log to have rated (--next 100 --model DIR), and merge the ratings into the log (--merge RATED).

    Rows are drawn with known probabilities, where a label says most. With one signal that is where its splits into
    preference and propensity disagree, with more where the reward is least sure. Rows that have a preference are left
    out.
    """
    from irm_fast.data.files import check_not_input
    from irm_fast.data.outputs import check_file, check_folder_of, check_suffix

    check_not_input(out, data)
    check_folder_of(out)
    if merge is not None:
        if count is not None or model is not None:
            raise ValueError("merge: got --next or --model too, which have no effect with --merge; leave them out")
        check_not_input(out, merge)
        check_file(out, overwrite=overwrite)
        _merge_labels(merge, data, out)
    elif count is None:
        raise ValueError("label: expected --next 100 to draw rows, or --merge RATED once they are rated; got neither")
    elif model is None:
        raise ValueError("model: none given; expected --model DIR, a folder that irm-fast train wrote")
    else:
        check_suffix(out, ".jsonl")
        check_file(out, overwrite=overwrite)
        _draw_labels(count, data, model, out, seed, batch_size)


def _draw_labels(count: int, data: Path, model: Path, out: Path, seed: int, batch_size: int) -> None:
    from irm_fast.data.read import read_log
    from irm_fast.evaluation.labelling import rows_to_label, write_labels
    from irm_fast.evaluation.scoring import load
    from irm_fast.models.record import read_record

    absent = read_record(model).get("training", {}).get("absent", "error")
    log = read_log(data, absent=absent, misclick=True)
    rows, probability = rows_to_label(load(model), log, count, seed, batch_size=batch_size)
    write_labels(out, log, rows, probability)
    typer.echo(f"wrote {out}: {count} of {len(log)} rows")
    typer.echo(
        "  Fill in preference, 1 where the response pleases and 0 where it does not; then irm-fast label --merge\n"
        f"  {out} --data {data} --out NEWLOG, and irm-fast train on NEWLOG with --labels-ignorable."
    )


def _merge_labels(rated: Path, data: Path, out: Path) -> None:
    from irm_fast.data.merging import merge_ratings

    found = merge_ratings(rated, data, out)
    typer.echo(f"wrote {out}: {found.merged} ratings merged into {found.rows} rows")
    if found.had:
        typer.echo(f"  {found.had} ratings were in the log already")
    if found.unrated:
        typer.echo(f"  {found.unrated} rows of {rated} have no preference; they are as they were")
    if found.without_chance:
        typer.echo(f"  {found.without_chance} have no label_probability: they count as drawn at random")
    typer.echo(
        f"  irm-fast train --data {out} learns from them; --labels-ignorable, if nothing but the draw chose the rows.\n"
        "  Embeddings of the log fit: its texts are the same."
    )


@app.command()
def embed(
    data: Data,
    model: Annotated[str, typer.Option(help="Folder or hub id of a decoder or an encoder with its tokenizer.")],
    out: Annotated[Path, typer.Option(help="The file to write, NAME.safetensors.")],
    pooling: Annotated[str, typer.Option(help="last (token), mean, or auto: last for decoders, else mean.")] = "auto",
    batch_size: BatchSize = 64,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens per row; longer rows lose their beginning.")] = 1024,
    precision: Annotated[str, typer.Option(help="Of the model: float32 or bfloat16.")] = "float32",
    dtype: Annotated[str, typer.Option(help="Of the file: float32 or bfloat16.")] = "float32",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file or an interrupted run.")] = False,
) -> None:
    """Write an embedding of every row: logs, ratings or pairs. `train --embeddings` learns from it."""
    from irm_fast.data.files import check_not_input
    from irm_fast.data.rated import read_conversations
    from irm_fast.embeddings.store import check_target

    check_not_input(out, data)
    folder = check_target(out, resume=resume, overwrite=overwrite)  # before the work, not after it
    ids, conversations = read_conversations(data)
    from irm_fast.embeddings.embedder import Embedder, write_embeddings

    embedder = Embedder(model, pooling=pooling, max_length=max_length, precision=precision)
    source = embedder.source
    typer.echo(f"{source.kind} {model}: {source.pooling} pooling, at most {source.max_length} tokens", err=True)
    how = {"batch_size": batch_size, "dtype": dtype, "resume": resume, "overwrite": overwrite}
    try:
        truncated = write_embeddings(ids, conversations, embedder, out, **how)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        if any(folder.glob("part-*.safetensors")):
            raise KeyboardInterrupt("--resume goes on from the last whole part") from None
        raise
    typer.echo(f"wrote {out}: {len(ids)} embeddings of {embedder.width} numbers")
    if truncated:
        typer.echo(f"  {truncated} rows were longer than {source.max_length} tokens and lost their beginning")


@app.command()
def reproduce(
    data: Annotated[str, typer.Option(help="Rated file, semi-synthetic, or from the hub: hs, ufb, saferlhf.")],
    output: Annotated[Path, typer.Option(help="Folder for results, tables and the picture.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a decoder or an encoder for embeddings.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Propensity by rating (as published), by text feature, or both.")
    ] = "both",
    redraws: Annotated[int, typer.Option(min=2, help="Logs to draw; 5 or more for a table to rely on.")] = 5,
    alpha: Annotated[float, typer.Option(help="Decay of the rating protocol.")] = 0.5,
    target: Annotated[float, typer.Option(help="Mean propensity of each signal.")] = 0.2,
    limit: Annotated[int | None, typer.Option(min=100, help="Only the first so many responses.")] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens a row; longer rows lose their beginning.")] = 1024,
    noise: Annotated[
        float, typer.Option(min=0, help="Semi-synthetic: noise of ratings, of a quality of deviation 1.")
    ] = 0.45,
    processes: Annotated[int | None, typer.Option(min=1, help="Redraws at once; default: one a core.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, or add redraws.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False,
) -> None:
    """Compare every method of learning from implicit feedback, under one protocol, on logs with known truth.

    Turns ratings into logs of one and two signals, embeds the responses, fits naive, IPS, uPU, nnPU, DR, SAR-EM,
    ReCRec, the paper's stratified form, ImplicitRM, and the bounds, and prints a table. About ten minutes for a redraw
    of both protocols on one core, at 16,000 responses and 1,024 dimensions.
    """
    from irm_fast.experiments.reproduce.experiment import Experiment
    from irm_fast.experiments.reproduce.population import PROTOCOLS
    from irm_fast.experiments.reproduce.redraws import run_redraws, write_report

    experiment = Experiment(data, model, alpha, target, limit, max_length, noise)
    if protocol not in ("both", *PROTOCOLS):
        raise ValueError(f"protocol: got {protocol!r}; expected both, {' or '.join(PROTOCOLS)}")
    protocols = PROTOCOLS if protocol == "both" else (protocol,)
    try:
        results = run_redraws(
            experiment,
            output,
            protocols=protocols,
            redraws=redraws,
            processes=processes,
            resume=resume,
            overwrite=overwrite,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("--resume goes on with what is done") from None
    typer.echo(write_report(results, experiment, output))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the demo writes.")] = Path("irm-fast-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, each on a log of its own.")] = 1,
) -> None:
    """Train on a made-up log with known truth, offline, and compare with the naive classifier."""
    from irm_fast.experiments.demo import run_demo

    run_demo(output, seeds)


def main() -> None:
    """The `irm-fast` program."""
    warnings.formatwarning = lambda message, category, *place, **more: f"warning: {message}\n"
    app(prog_name="irm-fast")
