"""What a command answers: one object for programs (`--json`), and the same in words and tables for people."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from irm_fast.cli.terminal import echo
from irm_fast.data.problems import one_line, printable

_STYLES = {  # of cells that hold these words alone, as rich names styles
    **{"ok": "green", "whole": "green", "note": "yellow"},
    **{"broken": "bold red", "DAMAGED": "bold red"},
}


@dataclass(frozen=True)
class Table:
    """A table: drawn on a terminal, elsewhere lines with aligned columns.

    Attributes:
        headings: A heading for each column, for terminals alone.
        rows: The cells, each a line of text.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Markdown:
    """Text in Markdown: drawn on a terminal, elsewhere as it is.

    Attributes:
        text: The text.
    """

    text: str


Part = str | Table | Markdown  # of what is said


@dataclass(frozen=True)
class Answer:
    """What a command has found or done.

    Attributes:
        found: For programs: names with values of any kind that JSON has, or paths, arrays of one number, dataclasses.
        said: For people.
        code: The exit code.
        errors: What is wrong, for the standard error.
        aside: The standard output has something else: the answer goes to the standard error.
    """

    found: Mapping[str, Any]
    said: Sequence[Part] = ()
    code: int = 0
    errors: Sequence[str] = ()
    aside: bool = False

    def show(self, *, as_json: bool) -> None:
        """Print the answer, in words or as one JSON object."""
        if as_json:
            echo(json.dumps(for_json(self.found), indent=2, allow_nan=False), err=self.aside)
        else:
            for part in self.said:
                _show(part, aside=self.aside)
        for error in self.errors:
            echo(f"error: {error}", err=True)


Work = Callable[..., Answer | None]  # a command: None where another process answers


def for_json(value: Any) -> Any:
    """Return a value in the kinds that JSON has; None stands for a number that is not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        return for_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): for_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [for_json(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item"):  # a number of numpy or torch
        return for_json(value.item())
    return value if value is None or isinstance(value, (str, bool, int)) else str(value)


def _show(part: Part, *, aside: bool) -> None:
    """Print a part of what is said."""
    if isinstance(part, str):
        echo(part, err=aside)
    elif not aside and sys.stdout.isatty():
        _draw(part)
    elif isinstance(part, Markdown):
        echo(part.text, err=aside)
    else:
        cells = [[one_line(cell) for cell in row] for row in part.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            echo(line.rstrip(), err=aside)


def _draw(part: Table | Markdown) -> None:
    """Draw a table within the width of the terminal: the last column is folded."""
    from rich import box, console, markdown, table, text

    out = console.Console(file=sys.stdout, highlight=False)
    if isinstance(part, Markdown):
        out.print(markdown.Markdown(printable(part.text)))
        return
    drawn = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in part.headings:
        drawn.add_column(heading, overflow="fold", no_wrap=heading != part.headings[-1])
    for row in part.rows:
        drawn.add_row(*(text.Text(one_line(cell), style=_STYLES.get(cell, "")) for cell in row))
    out.print(drawn)


def path_of(path: str | Path) -> str:
    """Return a path in full, for programs that do not know the folder of the command."""
    return str(Path(path).absolute())
