"""The model card of a saved model, README.md of its folder: what the reward rests on, and how programs read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from irm_fast.embeddings.text_model import EmbeddedRewardModel
from irm_fast.evaluation.scoring import RewardModel
from irm_fast.models.record import Beside
from irm_fast.models.template import bos_of
from irm_fast.publish.base import Base, base_of
from irm_fast.publish.meaning import meaning_of
from irm_fast.publish.names import CARD
from irm_fast.publish.snippets import Named, for_classifier, for_embeddings, for_sentences

Form = Literal["classifier", "embeddings", "sentences"]
_LIBRARY = {"classifier": "transformers", "embeddings": "irm-fast", "sentences": "sentence-transformers"}
_PLACES = ("data", "output", "model", "pairs", "embeddings", "report_to", "fsdp")  # settings that may name folders


def model_card(record: Mapping[str, Any], name: str, form: Form, bos: str = "") -> str:
    """The text of a model card.

    No folder of the machine is named in it, as it is made to be published.

    Args:
        record: The content of `irm_fast.json`.
        name: The folder or hub id of the model, by which snippets load it.
        form: What is in the folder: an ordinary sequence classifier, a reward on embeddings, or one as a model of
            sentence-transformers.
        bos: The BOS token that its texts begin with, or "".
    """
    base = base_of(record)
    model = Named(name, record["max_length"], bos, keeps_bos=record.get("keeps_bos", False))
    encoder = (record.get("embeddings") or {}).get("kind") == "encoder"
    shown = {
        "classifier": lambda: for_classifier(model),
        "embeddings": lambda: for_embeddings(model, exportable=encoder),
        "sentences": lambda: [for_sentences(model, model.name)],
    }[form]()
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front_matter(record, base, form), sort_keys=False)}---",
            f"# {Path(name).name}",
            _what_it_is(record, base, form),
            "",
            "## What the reward rests on",
            *_verdict(record),
            "",
            "## Data",
            *_data(record.get("data") or ()),
            "",
            "## How programs read it",
            _of_all(record, form),
            "",
            *(snippet.in_markdown() for snippet in shown),
            "## Settings and versions",
            _settings(record, base),
        ]
    )


def card_of(model: RewardModel, name: str) -> Beside:
    """The card of a model, as its `save` takes it.

    Args:
        model: The model.
        name: The folder or hub id by which snippets load it.
    """
    whole = model.checkpoint if isinstance(model, EmbeddedRewardModel) else model
    bos = "" if whole is None else bos_of(whole.tokenizer)
    return lambda record: {CARD: model_card(record, name, "embeddings" if whole is None else "classifier", bos)}


def front_matter(record: Mapping[str, Any], base: Base, form: Form) -> dict[str, Any]:
    """The metadata that hubs read, as a mapping; arguments as of `model_card`, and its base."""
    lora = (record.get("training") or {}).get("lora_rank")
    found: dict[str, Any] = {
        **(base.license or {"license": "unknown"}),
        "library_name": _LIBRARY[form],
        "pipeline_tag": "text-classification",
        "tags": ["reward-model", "implicit-feedback", "rlhf", "irm-fast", *(["lora"] if lora else [])],
    }
    if base.kind == "hub":
        found["base_model"] = base.name
        found["base_model_relation"] = "finetune"
    return found


def _what_it_is(record: Mapping[str, Any], base: Base, form: Form) -> str:
    """A paragraph: of what it was made, and what its number means."""
    signs = zip(record["signals"], record["polarity"], strict=True)
    signals = ", ".join(f"{name} ({'pleased' if side > 0 else 'displeased'})" for name, side in signs)
    learned = f"implicit feedback ({signals})" if signals else "labelled preferences"
    kind = "a sequence classifier of one output" if form == "classifier" else "a reward on embeddings of a frozen model"
    made = f", made of {base.name}" if base.name else ""
    said = (
        f"A reward model, trained by irm-fast {record.get('version', '')} on {learned}: {kind}{made}. It gives one "
        f"number for a conversation that ends in an answer. {meaning_of(record)}"
    )
    if base.license:
        return said
    return (
        f"{said} Its licence depends on that of the base model, which is not known here: set `license` to publish it."
    )


def _verdict(record: Mapping[str, Any]) -> Iterator[str]:
    """Whether the reward is identified, whether it was learned, and what has to be believed."""
    found = record.get("diagnosis") or {}
    yield f"- **Identification**: {found.get('verdict') or 'not judged'}."
    gain, error = record.get("gain_over_constant"), record.get("gain_over_constant_error")
    by = f": log-likelihood {gain:+.3f} an action beyond constant rates, standard error {error:.3f}" if gain else ""
    yield f"- **Learned**: {record.get('learned') or found.get('learned') or 'not tested'}{by if error else ''}."
    for sentence in found.get("assumed", ()):
        yield f"- Assumed: {sentence}"
    for sentence in found.get("remedies", ()):
        yield f"- What would help: {sentence}"
    numbers = record.get("metrics") or {}
    metrics = [f"{key} {value:.4f}" for key, value in numbers.items() if isinstance(value, (int, float))]
    if metrics:
        yield f"- Held-out: {', '.join(metrics)}."


def _data(parts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table of what the log holds."""
    if not parts:
        yield "Not kept by the version that trained it."
        return
    sizes = [part["rows"] for part in parts]
    held_out = f"{sizes[1]:,} held out" if len(parts) > 1 else "none held out"
    labels = [sum(sum(part["labels"][side : side + 1]) for part in parts) for side in (0, 1)]
    said = f", {labels[0]:,} labelled as pleasing and {labels[1]:,} as not" if any(labels) else ""
    yield f"{sum(sizes):,} rows, {held_out}{said}."
    names = list(parts[0]["signals"])
    if names:
        yield "\n| signal | recorded | acted | rate |\n| --- | --- | --- | --- |"
    for name in names:
        of_parts = [part["signals"][name] for part in parts if name in part["signals"]]
        counts = {kind: sum(one[kind] for one in of_parts) for kind in ("acted", "silent")}
        recorded = sum(counts.values())
        rate = f"{counts['acted'] / recorded:.4f}" if recorded else "-"
        yield f"| {name.replace('|', '&#124;')} | {recorded:,} | {counts['acted']:,} | {rate} |"


def _of_all(record: Mapping[str, Any], form: Form) -> str:
    """What holds for all programs."""
    if form == "embeddings":
        return (
            "The reward is a function of embeddings, which other programs do not load by themselves. `irm-fast export "
            "DIR --check`, where DIR is this folder, says who reads its export."
        )
    if form == "sentences":
        return (
            "The reward is the one number that `encode` gives for a text. `irm-fast export DIR --check` compares the "
            "programs that are installed, where DIR is this folder."
        )
    return (
        f"Who reads messages or token ids gets the same number for rows of at most {record['max_length']} tokens, the "
        "limit of its training, which is `model_max_length` of the tokenizer. Special tokens stand in the chat "
        "template, and the tokenizer adds none. `irm-fast export DIR --check` compares the programs that are "
        "installed, where DIR is this folder."
    )


def _settings(record: Mapping[str, Any], base: Base) -> str:
    """The settings of the run and the versions of packages, without folders."""
    given = {key: value for key, value in (record.get("training") or {}).items() if value not in (None, "", [], {})}
    given = {key: _without_folder(key, value, base) for key, value in given.items()}
    kept = {key: record[key] for key in ("design", "estimator", "max_length") if key in record}
    shown = {"model": kept, "training": given, "versions": record.get("versions") or {}}
    text = yaml.safe_dump({key: value for key, value in shown.items() if value}, sort_keys=False, allow_unicode=True)
    return f"```yaml\n{text}```\n"


def _without_folder(key: str, value: Any, base: Base) -> Any:
    """A setting of which a path is its last name alone, also within it."""
    if isinstance(value, Mapping):
        return {name: _without_folder(name, entry, base) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folder(key, entry, base) for entry in value]
    if (
        isinstance(value, str)
        and (value.startswith(("/", "~", "./", "../")) or key in _PLACES)
        and not (key == "model" and (base.kind, base.name) == ("hub", value))
    ):
        return Path(value).name
    return value
