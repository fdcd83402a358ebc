"""What a record keeps of the data and the software of a run, for its card: counts, no texts."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from irm_fast.data.log import Log

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy", "scikit-learn", "pyarrow")
_KINDS = {"acted": 1, "silent": 0, "missing": -1}


def facts_of(parts: Sequence[Log]) -> dict[str, Any]:
    """Entries of `irm_fast.json` about the log of a run: `data`, an entry a part, and `versions`.

    Args:
        parts: The training part, and the held-out part if there is one.
    """
    return {"data": [_counts(log) for log in parts], "versions": versions()}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _counts(log: Log) -> dict[str, Any]:
    """The number of rows of a log, of its labels of each kind, and of the entries of each signal."""
    return {
        "rows": len(log),
        "labels": [int((log.preference == side).sum()) for side in (1, 0)],
        "signals": {
            name: {kind: int((log.feedback[:, k] == value).sum()) for kind, value in _KINDS.items()}
            for k, name in enumerate(log.signals)
        },
    }
