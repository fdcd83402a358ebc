"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from irm_fast.cli.help import example
from irm_fast.cli.terminal import echo


@example("irm-fast report reward_model", "irm-fast report reward_model --out page.html --redact")
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that irm-fast train wrote.")],
    out: Annotated[Path | None, typer.Option(help="The page to write or replace; default: DIR/report.html.")] = None,
) -> None:
    """Write what a run has found as one page of HTML: verdict, curves, rewards by action, best and worst answers.

    Train writes it too. The texts are those of the log that the model was trained on, if it still lies where it was.
    """
    from irm_fast.publish.report import write_report

    written = write_report(directory, out, pngs=True)
    echo(f"wrote {written.page}")
    if written.charts is None:
        echo("  its charts as PNG files need matplotlib: pip install 'irm-fast[report]'")
    else:
        echo(f"  and its charts as PNG files in {written.charts}")
