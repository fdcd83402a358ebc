"""irm_fast.json: written, read, refused; shared with embeddings/saved.py"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from irm_fast.data.signals import RewardSpec
from irm_fast.models.heads import PROPENSITIES

FORMAT = 1  # of irm_fast.json


RECORD, PROPENSITY_FILE = "irm_fast.json", "propensity.safetensors"


def read_record(directory: str | Path) -> dict[str, Any]:
    """The content of a saved model's `irm_fast.json`.

    Raises:
        ValueError: there is none, it is of a newer format, or it is damaged.
    """
    path = Path(directory) / RECORD
    if not path.is_file():
        raise ValueError(f"{path}: not found; expected a folder that irm-fast train wrote to its end")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # cut short, or no text at all
        raise ValueError(f"{path}: damaged, not readable as JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: damaged: got a {type(record).__name__}; expected an object")
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: format: got {record.get('format')}; expected {FORMAT}; upgrade irm-fast")
    lacking = [name for name in (*(f.name for f in fields(RewardSpec)), "reward_bias") if name not in record]
    if lacking:
        raise ValueError(f"{path}: damaged: no {', '.join(lacking)}; expected what irm-fast train wrote")
    if record["design"] not in PROPENSITIES:
        raise ValueError(f"{path}: design: got {record['design']!r}; expected one of {', '.join(PROPENSITIES)}")
    return record


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
