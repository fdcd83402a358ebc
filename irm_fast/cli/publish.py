"""The commands `report` and `export`, which show a model and hand it over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from irm_fast.cli.answers import Answer, Part, Table, path_of
from irm_fast.cli.help import example
from irm_fast.common.extras import missing

if TYPE_CHECKING:
    from irm_fast.publish.consumers import Reading


@example("irm-fast report reward_model", "irm-fast report reward_model --out page.html --redact")
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that irm-fast train wrote.")],
    out: Annotated[Path | None, typer.Option(help="The page to write or replace; default: DIR/report.html.")] = None,
) -> Answer:
    """Write what a run has found as one page of HTML: verdict, curves, rewards by action, best and worst answers.

    Train writes it too. The texts are those of the log that the model was trained on, if it still lies where it was.
    """
    from irm_fast.publish.report import write_report

    written = write_report(directory, out, pngs=True)
    pictures = f"  and its charts as PNG files in {written.charts}"
    without = f"  no PNG files of its charts: that {missing('matplotlib')}"
    said = [f"wrote {written.page}", without if written.charts is None else pictures]
    charts = None if written.charts is None else path_of(written.charts)
    return Answer({"wrote": path_of(written.page), "charts": charts}, said)


@example(
    "irm-fast export reward_model --check",
    "irm-fast export reward_model --out rm --push-to-hub ME/rm",
    "irm-fast export on_encoder --to sentence-transformers --out rm",
)
def export(
    model: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder that irm-fast train wrote; an adapter's; with --check an export."),
    ],
    out: Annotated[Path | None, typer.Option(help="The folder to write, new or empty.")] = None,
    to: Annotated[
        Literal["hf", "sentence-transformers"] | None,
        typer.Option(help="A plain classifier (hf, the default), or a reward on the embeddings of an encoder."),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into the weights of its base.")] = False,
    push_to_hub: Annotated[str | None, typer.Option(help="Upload the export to this repository of the hub.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; compare the scores of all programs that are installed.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="With --check: rows to compare on, the first 64, instead of made ones.")
    ] = None,
) -> Answer:
    """Write a model for others, or check who reads it. With --check exit code 1 if a program reads another reward."""
    if check:
        given = {"--out": out, "--to": to, "--merge": merge or None, "--push-to-hub": push_to_hub}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"check: writes nothing; got {' and '.join(wrong)} too, without effect there; leave it out"
            )
        return _check(model, data)
    if data is not None:
        raise ValueError("data: got it without --check, where it has no effect; leave it out")
    if out is None:
        raise ValueError("out: none given; expected --out DIR to write, or --check to compare programs")
    from irm_fast.publish.export import check_hub, export_model
    from irm_fast.publish.export import push_to_hub as upload

    if push_to_hub is not None:
        check_hub(push_to_hub)
    found = export_model(model, out, to or "hf", merge=merge, name=push_to_hub or "")
    if push_to_hub is not None:
        upload(out, push_to_hub)
    said = [f"wrote {out}: {found.kind}"]
    if found.compared:
        said.append(f"  {found.compared}")
    if push_to_hub is not None:
        said.append(f"  uploaded to {push_to_hub}, which is private where it is new")
    return Answer({"wrote": path_of(out), **found._asdict(), "repository": push_to_hub}, said)


def _check(model: Path, data: str | None) -> Answer:
    """How programs read a model."""
    from irm_fast.publish.consumers import check_consumers
    from irm_fast.publish.readings import ROUNDING

    readings = check_consumers(model, data)
    wrong, failed = [one.consumer for one in readings if one.wrong], [one.consumer for one in readings if one.failed]
    headings = ("consumer", "version", "within max_length", "longer rows", "note")
    said: list[Part] = [
        Table(headings, [_cells(one) for one in readings]),
        "largest absolute differences to irm-fast score, within max_length and of longer rows, in float32; up to "
        f"{ROUNDING:.0e} of the largest reward, or of 1 if that is less, is rounding",
        *([f"another reward: {', '.join(wrong)}"] if wrong else []),
        *([f"could not run, and so not compared: {', '.join(failed)}"] if failed else []),
    ]
    found = {"readings": [one._asdict() for one in readings], "wrong": wrong, "failed": failed}
    return Answer(found, said, code=bool(wrong))


def _cells(one: Reading) -> tuple[str, ...]:
    numbers = ("-" if value is None else f"{value:.1e}" for value in (one.within, one.beyond))
    return (one.consumer, one.how, *numbers, one.note)
