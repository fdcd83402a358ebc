"""The modules in docs/.site, which MkDocs loads by their paths."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

SITE = Path(__file__).parents[2] / "docs" / ".site"


def load_hook(name: str) -> ModuleType:
    """A module of docs/.site."""
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", SITE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
