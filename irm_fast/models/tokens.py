"""Conversations as token ids: rendered by the chat template, ended in EOS, cut on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from irm_fast.data.messages import Messages

CHUNK = 1000  # conversations rendered and tokenised at a time


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The text of a conversation by the tokenizer's chat template.

    Raises:
        ValueError: The template refuses the conversation.
    """
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the model's chat template refuses the roles {roles}: {error}") from error


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages], max_length: int
) -> tuple[list[list[int]], int]:
    """Tokenise conversations, as `tokenizer.apply_chat_template(messages, tokenize=True)` does.

    Args:
        tokenizer: A tokenizer whose chat template ends a text in EOS.
        conversations: N conversations.
        max_length: The number of tokens of a row, at most; longer ones lose their beginning.

    Returns:
        The token ids of each conversation, the last always EOS; and the number of conversations that were longer.

    Raises:
        ValueError: The template rejects a conversation or does not end it in EOS.
    """
    if not conversations:
        return [], 0
    texts = [render(tokenizer, messages) for messages in conversations]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids or ids[-1] != tokenizer.eos_token_id:
            raise ValueError(f"the model's chat template ends a text in {text[-40:]!r}; expected EOS there")
    return [ids[-max_length:] for ids in encoded], sum(len(ids) > max_length for ids in encoded)


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a sequence classifier can tell the padding from the end of a text.

    Raises:
        ValueError: The tokenizer has no padding token, or pads with the token that ends a text.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is None:
        raise ValueError("the tokenizer has no padding token; expected pad_token in tokenizer_config.json")
    if pad == end:
        raise ValueError(
            f"the tokenizer pads with {tokenizer.pad_token!r}, the token that ends a text: the reward would be read "
            "before it; expected another pad_token in tokenizer_config.json"
        )


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model and its tokenizer a padding token other than EOS.

    Sequence classifiers read the last token that is not padding: padding with EOS would hide the end.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    tokenizer.init_kwargs.update(padding_side="right", truncation_side="left")  # the saved files' source
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def tokenise(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages], max_length: int
) -> tuple[list[np.ndarray], int]:
    """Tokenise conversations in chunks; as `encode`, but the token ids of each are an array (T,) int32."""
    rows, truncated = [], 0
    for start in range(0, len(conversations), CHUNK):
        ids, longer = encode(tokenizer, conversations[start : start + CHUNK], max_length)
        rows += [np.array(row, dtype=np.int32) for row in ids]
        truncated += longer
    return rows, truncated
