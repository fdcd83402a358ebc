"""A decoder language model and its tokenizer, made ready to score the last token of a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from irm_fast.models.tokens import CHUNK, _set_padding, _template_ending_in_eos, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_backbone(model: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a folder or hub id as a `*ForSequenceClassification` with one output, in float32.

    The tokenizer gets what a reward model needs: a padding token that is not the final one, padding on the
    right, truncation on the left, a chat template whose text ends in EOS. A new `score` head is drawn from
    torch's global generator; one that the checkpoint already has is kept.

    Raises:
        ValueError: an unknown model or one without a linear score, missing weights, no tokenizer.
    """
    name = _resolved(model)
    tokenizer = load_tokenizer(name)
    labels = {"id2label": {0: "reward"}, "label2id": {"reward": 0}}
    classifier = load_classifier(name, num_labels=1, problem_type="regression", **labels)
    _set_padding(classifier, tokenizer)
    tokenizer.chat_template = _template_ending_in_eos(tokenizer)
    return classifier, tokenizer


def count_tokens(
    model: str | Path, conversations: Sequence[list[dict[str, str]]], max_length: int
) -> tuple[np.ndarray, int]:
    """Tokens (N,) that each conversation has as `encode` makes them, without loading weights; and the limit.

    The limit is `max_length`, or that of the model's positions if it is lower. Raises ValueError as `load_backbone`.
    """
    name = _resolved(model)
    tokenizer = load_tokenizer(name)
    tokenizer.chat_template = _template_ending_in_eos(tokenizer)
    lengths = [
        len(row)
        for start in range(0, len(conversations), CHUNK)  # lists of numbers are large
        for row in encode(tokenizer, conversations[start : start + CHUNK], sys.maxsize)[0]
    ]
    return np.array(lengths), token_limit(_load_config(name), max_length)


def token_limit(config: Any, max_length: int) -> int:
    """`max_length`, or the model's own limit of positions, whichever is lower."""
    return int(min(max_length, getattr(config.get_text_config(), "max_position_embeddings", max_length)))


def _resolved(model: str | Path) -> str:
    """The folder or hub id of a model whose configuration can be read."""
    name = str(model)
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).expanduser().is_dir():
        raise ValueError(f"model {name!r}: no such folder; expected a folder with config.json, or a hub id")
    name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    _load_config(name)
    return name


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No load reports nor bars: what is missing is checked here and raised as an error."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_classifier(name: str, **settings: Any) -> PreTrainedModel:
    """`AutoModelForSequenceClassification` in float32 with a bias-free linear score of one output.

    Raises:
        ValueError: as `load_backbone`.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        with quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                name,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the names
                trust_remote_code=False,
                **settings,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f"model {name!r}: not loadable to score text: {_first_line(error)}") from error
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None or head.out_features != 1:
        raise ValueError(
            f"model {name!r}: {type(model).__name__} has no bias-free linear 'score' on its last token; "
            "expected a decoder such as Llama, Qwen, Mistral or Gemma"
        )
    lost = sorted(set(report["missing_keys"]) - {"score.weight"})
    if lost:
        raise ValueError(f"model {name!r}: its files lack {len(lost)} weights, among them {lost[0]}")
    for key, got, expected in report["mismatched_keys"]:
        raise ValueError(f"model {name!r}: {key} has shape {tuple(got)}; expected {tuple(expected)}")
    return model


def _load_config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        where = "of an unknown kind" if Path(name).is_dir() else "no such folder, and not found on the hub"
        raise ValueError(f"model {name!r}: {where}: {_first_line(error)}") from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id.

    Raises:
        ValueError: there is none that loads, or it has no EOS token.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of many kinds, some of them from the tokenizers library
        raise ValueError(f"model {name!r}: no tokenizer that loads: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model {name!r}: no EOS token; expected eos_token in tokenizer_config.json")
    return tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def model_config(name: str) -> Any:
    """The configuration of a folder or hub id. Raises ValueError where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        where = "of an unknown kind" if Path(name).is_dir() else "no such folder, and not found on the hub"
        raise ValueError(f"model {name!r}: {where}: {str(error).strip().splitlines()[0]}") from error
