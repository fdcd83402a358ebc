"""Tables: drawn by rich on a terminal, elsewhere lines with aligned columns that other programs can read."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from irm_fast.cli.terminal import echo
from irm_fast.data.problems import one_line

_STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}  # of cells that hold these words alone


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str] = _STYLES) -> None:
    """Print a table on the standard output.

    Args:
        headings: A heading for each column; lines of other programs go without.
        rows: The cells, each a line of text.
        styles: The style of cells by their whole text, as rich names styles; on a terminal alone.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw(headings, cells, styles)
        return
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    echo(*("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells))


def _draw(headings: Sequence[str], cells: Sequence[Sequence[str]], styles: Mapping[str, str]) -> None:
    """Print a table on a terminal, whose width it keeps: the last column is folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading != headings[-1])
    for row in cells:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    Console(file=sys.stdout).print(table)
