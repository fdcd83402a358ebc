"""Conversations as token ids: rendered by the chat template, ended in EOS, and where too long without their oldest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from irm_fast.data.guards import TooLong, bounded_memory, bounded_time
from irm_fast.data.problems import redacting, shown
from irm_fast.data.reading.limits import MAX_RENDERED, RENDER_MEMORY, RENDER_SECONDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from irm_fast.data.messages import Messages

CHUNK = 1000  # conversations tokenised at a time
TOGETHER = 64  # conversations rendered within one bound of time and memory, which costs as much as rendering one


class Refused(ValueError):
    """A chat template does not take a conversation. What it takes beyond its limits is another ValueError."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The text of a conversation by the tokenizer's chat template.

    Raises:
        Refused: The template refuses the conversation.
        ValueError: As `rendered`.
    """
    [text] = rendered(tokenizer, [messages])
    if isinstance(text, Refused):
        raise text
    return text


def rendered(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]) -> Iterator[str | Refused]:
    """Yield the text of each conversation by the tokenizer's chat template, or why the template refuses it.

    Args:
        tokenizer: The tokenizer. Its template may come from a stranger, and is a program.
        conversations: The conversations.

    Raises:
        ValueError: The template takes more time or memory, or makes more text, than it may.
    """
    for start in range(0, len(conversations), TOGETHER):
        yield from _within_bounds(tokenizer, conversations[start : start + TOGETHER])


def _within_bounds(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]) -> list[str | Refused]:
    """The texts of some conversations, rendered together; where that takes too much, one by one."""
    try:
        with bounded_memory(RENDER_MEMORY), bounded_time(RENDER_SECONDS):
            return [_text(tokenizer, messages) for messages in conversations]
    except (TooLong, MemoryError) as error:
        if len(conversations) > 1:
            return [text for messages in conversations for text in _within_bounds(tokenizer, [messages])]
        what = f"{RENDER_SECONDS} s" if isinstance(error, TooLong) else f"{RENDER_MEMORY:,} bytes of memory"
    raise _beyond(f"takes more than {what} for a conversation")


def _text(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str | Refused:
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TooLong, MemoryError):
        raise
    except Exception as error:  # whatever a program of others does
        roles = ", ".join(message["role"] for message in messages)
        why = type(error).__name__ if redacting() else first_line(error) or type(error).__name__
        return Refused(f"the model's chat template refuses the roles {roles}: {why}")
    if len(text) > MAX_RENDERED:
        raise _beyond(f"makes {len(text):,} characters of a conversation, more than {MAX_RENDERED:,}")
    return text


def _beyond(what: str) -> ValueError:
    """The error of a template that goes beyond its limits."""
    remedy = "expected a template of that model; give its folder another chat_template.jinja, or do not use the model"
    return ValueError(f"the model's chat template {what}; {remedy}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().split("\n")[0]


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages], max_length: int, *, keeps_bos: bool = True
) -> tuple[list[list[int]], int]:
    """Tokenise conversations, as `tokenizer.apply_chat_template(messages, tokenize=True)` does.

    Args:
        tokenizer: A tokenizer whose chat template ends a text in EOS.
        conversations: N conversations.
        max_length: The number of tokens of a row, at most; longer ones lose their oldest text.
        keeps_bos: Whether such rows keep the BOS token that they begin with.

    Returns:
        The token ids of each conversation, the last always EOS; and the number of conversations that were longer.

    Raises:
        ValueError: The template rejects a conversation or does not end it in EOS.
    """
    texts = []
    for text in rendered(tokenizer, conversations):
        if isinstance(text, Refused):
            raise text
        texts.append(text)
    return encode_texts(tokenizer, texts, max_length, keeps_bos=keeps_bos)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, *, keeps_bos: bool = True
) -> tuple[list[list[int]], int]:
    """Tokenise conversations that `rendered` made texts of; results as of `encode`.

    Args:
        tokenizer: The tokenizer.
        texts: N texts.
        max_length: The number of tokens of a row, at most.
        keeps_bos: As of `encode`.

    Raises:
        ValueError: A text does not end in EOS.
    """
    if not texts:
        return [], 0
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids or ids[-1] != tokenizer.eos_token_id:
            raise ValueError(f"the model's chat template ends a text in {shown(text[-40:])}; expected EOS there")
    bos = tokenizer.bos_token_id if keeps_bos else None
    return [_cut(ids, max_length, bos) for ids in encoded], sum(len(ids) > max_length for ids in encoded)


def _cut(ids: list[int], max_length: int, bos: int | None) -> list[int]:
    """The last tokens of a row, after the BOS token if it begins with that; of one token alone it is the last."""
    if len(ids) > max_length > 1 and ids[0] == bos:
        return [ids[0], *ids[1 - max_length :]]
    return ids[-max_length:]


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
    add_padding_token(tokenizer)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    tokenizer.init_kwargs.update(padding_side="right", truncation_side="left")  # the saved files' source
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def add_padding_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer a padding token other than EOS, as `set_padding` does."""
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})


def tokenise(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages], max_length: int, *, keeps_bos: bool = True
) -> tuple[list[np.ndarray], int]:
    """Tokenise conversations in chunks; as `encode`, but the token ids of each are an array (T,) int32."""
    rows, truncated = [], 0
    for start in range(0, len(conversations), CHUNK):
        ids, longer = encode(tokenizer, conversations[start : start + CHUNK], max_length, keeps_bos=keeps_bos)
        rows += [np.array(row, dtype=np.int32) for row in ids]
        truncated += longer
    return rows, truncated
