"""Commands that read and make logs: `validate`, `simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from irm_fast.cli.options import AbsentKeys, AsJson, Polarity
from irm_fast.training.setting_values import parse_polarity


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
