"""What a record keeps of the data and the software of a run, for its card: counts, no texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irm_fast.data.log import Log
from irm_fast.models.machine import describe_machine, versions

_KINDS = {"acted": 1, "silent": 0, "missing": -1}


def facts_of(parts: Sequence[Log]) -> dict[str, Any]:
    """Entries of `irm_fast.json` about the log of a run: `data`, an entry a part, `versions` and `machine`.

    Args:
        parts: The training part, and the held-out part if there is one.
    """
    return {"data": [_counts(log) for log in parts], "versions": versions(), "machine": describe_machine()}


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
