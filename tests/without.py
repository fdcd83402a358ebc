"""A process in which packages cannot be found, as where they are not installed."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any


class _Hiding:
    """A finder of modules that does not find some."""

    def __init__(self, finder: Any, packages: Collection[str]) -> None:
        self.finder, self.packages = finder, packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self.packages else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def hide(packages: Collection[str]) -> None:
    """Make packages that are not imported yet unknown to this process; for a process of its own."""
    assert not packages & sys.modules.keys()
    sys.meta_path[:] = [_Hiding(finder, packages) for finder in sys.meta_path]
