"""Commands that compare methods where the truth is known: `reproduce`, `downstream`, `worlds`, `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from irm_fast.cli.answers import Answer, Markdown, path_of
from irm_fast.cli.help import example


@example(
    "irm-fast reproduce --data semi-synthetic --output out",
    "irm-fast reproduce --data rated.jsonl --model PATH_OR_HUB_ID --output out",
)
def reproduce(
    data: Annotated[str, typer.Option(help="Rated file, semi-synthetic, or from the hub: hs, ufb, saferlhf.")],
    output: Annotated[Path, typer.Option(help="Folder for results, tables and two pictures.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a decoder or an encoder for embeddings.")
    ] = None,
    protocol: Annotated[
        Literal["both", "rating", "feature"],
        typer.Option(help="Propensity by rating (as published), by text feature, or both."),
    ] = "both",
    redraws: Annotated[int, typer.Option(min=2, help="Logs to draw; 5 or more for a table to rely on.")] = 5,
    alpha: Annotated[float, typer.Option(help="Protocol rating: decay of propensities.")] = 0.5,
    target: Annotated[float, typer.Option(help="Mean propensity of each signal.")] = 0.2,
    limit: Annotated[int | None, typer.Option(min=100, help="Only the first so many responses.")] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens a row; longer rows lose their oldest text.")] = 1024,
    noise: Annotated[
        float, typer.Option(min=0, help="Semi-synthetic: noise of ratings, of a quality of deviation 1.")
    ] = 0.45,
    processes: Annotated[int | None, typer.Option(min=1, help="Redraws at once; default: one a core.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, or add redraws.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False,
) -> Answer:
    """Compare every method of learning from implicit feedback, under one protocol, on logs with known truth.

    Turns ratings into logs of one and two signals, embeds the responses, fits naive (also with length taken out), IPS,
    uPU, nnPU, DR, SAR-EM, ReCRec, pairs, KTO, two towers, the paper's stratified form, ImplicitRM, and the bounds, and
    prints a table. About ten minutes for a redraw of both protocols on one core, at 16,000 responses and 1,024
    dimensions.
    """
    from irm_fast.experiments.reproduce.experiment import Experiment
    from irm_fast.experiments.reproduce.population import PROTOCOLS
    from irm_fast.experiments.reproduce.redraws import run_redraws, write_report

    experiment = Experiment(data, model, alpha, target, limit, max_length, noise)
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
    except KeyboardInterrupt as stop:
        raise type(stop)("--resume goes on with what is done") from None
    report = write_report(results, experiment, output)
    return Answer({"wrote": path_of(output), "results": results}, [Markdown(report)])


@example("irm-fast downstream --output out", "irm-fast downstream --output out --small")
def downstream(
    output: Annotated[Path, typer.Option(help="Folder for models, curves, the table and three pictures.")],
    seeds: Annotated[int, typer.Option(min=2, help="Worlds, each with a log of its own.")] = 3,
    small: Annotated[
        bool, typer.Option("--small", help="Minutes instead of an hour: see that it runs; the numbers mean little.")
    ] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="Pieces at once; default: one a core.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, or add seeds.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False,
) -> Answer:
    """Optimise a small policy against each method's reward, and show what its answers are worth in truth.

    Makes text whose quality can be read off any answer and users who act on what fishes for it, trains a reward model
    by each method on their log, and optimises a policy against each by GRPO (TRL) and by best of n. Under an hour on
    two cores.
    """
    from irm_fast.experiments.downstream.run import run_downstream, write_report
    from irm_fast.experiments.downstream.settings import SMALL, Settings

    settings = SMALL if small else Settings()
    try:
        points = run_downstream(output, settings, seeds=seeds, processes=processes, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt as stop:
        raise type(stop)("--resume goes on with what is done") from None
    report = write_report(points, output)
    return Answer({"wrote": path_of(output), "points": points}, [Markdown(report)])


@example("irm-fast worlds --output out", "irm-fast worlds --output out --rows 300 --redraws 2")
def worlds(
    output: Annotated[Path, typer.Option(help="Folder for results, tables and the picture.")],
    rows: Annotated[
        list[int] | None,
        typer.Option(help="Rows of a log; several times for several sizes. [default: 2000 8000 32000]"),
    ] = None,
    redraws: Annotated[int, typer.Option(min=2, help="Logs of each world and size; 5 or more to rely on.")] = 5,
    processes: Annotated[int | None, typer.Option(min=1, help="Logs at once; default: one a core.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run, or add sizes or redraws.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False,
) -> Answer:
    """Say in which logs which method is worth it, in made worlds that differ in one thing each.

    Makes text whose quality can be read off any answer, and users whose habits are turned by one knob a world: what
    draws actions, their rate, unequal users, misclicks, a funnel and more. Fits every method to each log and measures
    it on clean answers. About four hours on two cores at the default sizes, of which 32,000 rows take two thirds.
    """
    from irm_fast.experiments.worlds.run import ROWS, run_worlds, write_report

    try:
        results = run_worlds(
            output, rows=rows or ROWS, redraws=redraws, processes=processes, resume=resume, overwrite=overwrite
        )
    except KeyboardInterrupt as stop:
        raise type(stop)("--resume goes on with what is done") from None
    report = write_report(results, output)
    return Answer({"wrote": path_of(output), "results": results}, [Markdown(report)])


@example("irm-fast demo")
def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the demo writes.")] = Path("irm-fast-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, each on a log of its own.")] = 1,
    processes: Annotated[int | None, typer.Option(min=1, help="Methods at once; default: one a core.")] = None,
) -> Answer:
    """Train on a made-up log with known truth, offline, and compare with the naive classifier."""
    from irm_fast.experiments.demo import run_demo

    done = run_demo(output, seeds, processes)
    return Answer({"wrote": path_of(output), "results": done.results}, [Markdown(done.table), *done.lines])
