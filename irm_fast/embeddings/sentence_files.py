"""How a model of sentence-transformers turns text into a vector, by the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irm_fast.common.warning import warn_caller
from irm_fast.data import schema
from irm_fast.data.problems import FieldError

_MODULES = schema.list_of(schema.fields({}, {"type": schema.text(), "path": schema.text()}))
_LIMITS = schema.fields({}, {"max_seq_length": schema.optional(schema.whole(1))})
_TEXTS = schema.fields(
    {},
    {
        "prompts": schema.optional(schema.by_name(schema.text())),
        "default_prompt_name": schema.optional(schema.text()),
    },
)

_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "lasttoken": "last",
}


@dataclass(frozen=True)
class SentenceFiles:
    """What the files of a folder say; the defaults where it has none.

    Attributes:
        pooling: The pooling that they ask for, such as "cls", perhaps one that is not available; "" if they name none.
        normalize: Whether vectors are divided by their length.
        prompt: The text that is put before every text.
        lower_case: Whether texts are read in lower case.
        max_length: The largest number of tokens, or None.
    """

    pooling: str = ""
    normalize: bool = False
    prompt: str = ""
    lower_case: bool = False
    max_length: int | None = None


def read_sentence_files(name: str) -> SentenceFiles:
    """Read modules.json, the pooling's config.json, sentence_bert_config.json and config_sentence_transformers.json.

    A warning names what of them is not followed: layers behind the pooling.

    Args:
        name: A folder or hub id.

    Raises:
        ValueError: A file is damaged.
    """
    listed = _read(name, "modules.json", _MODULES) or []
    modules = {module.get("type", "").rpartition(".")[2]: module for module in listed}
    if not modules:
        return SentenceFiles()
    others = sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"})
    if others:
        warn_caller(f"model {name!r}: embeddings are taken before its layers {', '.join(others)}, which are left out")
    place = f"{modules['Pooling'].get('path', '')}/config.json" if "Pooling" in modules else None
    pooling = _read(name, place, schema.mapping) if place else None
    limits = _read(name, "sentence_bert_config.json", _LIMITS) or {}
    texts = _read(name, "config_sentence_transformers.json", _TEXTS) or {}
    return SentenceFiles(
        pooling=_pooling_of(pooling or {}),
        normalize="Normalize" in modules,
        prompt=(texts.get("prompts") or {}).get(texts.get("default_prompt_name")) or "",
        lower_case=bool(limits.get("do_lower_case")),
        max_length=limits.get("max_seq_length"),
    )


def _pooling_of(config: Mapping[str, Any]) -> str:
    """The pooling that a config.json asks for, as one name."""
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if isinstance(config.get("pooling_mode"), str):
        modes = [config["pooling_mode"]]
    return "+".join(_POOLINGS.get(mode, mode.removeprefix("pooling_mode_")) for mode in modes)


def _read(name: str, file: str, rule: schema.Rule) -> Any:
    """The content of a JSON file of a folder or hub id, checked by a rule, or None if there is none."""
    from transformers.utils import cached_file

    try:
        path = cached_file(name, file)
    except (OSError, ValueError):
        return None
    try:
        content = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model {name!r}: {file} is damaged, not readable as JSON: {error}") from error
    try:
        if content is not None:
            rule("", content)
    except FieldError as error:
        raise ValueError(f"model {name!r}: {file} is damaged: {error.field}: {error.text}") from error
    return content
