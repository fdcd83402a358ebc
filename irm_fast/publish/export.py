"""Exports of a saved model for others: a plain checkpoint, or a model of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from irm_fast.common.extras import need
from irm_fast.data.schema import read_object
from irm_fast.data.writing.manifest import damage, refuse_damage, write_manifest
from irm_fast.data.writing.outputs import OutputFolder
from irm_fast.data.writing.whole import write_whole
from irm_fast.embeddings.text_model import SOURCE, EmbeddedRewardModel
from irm_fast.models.backbone import is_stored_in, load_backbone, load_classifier, load_tokenizer
from irm_fast.models.checkpoint import save_checkpoint
from irm_fast.models.foreign_files import loading
from irm_fast.models.record import RECORD, folder_fingerprint, read_record
from irm_fast.models.template import bos_of
from irm_fast.publish.card import Form, model_card
from irm_fast.publish.consumers import compare_export
from irm_fast.publish.names import ADAPTER, CARD, EXPORT
from irm_fast.publish.readings import Reading
from irm_fast.publish.sentence_export import check_exportable, write_sentence_transformer

Target = Literal["hf", "sentence-transformers"]
_OUT = OutputFolder(
    "export", files=(), folders=(), is_marked=lambda folder: (folder / EXPORT).is_file(), argument="out"
)


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
        name: The hub id by which the card loads it; "" for the folder's name. With one, an export of the same model by
            the same name that is whole already, as a failed upload leaves it, is not written again.

    Raises:
        ValueError: The folder holds no such model, it is damaged, or `out` holds something.
    """
    asked = {"of": folder_fingerprint(folder), "to": to, "merge": merge, "name": name or out.name}
    if name and _holds(out, asked):
        return Exported("an export of this model, whole as it was written before")
    if _OUT.check(out) == "ours":
        raise ValueError(
            f"out: {out} holds another export, or one that is damaged; expected a new or empty folder, or "
            "--push-to-hub with the model and the repository of that export, which uploads it"
        )
    marker = _Marker(out, asked)
    if (folder / ADAPTER).is_file():
        return _export_adapter(folder, marker, to, merge=merge)
    record = read_record(folder)
    refuse_damage(folder, "irm-fast train")
    if merge:
        raise ValueError(f"merge: {folder} is no adapter: train merges its adapters at the end; leave --merge out")
    if to == "hf":
        return _export_classifier(folder, marker, record)
    return _export_sentences(folder, marker, record)


def _holds(out: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a folder holds a whole export that was asked for likewise."""
    if not (out / EXPORT).is_file() or damage(out):
        return False
    found = read_object(out / EXPORT, "irm-fast export")
    return all(found.get(key) == value for key, value in asked.items())


def check_hub(repository: str) -> None:
    """Check that something could be uploaded to a repository of the hub, before anything is written.

    Args:
        repository: Its id, OWNER/NAME.

    Raises:
        ValueError: It is no such id, the hub is not reached, or it knows no token of this user.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    owner, _, rest = repository.partition("/")
    with loading(f"push-to-hub: got {repository!r}; expected OWNER/NAME"):
        validate_repo_id(repository)
        if not (owner and rest):
            raise ValueError("it names no owner")
    remedy = "log in by `hf auth login`, or leave --push-to-hub out"
    with loading(f"push-to-hub: the hub takes nothing of this user, so nothing is written; {remedy}"):
        HfApi().whoami()


def push_to_hub(folder: Path, repository: str) -> None:
    """Upload an export to a repository of the hub, which is made, private, where there is none.

    Args:
        folder: The folder that `export_model` wrote.
        repository: Its id, OWNER/NAME.

    Raises:
        ValueError: The hub is not reached, or refuses; the export stays where it is.
    """
    from huggingface_hub import HfApi

    remedy = f"the same command goes on with it, and so does `hf upload {repository} {folder} . --private`"
    with loading(f"push-to-hub: {repository} was not uploaded, the export is whole in {folder}: {remedy}"):
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of irm-fast")


class _Marker(NamedTuple):
    """An export that is being written: where, and what it was asked for."""

    out: Path
    asked: Mapping[str, Any]

    def close(self, files: list[str], record: Mapping[str, Any] | None, form: Form, bos: str = "") -> None:
        """Write the card, what was exported, and last the manifest."""
        if record is not None:
            write_whole(self.out / CARD, model_card(record, self.asked["name"], form, bos))
            files = [*files, CARD]
        keeps_bos = bool((record or {}).get("keeps_bos", True))
        told = {"version": version("irm-fast"), **self.asked, "keeps_bos": keeps_bos}
        write_whole(self.out / EXPORT, json.dumps(told, indent=2) + "\n")
        write_manifest(self.out, [*files, EXPORT])


def _export_classifier(folder: Path, marker: _Marker, record: Mapping[str, Any]) -> Exported:
    """Save a classifier anew, in the precision of its files."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"to: {folder} is a reward on embeddings, which no sequence classifier can hold; expected --to "
            "sentence-transformers, where it is on an encoder"
        )
    dtype = torch.bfloat16 if is_stored_in(str(folder), torch.bfloat16) else torch.float32
    classifier, tokenizer = load_classifier(str(folder), dtype), load_tokenizer(str(folder))
    tokenizer.model_max_length = record["max_length"]
    files = save_checkpoint(classifier, tokenizer, marker.out)
    marker.close(files, record, "classifier", bos_of(tokenizer))
    return Exported("a sequence classifier")


def _export_adapter(folder: Path, marker: _Marker, to: Target, *, merge: bool) -> Exported:
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
    files = save_checkpoint(classifier, tokenizer, marker.out)
    marker.close(files, record, "classifier", bos_of(tokenizer))
    return Exported(f"a sequence classifier, the adapter merged into {Path(base).name}")


def _export_sentences(folder: Path, marker: _Marker, record: Mapping[str, Any]) -> Exported:
    """Write the modules of a reward on embeddings, and compare their score with ours where that can be done."""
    if SOURCE not in record:
        raise ValueError(
            f"to: {folder} is a sequence classifier, which sentence-transformers' CrossEncoder reads as it is; "
            "expected --to hf"
        )
    model = EmbeddedRewardModel.load(folder)
    check_exportable(model)
    files = write_sentence_transformer(model, marker.out)
    readings = compare_export(model, marker.out)
    words = "; ".join(map(_in_words, readings))
    if any(one.wrong for one in readings):
        raise ValueError(
            f"out: {marker.out} gives another reward than {folder}, and is left without its manifest: {words}; do not "
            "use it; --check of the model with --data tells whether it is so of your rows"
        )
    marker.close(files, record, "sentences")
    return Exported("a model of sentence-transformers", words)


def _in_words(one: Reading) -> str:
    """A reading of an export."""
    if one.within is None:
        return f"{one.consumer}: {one.note if one.failed else one.how + ', not compared'}"
    verdict = "the same reward" if one.same else "another reward"
    beyond = "" if one.beyond is None else f", of longer rows by {one.beyond:.1e}"
    return f"{one.consumer} ({one.how}): {verdict}, differs by at most {one.within:.1e}{beyond}"
