"""Fingerprints of a log and of a model, by which a resumed run tells whether they are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from irm_fast.data.log import Log
from irm_fast.data.pairs import Pairs
from irm_fast.models.backbone import ready_tokenizer, weight_files
from irm_fast.models.record import files_fingerprint

_FEW, _AT_ONCE = 100, 10_000  # entries that are taken one by one, and names that are one text


def describe(log: Log, heldout: Log | None, pairs: Pairs | None = None) -> dict[str, Any]:
    """The fingerprint of a log: the number of `rows`, and `sha256` of all that training and evaluation read.

    Args:
        log: The log, as it was read.
        heldout: The log to evaluate on, or None.
        pairs: The pairs to train on beside it, or None.
    """
    digest = hashlib.sha256()
    logs = [part for part in (log, heldout) if part is not None]
    for part in logs:
        _add(digest, [part.signals, part.polarity, part.feature_names, part.user_ids])
        for entry in zip(part.ids, part.messages, strict=True):
            digest.update(json.dumps(entry).encode() + b"\n")
        for values in (part.feedback, part.preference, part.weight, part.propensity, part.features):
            digest.update(b"none" if values is None else values.tobytes())
        # A log without these keeps the fingerprint that it had before they were read
        for name in ("session_ids", "segments"):
            if names := getattr(part, name):
                _add(digest, [name, names])
        for name in ("times", "positions", "label_probability", "acted_at"):
            if (values := getattr(part, name)) is not None:
                digest.update(name.encode() + values.tobytes())
    counts = {"rows": sum(map(len, logs))}
    if pairs is not None:
        digest.update(json.dumps([pairs.ids, pairs.sides]).encode() + pairs.margin.tobytes())
        counts["pairs"] = len(pairs)
    return {**counts, "sha256": digest.hexdigest()}


def describe_model(model: str, date: str) -> dict[str, str]:
    """The fingerprint of a language model as its files are now: of its chat `template`, its `tokenizer`, its `weights`.

    Args:
        model: The folder or hub id.
        date: The date that its chat template prints.
    """
    tokenizer: Any = ready_tokenizer(model, date)
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else vocabulary
    texts = {"template": tokenizer.get_chat_template(), "tokenizer": f"{rules} {tokenizer.special_tokens_map}"}
    hashes = {name: hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for name, text in texts.items()}
    return {**hashes, "weights": files_fingerprint(map(Path, sorted(weight_files(model))))}


def _add(digest: Any, value: object) -> None:
    """Add the line that a value is as JSON to a hash."""
    for text in _in_json(value):
        digest.update(text.encode())
    digest.update(b"\n")


def _in_json(value: object) -> Iterator[str]:
    """Yield `json.dumps` of a value piece by piece: the names of all users would be a large text."""
    if isinstance(value, Mapping):
        for number, (name, entry) in enumerate(value.items()):
            yield f"{', ' if number else '{'}{json.dumps(name)}: "
            yield from _in_json(entry)
        yield "}" if value else "{}"
    elif not isinstance(value, Sequence) or isinstance(value, str):
        yield json.dumps(value)
    elif len(value) <= _FEW:
        for number, entry in enumerate(value):
            yield ", " if number else "["
            yield from _in_json(entry)
        yield "]" if len(value) else "[]"
    else:
        for start in range(0, len(value), _AT_ONCE):
            yield (", " if start else "[") + json.dumps(list(value[start : start + _AT_ONCE]))[1:-1]
        yield "]"
