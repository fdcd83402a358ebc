"""The house stays in order: rooms import downward only, no circle, no name for two things."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# From the top down. A room may import from those to its right.
ROOMS = (
    *("cli", "experiments", "training", "publish", "evaluation", "embeddings"),
    *("models", "diagnostics", "data", "losses", "kernels", "common"),
)
FACADE = ("irm_fast", "irm_fast.__main__")  # the public API reaches everywhere, and no room imports it

BARE_WARNING = "warns by itself; call warn_caller of irm_fast/common/warning.py, which finds the caller of the package"


class Module(NamedTuple):
    """A file of ours, read once."""

    path: Path
    tree: ast.Module


def modules(root: Path) -> dict[str, Module]:
    """Every module under the name by which it is imported."""
    found = {}
    for folder, package in (("irm_fast", "irm_fast"), ("kernels", "irm_fast.kernels")):
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            found[name] = Module(path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def imports(tree: ast.Module, known: Container[str]) -> Iterator[tuple[int, str]]:
    """Line and module of every import of ours, within functions and for type checkers as well.

    A relative import comes with its dots. `import_module` of a text counts too: nothing else would see it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "irm_fast")
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "." * node.level + str(node.module or "")
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "irm_fast":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known or alias.name != "__version__":
                    yield node.lineno, inner if inner in known else str(node.module)
        elif isinstance(node, ast.Call) and "import_module" in (getattr(node.func, k, "") for k in ("id", "attr")):
            yield from ((node.lineno, str(a.value)) for a in node.args if isinstance(a, ast.Constant))


def bare_warnings(tree: ast.Module) -> Iterator[int]:
    """Line of every call of `warnings.warn`, under this name or its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn"):
            yield node.lineno


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def faults(root: Path) -> list[str]:
    """What is out of order, each with file, line and what to do."""
    known, found = modules(root), []
    arrows: dict[str, set[str]] = {}
    for module, (path, tree) in known.items():
        where = path.relative_to(root)
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == module.split(".")[-1]:
                found.append(f"{where}:{node.lineno}: {node.name!r} has the name of its module; rename one of them")
        if module in FACADE:
            continue
        if room(module) not in ROOMS:
            found.append(f"{where}: no such room as {room(module)!r}; give it a place in ROOMS")
            continue
        if module != "irm_fast.common.warning":
            found += [f"{where}:{line}: {BARE_WARNING}" for line in bare_warnings(tree)]
        for line, other in imports(tree, known):
            if other.startswith("."):
                found.append(f"{where}:{line}: imports {other!r}; import by the full name, irm_fast.ROOM.MODULE")
            elif other in FACADE:
                found.append(f"{where}:{line}: imports the public API; import from the module that defines it")
            elif room(other) in ROOMS and ROOMS.index(room(other)) < ROOMS.index(room(module)):
                text = f"{room(module)} imports {other}, which is above it; move what both need down"
                found.append(f"{where}:{line}: {text}")
            arrows.setdefault(module, set()).add(other)
    return found + [
        f"circle: {' -> '.join(circle)}; move what ties them into one of them" for circle in circles(arrows)
    ]


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Circles of modules, one for each way back that a walk finds."""
    found, done = [], set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for other in sorted(arrows.get(module, ())):
                walk(other, [*path, module])
            done.add(module)

    for module in sorted(arrows):
        walk(module, [])
    return found


def test_the_house_is_in_order() -> None:
    assert len([*ROOT.glob("irm_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")]) > 80  # what it looks at is there
    found = faults(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("irm_fast/data/log.py", "from irm_fast.training.run import train", "data imports irm_fast.training.run"),
        ("irm_fast/data/log.py", "def f():\n    from irm_fast.cli import app", "data imports irm_fast.cli"),
        (
            "irm_fast/data/log.py",
            "if TYPE_CHECKING:\n    import irm_fast.training.run",
            "data/log.py:2: data imports irm_fast.training.run",
        ),
        ("irm_fast/data/log.py", "import_module('irm_fast.training.run')", "data imports irm_fast.training.run"),
        ("irm_fast/data/log.py", "from .rows import row", "import by the full name"),
        ("kernels/batch.py", "import irm_fast.losses.checks", "kernels imports irm_fast.losses.checks"),
        ("irm_fast/data/rows.py", "from irm_fast.data import log", "circle: irm_fast.data.log -> irm_fast.data.rows"),
        ("irm_fast/data/rows.py", "from irm_fast import train", "imports the public API"),
        ("irm_fast/data/rows.py", "class rows: ...", "'rows' has the name of its module"),
        ("irm_fast/data/__init__.py", "def data(): ...", "'data' has the name of its module"),
        ("irm_fast/data/rows.py", "def f():\n    warnings.warn('x')", "rows.py:2: warns by itself; call warn_caller"),
        ("irm_fast/attic/old.py", "", "no such room as 'attic'"),
    ],
)
def test_disorder_is_seen(tmp_path: Path, file: str, text: str, said: str) -> None:
    tree = {"irm_fast/data/log.py": "from irm_fast.data.rows import row", "irm_fast/data/rows.py": "row = 1"}
    tree |= {"irm_fast/__init__.py": "", "irm_fast/cli/__init__.py": "app = 1", "irm_fast/training/run.py": "train = 1"}
    tree |= {"irm_fast/losses/checks.py": "", file: text}
    for name, content in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = faults(tmp_path)
    assert len(found) == 1 and said in found[0], found
