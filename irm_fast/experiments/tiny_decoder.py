"""A small decoder with random weights and a tokenizer trained on the text at hand.

For demonstrations and tests where no pretrained model can be downloaded; a real run starts from a pretrained one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def make_tiny_decoder(
    texts: Iterable[str],
    folder: str | Path,
    *,
    hidden_size: int = 64,
    layers: int = 2,
    vocab_size: int = 1024,
    max_length: int = 512,
    seed: int = 0,
) -> Path:
    """Write a Llama with random weights, and a byte-level BPE tokenizer trained on texts.

    `irm-fast train --model FOLDER` takes it like any other model.

    Args:
        texts: The texts that the tokenizer is trained on.
        folder: The folder to write.
        hidden_size: The width of hidden states.
        layers: The number of layers.
        vocab_size: The number of tokens that the tokenizer may know.
        max_length: The number of tokens of a sequence, at most.
        seed: The seed of the weights.

    Returns:
        The folder.
    """
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from irm_fast.models.checkpoint import save_checkpoint

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size, special_tokens=list(SPECIAL.values()), show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **SPECIAL)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden_size // 32),
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_checkpoint(LlamaForCausalLM(config), tokenizer, Path(folder))
    return Path(folder)
