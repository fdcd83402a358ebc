"""Who reads a saved or exported model, and by how much their numbers differ from ours."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from irm_fast.data.conversations import read_conversations
from irm_fast.data.declarations import Declarations
from irm_fast.data.schema import read_object
from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.text_model import SOURCE, EmbeddedRewardModel
from irm_fast.evaluation.scoring import declared_for, load, score
from irm_fast.models.backbone import load_tokenizer
from irm_fast.models.passes import default_device
from irm_fast.models.record import RECORD, read_record
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.tokens import encode
from irm_fast.publish.classifier_readers import CLASSIFIER_READERS, load_as_transformers
from irm_fast.publish.engine_rules import CLASSIFIER, architectures, classifier_engines, label_count, sentence_engines
from irm_fast.publish.names import ADAPTER, EXPORT, MODULES
from irm_fast.publish.readings import Reading, read_by
from irm_fast.publish.samples import Samples, made_conversations, sorted_out
from irm_fast.publish.sentence_export import why_not_exportable, write_sentence_transformer
from irm_fast.publish.sentence_readers import BY_FILES, SENTENCE_TRANSFORMER, by_files, embedder_of

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

ROWS = 64  # of a file that are scored
_OTHERS = Reading(
    "programs that load a classifier",
    "do not load it",
    note="transformers, CrossEncoder, TRL, OpenRLHF: call what reads it in a reward function of your own",
)


def check_consumers(folder: Path, data: str | None = None) -> list[Reading]:
    """Score conversations by every program that is installed, and compare.

    The folder is one that `irm-fast train` wrote; or an export, of which our own number is what its files stand for. A
    reward on an encoder is exported to a temporary folder, as that is what others load.

    Args:
        folder: The folder.
        data: A file of rows, of which the first are scored, as `irm-fast score` reads them. None: made conversations.

    Returns:
        A reading for each program, also of those that are not installed or cannot run here.

    Raises:
        ValueError: The folder holds no such model, or the file no such rows.
    """
    if (folder / RECORD).is_file():
        embedded = SOURCE in read_record(folder) and not (folder / "config.json").is_file()
        return _of_embedded(folder, data) if embedded else _of_classifier(folder, data)
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"{folder}: an adapter, which no program scores without its base; expected the folder of its run, or what "
            "irm-fast export DIR --merge --out OUT makes of it"
        )
    if (folder / MODULES).is_file():
        return _of_sentences(folder, data)
    if (folder / "config.json").is_file():
        return _of_classifier(folder, data)
    raise ValueError(f"{folder}: no model to check; expected a folder that irm-fast train or irm-fast export wrote")


def compare_export(model: EmbeddedRewardModel, out: Path, samples: Samples | None = None) -> list[Reading]:
    """Compare our score of a reward on an encoder with what programs read from its export.

    Args:
        model: The model; it is computed in float32 from now on.
        out: The folder of the export.
        samples: The conversations. None: made ones.
    """
    model.precision = "float32"
    samples = samples or _samples(made_conversations(model.source.max_length), model)
    ours = score(model, samples.conversations)
    return [read_by(consumer, out, samples, ours) for consumer in (SENTENCE_TRANSFORMER, BY_FILES)]


def _of_classifier(folder: Path, data: str | None) -> list[Reading]:
    """The readings of a sequence classifier, of a run or exported."""
    model = load(folder, precision="float32") if (folder / RECORD).is_file() else _exported_classifier(folder)
    tokenizer, limit = load_tokenizer(str(folder)), model.spec.max_length
    rows = _rows(folder, data, limit)
    samples = sorted_out(rows, lambda messages: len(encode(tokenizer, [messages], 2**62)[0][0]), limit)
    ours = score(model, samples.conversations)
    del model
    gc.collect()
    loaded = load_as_transformers(folder, tokenizer, limit)
    return [*(read_by(one, loaded, samples, ours) for one in CLASSIFIER_READERS), *classifier_engines(folder)]


def _exported_classifier(folder: Path) -> ImplicitRewardModel:
    """A sequence classifier without a record, as its files say it is."""
    config = read_object(folder / "config.json", "irm-fast export")
    kinds, labels = architectures(config), label_count(config)
    if labels != 1 or not any(name.endswith(CLASSIFIER) for name in kinds):
        raise ValueError(
            f"{folder}: config.json names {', '.join(kinds) or 'no architecture'} of {labels} outputs; expected a "
            f"*{CLASSIFIER} of one, as irm-fast train and irm-fast export write it"
        )
    limit = int(min(load_tokenizer(str(folder)).model_max_length, 2**31))
    path = folder / EXPORT
    told = read_object(path, "irm-fast export") if path.is_file() else {}
    spec = RewardSpec("constant", max_length=limit, keeps_bos=bool(told.get("keeps_bos", True)))
    return ImplicitRewardModel.from_backbone(str(folder), spec).to(default_device())


def _of_embedded(folder: Path, data: str | None) -> list[Reading]:
    """The readings of a reward on embeddings that no classifier holds."""
    model = EmbeddedRewardModel.load(folder)
    if why := why_not_exportable(model):
        return [Reading("sentence-transformers", "does not load it", note=why), _OTHERS]
    model.precision = "float32"
    samples = _samples(_rows(folder, data, model.source.max_length), model)
    with TemporaryDirectory() as scratch:
        out = Path(scratch)
        write_sentence_transformer(model, out)
        return [*compare_export(model, out, samples), *sentence_engines(out), _OTHERS]


def _of_sentences(folder: Path, data: str | None) -> list[Reading]:
    """The readings of an export of a reward on an encoder."""
    embedder = embedder_of(folder)
    limit = embedder.source.max_length
    samples = sorted_out(_rows(folder, data, limit), _counts(embedder.count_tokens), limit)
    ours = by_files(folder, samples.conversations)
    return [read_by(SENTENCE_TRANSFORMER, folder, samples, ours), *sentence_engines(folder), _OTHERS]


def _samples(rows: list[Messages], model: EmbeddedRewardModel) -> Samples:
    return sorted_out(rows, _counts(model.embedder.count_tokens), model.source.max_length)


def _counts(count: Callable[[Sequence[Messages]], np.ndarray]) -> Callable[[Messages], int]:
    """A function of one conversation of one that counts tokens of several."""
    return lambda messages: int(count([messages])[0])


def _rows(folder: Path, data: str | None, limit: int) -> list[Messages]:
    """The conversations to score: the first of a file, or made ones."""
    if data is None:
        return made_conversations(limit)
    told = Declarations.of_settings({}, misclick=True, of_model=True)
    declared = declared_for(folder) if (folder / RECORD).is_file() else told
    return list(read_conversations(data, declared)[1][:ROWS])
