"""What a record keeps of the data, the base and the software of a run, for its card: counts, no texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from irm_fast.data.groups import NO_NAME, numbered
from irm_fast.data.log import Log
from irm_fast.models.machine import describe_machine, versions
from irm_fast.publish.base import base_facts

_KINDS = {"acted": 1, "silent": 0, "missing": -1}
_SAMPLE = 20_000  # rows whose answers are measured, at most


def facts_of(parts: Sequence[Log], base: str) -> dict[str, Any]:
    """Entries of `irm_fast.json` about a run: `data`, an entry a part of its log, `base`, `versions` and `machine`.

    Args:
        parts: The training part, and the held-out part if there is one.
        base: The folder or hub id of the language model.
    """
    found = {"data": [_data_of(log) for log in parts], "base": base_facts(base)}
    return {**found, "versions": versions(), "machine": describe_machine()}


def _data_of(log: Log) -> dict[str, Any]:
    """What a card and a report say of one part of a log: its counts, who and when, and how long its answers are."""
    rows = np.arange(len(log)) if len(log) <= _SAMPLE else np.linspace(0, len(log) - 1, _SAMPLE).astype(int)
    lengths = [len(log.messages[row][-1]["content"]) for row in rows]
    times = None if log.times is None else log.times[np.isfinite(log.times)]
    return {
        "rows": len(log),
        "labels": [int((log.preference == side).sum()) for side in (1, 0)],
        "signals": {
            name: {kind: int((log.feedback[:, k] == value).sum()) for kind, value in _KINDS.items()}
            for k, name in enumerate(log.signals)
        },
        "users": _distinct(log.user_ids),
        "sessions": _distinct(log.session_ids),
        "times": [float(times.min()), float(times.max())] if times is not None and len(times) else None,
        "characters": np.quantile(lengths, [0.05, 0.5, 0.95]).tolist() if lengths else None,
        "features": list(log.feature_names),
        "segments": list(log.segments),
    }


def _distinct(names: Any) -> int | None:
    """Count the different names, None where there are none."""
    return None if names is None else int(numbered(names).max(initial=NO_NAME)) + 1
