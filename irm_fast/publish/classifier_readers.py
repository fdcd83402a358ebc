"""Programs that read a sequence classifier, each as it turns conversations into numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from irm_fast.models.foreign_files import loading
from irm_fast.models.tokens import render
from irm_fast.publish.readings import Consumer

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages


class Loaded(NamedTuple):
    """A saved classifier as transformers loads it, in float32."""

    folder: str
    model: Any
    tokenizer: Any
    max_length: int


def load_as_transformers(folder: Path, tokenizer: Any, max_length: int) -> Loaded:
    """Load a classifier as transformers does.

    Args:
        folder: Its folder.
        tokenizer: Its tokenizer.
        max_length: The limit of tokens.

    Raises:
        ValueError: transformers cannot.
    """
    from transformers import AutoModelForSequenceClassification

    with loading(f"{folder}: not loadable by transformers"):
        model = AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=torch.float32).eval()
    return Loaded(str(folder), model, tokenizer, max_length)


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
    """Texts by TRL's own function; then, as its trainer does, tokens without special ones, padded on the right."""
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


CLASSIFIER_READERS = (
    Consumer("transformers, messages", "transformers", _messages),
    Consumer("transformers, text", "transformers", _texts),
    Consumer("transformers pipeline", "transformers", _pipeline),
    Consumer(
        "CrossEncoder", "sentence-transformers", _cross_encoder, "messages; pairs have no chat template", oldest=6
    ),
    Consumer(
        "TRL, GRPO",
        "trl",
        _trl,
        "prompts as messages; it does not truncate",
        how="chat template of {}, the rest by its rules",
    ),
    Consumer("OpenRLHF", "", _openrlhf, "read at 3c3be62; bfloat16 is its default; no normalize_enable"),
    Consumer(
        "verl's text",
        "",
        _verl,
        "read at b178a3c; cuts the BOS off, which the tokenizer does not add again",
        exact=False,
    ),
)
