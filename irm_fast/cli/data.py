"""Commands that read and make logs: `validate`, `import`, `simulate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from irm_fast.cli.answers import Answer, path_of
from irm_fast.cli.help import example
from irm_fast.cli.options import with_log_settings
from irm_fast.data.problems import one_line
from irm_fast.training.config import log_settings


@example(
    "irm-fast validate log.jsonl",
    'irm-fast validate "logs/*.parquet" --signals copy,share --absent missing',
)
@with_log_settings
def validate(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA", help="The log: files, folders of parts, patterns, or - for standard input."),
    ],
    misclick: Annotated[
        bool, typer.Option("--misclick", help="Actions may be misclicks: evidence for both sides is allowed.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="YAML of settings, as of train; options override it.")] = None,
    **settings: Any,
) -> Answer:
    """Check a log: counts, rates, missing entries, duplicates, nested signals. Exit code 1 if it has problems."""
    from irm_fast.data.validation import format_validation
    from irm_fast.data.validation import validate as check

    declared = replace(log_settings(config, settings).declared, misclick=misclick)
    report = check(data[0] if len(data) == 1 else data, declared=declared)
    return Answer(report, [format_validation(report)], code=bool(report["problem_count"]))


Protocol = Literal["rating", "feature"]
Product = Literal[
    "langfuse", "langsmith", "phoenix", "posthog", "open-webui", "librechat", "sharegpt", "oasst", "label-studio",
    "argilla", "kto", "events",
]  # fmt: skip


@example(
    "irm-fast import langfuse observations.jsonl scores.jsonl --out log.jsonl",
    "irm-fast import events --impressions shown.csv --actions acted.csv \\",
    "    --on response_id --window 24h --out log.parquet",
)
def import_log(
    product: Annotated[
        Product, typer.Argument(metavar="SOURCE", help=f"Where it comes from: {', '.join(get_args(Product))}.")
    ],
    out: Annotated[Path, typer.Option(help="The log to write, NAME.jsonl or NAME.parquet.")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="What it exported: files, folders, patterns.")
    ] = None,
    impressions: Annotated[
        list[str] | None, typer.Option(help="Of events: the responses that were shown. Give it again for more files.")
    ] = None,
    actions: Annotated[list[str] | None, typer.Option(help="Of events: what users did.")] = None,
    on: Annotated[str, typer.Option(help="Of events: the column that names the response in both.")] = "response_id",
    window: Annotated[str, typer.Option(help="How long after a response actions count: 24h,share=7d; none.")] = "24h",
    instrumented_since: Annotated[
        str | None, typer.Option(help="Since when a button exists: copy=2026-01-01,...; before, null.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Up to when actions are recorded; the newest event.")] = None,
    signals: Annotated[str | None, typer.Option(help="The actions to keep, comma separated; all by default.")] = None,
    memory: Annotated[str, typer.Option(help="Memory of a join; the rest spills to disk.")] = "3GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the log if it exists.")] = False,
) -> Answer:
    """Turn what a product exported into a log, or join impressions and actions, with an account of what it did."""
    from irm_fast.data.importing.events import import_events
    from irm_fast.data.importing.exports import import_traces
    from irm_fast.data.importing.layouts import LAYOUTS
    from irm_fast.data.importing.records import import_records
    from irm_fast.data.importing.windows import Windows

    if (product == "events") != bool(impressions and actions) or (product == "events") == bool(files):
        needed = "--impressions A --actions B and no other file" if product == "events" else "FILE..., its export"
        raise ValueError(f"import {product}: expected {needed}")
    windows = Windows.parse(window, instrumented_since, until)
    chosen = None if signals is None else [name.strip() for name in signals.split(",")]
    joined: dict[str, Any] = {"windows": windows, "signals": chosen, "memory": memory, "overwrite": overwrite}
    if product in LAYOUTS:
        account = import_records(product, files or [], out, overwrite=overwrite)
    elif product == "events":
        account = import_events(impressions or [], actions or [], out, on=on, **joined)
    else:
        account = import_traces(product, files or [], out, **joined)
    said = [*map(one_line, account.lines()), f"wrote {out}; irm-fast validate {out} says what it holds"]
    return Answer({"wrote": path_of(out), "account": account}, said)


@example("irm-fast simulate rated.jsonl --out log.jsonl --signals 2 --test-fraction 0.2")
def simulate(
    rated: Annotated[
        Path, typer.Argument(metavar="RATED", help="Rated responses, or pairs of chosen and rejected ones.")
    ],
    out: Annotated[Path, typer.Option(help="The log to write, NAME.jsonl; the truth is NAME.truth.jsonl.")],
    protocol: Annotated[
        Protocol, typer.Option(help="Propensity by rating (as published) or by text feature.")
    ] = "rating",
    alpha: Annotated[float, typer.Option(help="Decay of the rating protocol.")] = 0.5,
    target: Annotated[float, typer.Option(help="Mean propensity of each signal.")] = 0.2,
    signals: Annotated[int, typer.Option(min=1, max=4, help="How many, 1 to 4: click, copy, share, save.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 0,
    test_fraction: Annotated[float, typer.Option(help="Share written to NAME.test.jsonl instead.")] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace log, truth and test if they exist.")] = False,
) -> Answer:
    """Turn ratings or pairs into an implicit log whose truth is known.

    Protocol "feature" writes to the log the very features that the propensities are made of (logistic in them), so
    that `train --propensity-design features` is well specified there.
    """
    from irm_fast.data.read import read_rated
    from irm_fast.data.reading.sources import check_not_input
    from irm_fast.data.simulation import output_paths, write_simulation
    from irm_fast.data.simulation import simulate as draw

    for path in output_paths(out, overwrite=True):
        check_not_input(path, rated)
    output_paths(out, overwrite=overwrite)  # before the work, not after it
    simulation = draw(
        read_rated(rated),
        protocol=protocol,
        signals=signals,
        alpha=alpha,
        target=target,
        seed=seed,
        test_fraction=test_fraction,
    )
    wrote = [*write_simulation(simulation, out, overwrite=overwrite)]
    if simulation.test is not None:
        wrote.append(out.with_suffix(".test.jsonl"))
    rates = dict(zip(simulation.log.signals, simulation.log.feedback.mean(axis=0).tolist(), strict=True))
    found = {"wrote": [path_of(path) for path in wrote], "rows": len(simulation.log), "rates": rates}
    return Answer(found, [f"wrote {path}" for path in wrote])
