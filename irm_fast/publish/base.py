"""The language model that a saved model was made of: a folder or a hub id, and its licence as far as it is at hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from irm_fast.data.reading.limits import MAX_SETTINGS
from irm_fast.publish.names import CARD

_LICENSE = ("license", "license_name", "license_link")


class Base(NamedTuple):
    """What is known of a base model.

    Attributes:
        kind: "hub", "folder", or "" where that is not known.
        name: Its hub id; of all others the last name of its path alone; "" if it is not known.
        license: The fields of the licence in its card; none where that is not at hand.
    """

    kind: Literal["hub", "folder", ""] = ""
    name: str = ""
    license: Mapping[str, str] = {}


def base_facts(model: str) -> dict[str, str]:
    """The entry `base` of `irm_fast.json`, as it can be told where the model has just been loaded.

    Args:
        model: The folder or hub id.

    Returns:
        kind, name, and the fields of the licence that its card has.
    """
    folder = os.path.isabs(model) or Path(model).expanduser().is_dir()
    kind, name = ("folder", Path(model).name) if folder else ("hub", model)
    return {"kind": kind, "name": name, **license_in(_card_of_folder(model) if folder else _card_of_hub(model))}


def base_of(record: Mapping[str, Any]) -> Base:
    """The base of a saved model by its record; of records of earlier versions what they show for certain.

    Args:
        record: The content of `irm_fast.json`.
    """
    if known := record.get("base"):
        return Base(known["kind"], known["name"], {key: known[key] for key in _LICENSE if key in known})
    embedded, training = record.get("embeddings") or {}, record.get("training") or {}
    model = str(embedded.get("model") or training.get("model") or "")
    if not model:
        return Base()
    if os.path.isabs(model) or Path(model).expanduser().is_dir():
        return Base("folder", Path(model).name, license_in(_card_of_folder(model)))
    used = (record.get("used") or {}).get("model")  # of a folder that was there, it is the whole path
    if not embedded and used == model and not model.startswith(("~", ".")):
        return Base("hub", model, license_in(_card_of_hub(model)))
    return Base("", Path(model).name)


def license_in(card: Path | None) -> dict[str, str]:
    """The fields of the licence in a model card; none if there is no card, or it has none.

    Args:
        card: The file, or None.
    """
    if card is None or not card.is_file() or card.stat().st_size > MAX_SETTINGS:
        return {}
    text = card.read_text(encoding="utf-8", errors="replace")
    head = text.removeprefix("---").partition("\n---")[0] if text.startswith("---") else ""
    try:
        fields = yaml.safe_load(head)
    except yaml.YAMLError:
        return {}
    found = fields if isinstance(fields, Mapping) else {}
    return {key: str(found[key]) for key in _LICENSE if isinstance(found.get(key), str)}


def _card_of_folder(model: str) -> Path:
    return Path(model).expanduser() / CARD


def _card_of_hub(model: str) -> Path | None:
    """The card of a hub id in the cache of the hub, if it is there; nothing is asked of the network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, CARD)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None
