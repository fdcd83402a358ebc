"""The file of metrics that a training leaves, a line of JSON for each entry of its log."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from irm_fast.data.writing.whole import disk_errors, write_whole

METRICS = "metrics.jsonl"
RENAMED = {"propensity": "propensity_design"}  # what earlier runs saved under other names, in settings and metrics


def write_metrics(path: Path, lines: Sequence[Mapping[str, Any]], *, append: bool) -> None:
    """Write a file of JSON lines, or append to it, with null for NaN, which JSON does not have."""
    text = "".join(json.dumps(plain(line)) + "\n" for line in lines)
    if not append:
        write_whole(path, text)
        return
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file that can be read, by present names; none if there is no file."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with suppress(ValueError, AttributeError):  # cut off, or damaged: it is for people, and no run depends on it
            entries.append({RENAMED.get(name, name): value for name, value in json.loads(line).items()})
    return entries


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with None for numbers that are not finite, as JSON needs it."""
    return {key: None if _is_not_finite(value) else value for key, value in values.items()}


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
