"""Exports of a saved model for others: a plain checkpoint, or a model of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from irm_fast.common.extras import need
from irm_fast.data.schema import read_object
from irm_fast.data.writing.manifest import refuse_damage, write_manifest
from irm_fast.data.writing.outputs import OutputFolder
from irm_fast.data.writing.whole import write_whole
from irm_fast.embeddings.text_model import SOURCE, EmbeddedRewardModel
from irm_fast.models.backbone import is_stored_in, load_backbone, load_classifier, load_tokenizer
from irm_fast.models.checkpoint import save_checkpoint
from irm_fast.models.foreign_files import loading
from irm_fast.models.record import RECORD, read_record
from irm_fast.models.template import bos_of
from irm_fast.publish.card import Form, model_card
from irm_fast.publish.consumers import compare_export
from irm_fast.publish.names import ADAPTER, CARD
from irm_fast.publish.readings import Reading
from irm_fast.publish.sentence_export import check_exportable, write_sentence_transformer

Target = Literal["hf", "sentence-transformers"]
_OUT = OutputFolder("export", files=(), folders=(), is_marked=lambda folder: False, argument="out")


class Exported(NamedTuple):
    """What was exported.

    Attributes:
        kind: What it is, in words.
        compared: How it compares with our own score, in words.
    """

    kind: str
    compared: str = ""


def export_model(folder: Path, out: Path, to: Target = "hf", *, merge: bool = False, name: str = "") -> Exported:
    """Write a saved model for others, without settings, metrics or folders of the machine that trained it.

    Args:
        folder: A folder that `irm-fast train` wrote, or the folder of an adapter.
        out: The folder to write, new or empty.
        to: "hf": a sequence classifier with its tokenizer, as it is saved now, also of earlier versions;
            "sentence-transformers": a reward on the embeddings of an encoder.
        merge: Whether to merge an adapter into the weights of its base.
        name: The hub id by which the card loads it; "" for the folder's name.

    Raises:
        ValueError: The folder holds no such model, it is damaged, or `out` holds something.
    """
    _OUT.check(out)
    name = name or out.name
    if (folder / ADAPTER).is_file():
        return _export_adapter(folder, out, to, name, merge=merge)
    record = read_record(folder)
    refuse_damage(folder, "irm-fast train")
    if merge:
        raise ValueError(f"merge: {folder} is no adapter: train merges its adapters at the end; leave --merge out")
    if to == "hf":
        return _export_classifier(folder, out, record, name)
    return _export_sentences(folder, out, record, name)


def push_to_hub(folder: Path, repository: str) -> None:
    """Upload an export to a repository of the hub, which is made, private, where there is none.

    Args:
        folder: The folder that `export_model` wrote.
        repository: Its id, OWNER/NAME.

    Raises:
        ValueError: The hub is not reached, or refuses; the export stays where it is.
    """
    from huggingface_hub import HfApi

    with loading(f"push-to-hub: {repository} was not uploaded, the export is whole in {folder}"):
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of irm-fast")


def _export_classifier(folder: Path, out: Path, record: Mapping[str, Any], name: str) -> Exported:
    """Save a classifier anew, in the precision of its files."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"to: {folder} is a reward on embeddings, which no sequence classifier can hold; expected --to "
            "sentence-transformers, where it is on an encoder"
        )
    dtype = torch.bfloat16 if is_stored_in(str(folder), torch.bfloat16) else torch.float32
    classifier, tokenizer = load_classifier(str(folder), dtype), load_tokenizer(str(folder))
    tokenizer.model_max_length = record["max_length"]
    files = save_checkpoint(classifier, tokenizer, out)
    _close(out, files, record, name, "classifier", bos_of(tokenizer))
    return Exported("a sequence classifier")


def _export_adapter(folder: Path, out: Path, to: Target, name: str, *, merge: bool) -> Exported:
    """Merge an adapter into its base, and save both as a classifier; its card is that of the model it lies in."""
    if not merge or to != "hf":
        raise ValueError(f"{folder}: an adapter, which needs its base; expected --merge --to hf, which makes one model")
    need("peft", "export of an adapter")
    from peft import PeftModel

    base = str(read_object(folder / ADAPTER, "peft").get("base_model_name_or_path"))
    classifier, tokenizer = load_backbone(base)
    whole = folder.resolve().parent
    record = read_record(whole) if (whole / RECORD).is_file() else None
    if record is not None:
        tokenizer = load_tokenizer(str(whole))
    with loading(f"{folder}: the adapter does not fit {base!r}"):
        merged: Any = PeftModel.from_pretrained(classifier, str(folder))  # type: ignore[arg-type]
        classifier = merged.merge_and_unload(safe_merge=True)
    files = save_checkpoint(classifier, tokenizer, out)
    _close(out, files, record, name, "classifier", bos_of(tokenizer))
    return Exported(f"a sequence classifier, the adapter merged into {Path(base).name}")


def _export_sentences(folder: Path, out: Path, record: Mapping[str, Any], name: str) -> Exported:
    """Write the modules of a reward on embeddings, and compare their score with ours where that can be done."""
    if SOURCE not in record:
        raise ValueError(
            f"to: {folder} is a sequence classifier, which sentence-transformers' CrossEncoder reads as it is; "
            "expected --to hf"
        )
    model = EmbeddedRewardModel.load(folder)
    check_exportable(model)
    files = write_sentence_transformer(model, out)
    _close(out, files, record, name, "sentences")
    return Exported("a model of sentence-transformers", _compared(model, out))


def _close(out: Path, files: list[str], record: Mapping[str, Any] | None, name: str, form: Form, bos: str = "") -> None:
    """Write the card, and last the manifest."""
    if record is not None:
        write_whole(out / CARD, model_card(record, name, form, bos))
        files = [*files, CARD]
    write_manifest(out, files)


def _compared(model: EmbeddedRewardModel, out: Path) -> str:
    """How our score and that of an export differ, in words."""
    return "; ".join(map(_in_words, compare_export(model, out)))


def _in_words(one: Reading) -> str:
    """A reading of an export."""
    if one.within is None:
        return f"{one.consumer}: {one.note if one.failed else one.how + ', not compared'}"
    verdict = "the same reward" if one.same else "ANOTHER REWARD"
    beyond = "" if one.beyond is None else f", of longer rows by {one.beyond:.1e}"
    return f"{one.consumer} ({one.how}): {verdict}, differs by at most {one.within:.1e}{beyond}"
