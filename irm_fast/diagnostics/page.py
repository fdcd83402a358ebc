"""A diagnosis as HTML, as notebooks show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from irm_fast.diagnostics.subject import FAILED, NOT_TESTABLE, PASSED, TOO_FEW

# By colour and in words: dark text on light ground, readable on dark pages too since both are set.
_GROUND = {PASSED: "#d7f0dc", FAILED: "#f8d0cd", TOO_FEW: "#fbeecb", NOT_TESTABLE: "#e8e8e8"}


def as_html(diagnosis: Mapping[str, Any]) -> str:
    """Format what `Diagnosis.to_dict()` returns as a piece of HTML that needs no other file; all text is escaped.

    Args:
        diagnosis: The verdict, the tests, what is assumed and the remedies.
    """
    rows = "".join(map(_row, diagnosis["tests"]))
    return (
        f"<div><p><b>The reward is {escape(diagnosis['verdict'])}.</b></p>"
        f"{_list('Assumed', diagnosis['assumed'])}"
        f"<p>Tested in this log</p><table>{rows}</table>"
        f"{_list('What would help', diagnosis['remedies'])}</div>"
    )


def _row(test: Mapping[str, Any]) -> str:
    """Return the row of one test, its result on the ground of its colour."""
    ground = _GROUND.get(test["result"], _GROUND[NOT_TESTABLE])
    style = f"background:{ground};color:#1a1a1a;white-space:nowrap"
    name, result, said = (escape(test[key]) for key in ("name", "result", "text"))
    left = "text-align:left"
    return f'<tr><th style="{left}">{name}</th><td style="{style}">{result}</td><td style="{left}">{said}</td></tr>'


def _list(title: str, entries: Sequence[str]) -> str:
    """Return a titled list, or nothing without entries."""
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return f"<p>{title}</p><ul>{items}</ul>" if entries else ""
