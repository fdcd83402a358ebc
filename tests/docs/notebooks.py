"""Notebooks of docs/start: their cells are run in order, and what they print is kept in the file.

python -m tests.docs.notebooks      runs them, and writes what they print into the files
"""

from __future__ import annotations

import ast
import base64
import contextlib
import importlib.util
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of code of a notebook."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(outputs: list[dict[str, Any]]) -> str:
    """What a cell printed, and the value of its last expression."""
    parts = ("".join(o.get("text", "") or o.get("data", {}).get("text/plain", "")) for o in outputs)
    return "".join(part if part.endswith("\n") else part + "\n" for part in parts if part)


def run_cells(notebook: dict[str, Any]) -> Iterator[list[dict[str, Any]] | None]:
    """Run the cells of code of a notebook in the current folder.

    Args:
        notebook: The notebook.

    Yields:
        The outputs of each cell, as files of notebooks hold them; None for a picture where matplotlib is missing.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in code_cells(notebook):
        code = "".join(cell["source"])
        if "matplotlib" in code and not importlib.util.find_spec("matplotlib"):
            yield None
            continue
        yield _run(code, names)


def _run(code: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs of a cell: what it prints, and the value or the picture of its last expression."""
    tree, printed, value = ast.parse(code), io.StringIO(), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(tree, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
    if value is not None:
        outputs.append(
            {"data": _shown(value), "execution_count": None, "metadata": {}, "output_type": "execute_result"}
        )
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    if type(value).__name__ != "Figure":
        return {"text/plain": _lines(repr(value))}
    out = io.BytesIO()
    value.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return {"image/png": base64.b64encode(out.getvalue()).decode()}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def write(path: Path) -> None:
    """Run a notebook, and write what it prints into its file."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell, outputs in zip(code_cells(notebook), run_cells(notebook), strict=True):
        cell["outputs"] = outputs or []
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            write(path)
            os.chdir(ROOT)
        print(f"wrote {path.relative_to(ROOT)}")
