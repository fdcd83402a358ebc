"""The notebooks run from the first cell to the last, and print what they show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docs.notebooks import NOTEBOOKS, code_cells, run_cells, text_of
from tests.docs.pages import matches


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell, outputs in zip(code_cells(notebook), run_cells(notebook), strict=True):
        if outputs is None:  # a picture, without matplotlib
            continue
        shown, printed = text_of(cell["outputs"]), text_of(outputs)
        assert matches(shown, printed), f"{''.join(cell['source'])}\n\nshows\n{shown}\nbut prints\n{printed}"
        assert len(cell["outputs"]) == len(outputs)


def test_there_are_notebooks_and_they_show_something() -> None:
    shown = [text_of(cell["outputs"]) for path in NOTEBOOKS for cell in code_cells(json.loads(path.read_text()))]
    assert len(NOTEBOOKS) == 2 and len([text for text in shown if text]) > 12
