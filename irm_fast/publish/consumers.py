"""Who reads a saved model, and by how much their numbers differ from ours."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from irm_fast.data.conversations import read_conversations
from irm_fast.data.problems import redacting
from irm_fast.evaluation.scoring import declared_for, load, score
from irm_fast.models.backbone import load_tokenizer
from irm_fast.models.foreign_files import loading, quiet_transformers
from irm_fast.models.record import read_record
from irm_fast.models.tokens import encode, render
from irm_fast.publish.samples import Samples, made_conversations, sorted_out

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

ROWS = 64  # of a file that are scored
ROUNDING = 1e-4  # of a difference in float32, as a share of the rewards; a second BOS or a sigmoid moves them by more


class Reading(NamedTuple):
    """How a program reads a model.

    Attributes:
        consumer: The program, and the way it is used.
        how: Its version, or why it is not run and by what it is judged.
        within: The largest absolute difference to our own score of rows within `max_length`; None if it is not run.
        beyond: Likewise of longer rows.
        note: What else should be known.
        same: Whether it reads the same reward within `max_length`; None if it is not run.
    """

    consumer: str
    how: str
    within: float | None = None
    beyond: float | None = None
    note: str = ""
    same: bool | None = None


class Loaded(NamedTuple):
    """A saved classifier as transformers loads it, in float32."""

    folder: str
    model: Any
    tokenizer: Any
    max_length: int


def check_consumers(folder: Path, data: str | None = None) -> list[Reading]:
    """Score conversations by every program that is installed, and compare.

    Args:
        folder: A folder that `irm-fast train` wrote and that holds an ordinary sequence classifier.
        data: A file of rows, of which the first are scored, as `irm-fast score` reads them. None: made conversations.

    Returns:
        A reading for each program, also of those that are not installed or cannot run here.

    Raises:
        ValueError: The folder holds no such model, or the file no such rows.
    """
    read_record(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: a reward on embeddings, which no other program loads; expected an ordinary sequence "
            "classifier: irm-fast export --to sentence-transformers writes and compares such a reward, where it is on "
            "an encoder"
        )
    model = load(folder, precision="float32")
    tokenizer = load_tokenizer(str(folder))
    limit = model.spec.max_length
    rows = made_conversations(limit)
    if data is not None:
        rows = list(read_conversations(data, declared_for(folder))[1][:ROWS])
    samples = sorted_out(rows, lambda messages: len(encode(tokenizer, [messages], 2**62)[0][0]), limit)
    ours = score(model, samples.conversations)
    del model
    gc.collect()
    loaded = _loaded(folder, tokenizer, limit)
    readings = [_read(consumer, loaded, samples, ours) for consumer in CONSUMERS]
    return [*readings, *BY_SOURCE]


def _loaded(folder: Path, tokenizer: Any, max_length: int) -> Loaded:
    from transformers import AutoModelForSequenceClassification

    with loading(f"{folder}: not loadable by transformers"):
        model = AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=torch.float32).eval()
    return Loaded(str(folder), model, tokenizer, max_length)


class Consumer(NamedTuple):
    """A program that can be run here.

    Attributes:
        name: The program, and the way it is used.
        package: The distribution that has to be installed; "" where it is run by its rules, written here.
        read: Its scores (N,) of conversations.
        note: What else should be known.
        oldest: The first number of the oldest version that can.
        exact: Whether it should give the same number.
    """

    name: str
    package: str
    read: Callable[[Loaded, Sequence[Messages]], np.ndarray]
    note: str = ""
    oldest: int = 0
    exact: bool = True


def _read(consumer: Consumer, loaded: Loaded, samples: Samples, ours: np.ndarray) -> Reading:
    """Run a program, if it is installed."""
    how = "by its rules"
    if consumer.package:
        try:
            how = version(consumer.package)
        except PackageNotFoundError:
            return Reading(consumer.name, "not installed", note=consumer.note)
        if int(how.split(".")[0]) < consumer.oldest:
            return Reading(consumer.name, f"{how}, expected {consumer.oldest}", note=consumer.note)
    try:
        with quiet_transformers(), torch.no_grad():
            difference = np.abs(consumer.read(loaded, samples.conversations) - ours)
    except Exception as error:  # of programs of others, each of which may fail in its own way
        failure = f"fails: {type(error).__name__}" + ("" if redacting() else f": {str(error)[:200]}")
        return Reading(consumer.name, how, note=failure, same=False)
    within, beyond = samples.worst(difference)
    same = within is None or within <= ROUNDING * max(1.0, float(np.abs(ours).max()))
    return Reading(consumer.name, how, within, beyond, consumer.note, same)


def _one_by_one(score_one: Callable[[Any], Any], rows: Sequence[Any]) -> np.ndarray:
    return np.array([float(score_one(row)) for row in rows])


def _messages(loaded: Loaded, rows: Sequence[Messages]) -> np.ndarray:
    def reward(messages: Messages) -> Any:
        ids = loaded.tokenizer.apply_chat_template(
            messages, return_dict=True, return_tensors="pt", truncation=True, max_length=loaded.max_length
        )
        return loaded.model(**ids).logits[0, 0]

    return _one_by_one(reward, rows)


def _texts(loaded: Loaded, rows: Sequence[Messages]) -> np.ndarray:
    texts = [render(loaded.tokenizer, messages) for messages in rows]
    ids = loaded.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    found: np.ndarray = loaded.model(**ids).logits[:, 0].numpy()
    return found


def _pipeline(loaded: Loaded, rows: Sequence[Messages]) -> np.ndarray:
    from transformers import pipeline

    classify = pipeline("text-classification", loaded.model, tokenizer=loaded.tokenizer, device="cpu")
    texts = [render(loaded.tokenizer, messages) for messages in rows]
    return np.array([found["score"] for found in classify(texts, truncation=True)])


def _cross_encoder(loaded: Loaded, rows: Sequence[Messages]) -> np.ndarray:
    from sentence_transformers import CrossEncoder

    found: np.ndarray = CrossEncoder(loaded.folder, device="cpu").predict(list(rows), show_progress_bar=False)
    return found


def _trl(loaded: Loaded, rows: Sequence[Messages]) -> np.ndarray:
    from trl.data_utils import apply_chat_template

    texts = [apply_chat_template({"messages": messages}, loaded.tokenizer)["text"] for messages in rows]
    ids = loaded.tokenizer(
        text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
    )
    found: np.ndarray = loaded.model(**ids).logits[:, 0].numpy()
    return found


def _openrlhf(loaded: Loaded, rows: Sequence[Messages]) -> np.ndarray:
    """Keys `model.*` into the backbone, `score.weight` beside it, positions from the mask, padding on the left."""
    state: Mapping[str, torch.Tensor] = loaded.model.state_dict()
    backbone = type(loaded.model.base_model)(loaded.model.config).eval()
    backbone.load_state_dict({key.removeprefix("model."): state[key] for key in state if key.startswith("model.")})
    tokenizer = loaded.tokenizer
    ids = tokenizer(
        [render(tokenizer, messages) for messages in rows],
        padding=True,
        padding_side="left",
        truncation=True,
        max_length=loaded.max_length,
        add_special_tokens=False,
        return_tensors="pt",
    )
    mask = ids["attention_mask"]
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    states = backbone(ids["input_ids"], attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    found: np.ndarray = (states[:, -1] @ state["score.weight"][0]).numpy()
    return found


def _verl(loaded: Loaded, rows: Sequence[Messages]) -> np.ndarray:
    """The text of the template without its BOS, which an engine then tokenises with what its tokenizer adds."""
    bos, tokenizer = loaded.tokenizer.bos_token, loaded.tokenizer
    texts = [render(tokenizer, messages).removeprefix(bos or "") for messages in rows]
    ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    found: np.ndarray = loaded.model(**ids).logits[:, 0].numpy()
    return found


CONSUMERS = (
    Consumer("transformers, messages", "transformers", _messages),
    Consumer("transformers, text", "transformers", _texts),
    Consumer("transformers pipeline", "transformers", _pipeline),
    Consumer(
        "CrossEncoder", "sentence-transformers", _cross_encoder, "messages; pairs have no chat template", oldest=6
    ),
    Consumer("TRL, GRPO", "trl", _trl, "prompts as messages; it does not truncate"),
    Consumer("OpenRLHF", "", _openrlhf, "read at 3c3be62; bfloat16 is its default; no normalize_enable"),
    Consumer(
        "verl's text",
        "",
        _verl,
        "read at b178a3c; cuts the BOS off, which the tokenizer does not add again",
        exact=False,
    ),
)
EXACT = tuple(consumer.name for consumer in CONSUMERS if consumer.exact)
BY_SOURCE = (
    Reading(
        "vLLM, /classify",
        "by source, 1c71367",
        note="bias-free score, identity as problem_type is regression; longer than model_max_length is refused",
    ),
    Reading("vLLM, /score", "by source, 1c71367", note="identity, by sentence_transformers.activation_fn"),
    Reading("SGLang", "by source, 005da00", note="score.weight at the last token, no activation"),
)
