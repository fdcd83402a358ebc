"""Tiny base models of the kinds whose special tokens differ, for tests of what is saved and of who reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TURNS = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim + eos_token }}{% endfor %}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
)
KINDS = ("no BOS", "BOS twice", "ChatML")


def save_base(kind: str, folder: Path, *, positions: int = 256) -> Path:
    """Write a tiny random Llama or Qwen with its tokenizer to a folder, and return the folder.

    Args:
        kind: "no BOS": no BOS token at all; "BOS twice": the chat template and the tokenizer's post-processor both add
            one, as those of Llama 3 do; "ChatML": as of Qwen, a template whose text goes on after the last EOS.
        folder: The folder.
        positions: The model's limit of tokens.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = _tokenizer(kind)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "initializer_range": 0.3,  # so that rewards differ from text to text
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "ChatML":
        Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **sizes)).save_pretrained(folder)
    else:
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    return folder


def _tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = {
        "no BOS": {"eos_token": "</s>", "pad_token": "<pad>"},
        "BOS twice": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        "ChatML": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    }[kind]
    tokens = [*specials.values(), *(["<|im_start|>"] if kind == "ChatML" else [])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["user assistant good question bad answer"] * 3, trainer)
    if kind == "BOS twice":
        bos = [("<s>", tokenizer.token_to_id("<s>"))]
        adds = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=bos)
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), adds])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)
    fast.chat_template = {"no BOS": TURNS, "BOS twice": "{{ bos_token }}" + TURNS, "ChatML": CHATML}[kind]
    return fast


def save_encoder(folder: Path, *, positions: int = 64) -> Path:
    """Write a tiny random BERT with a byte-level tokenizer that adds [CLS] and [SEP], and return the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=[*special.values()], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["User: good question Assistant: bad answer"] * 3, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(
        vocab_size=270, max_position_embeddings=positions, pad_token_id=0, initializer_range=0.3, **sizes
    )
    BertModel(config).save_pretrained(folder)
    return folder
