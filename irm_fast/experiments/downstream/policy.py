"""A small policy that answers as the answers of a log are, to start from; its samples, and how far it has moved."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irm_fast.data.messages import Messages
from irm_fast.experiments.made_answers import conversation
from irm_fast.experiments.tiny_decoder import make_tiny_decoder
from irm_fast.models.checkpoint import save_checkpoint

QUIET: dict[str, Any] = {  # settings of trainers that leave nothing behind
    **{"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True},
    **{"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False},
    "use_cpu": True,  # where a `Policy` draws, beside a GPU too
}
TOKENS = 96  # of an answer, at most; 1 in 100 of the log has more
_BATCH = 256  # answers


@dataclass(frozen=True)
class Drawn:
    """Answers that a policy has drawn.

    Attributes:
        conversations: N questions, each with its answer.
        tokens: (N, S) of both, in blocks of equal length S.
        asked: The length of the questions in each block.
    """

    conversations: list[Messages]
    tokens: list[Tensor]
    asked: list[int]


class Policy:
    """A decoder that continues a question with an answer.

    Args:
        model: The decoder.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, folder: Path) -> Policy:
        """The policy in a folder."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        return cls(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer)

    def draw(self, questions: Sequence[str], seed: int) -> Drawn:
        """One answer to each question, at temperature 1."""
        drawn = Drawn([], [], [])
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for start in range(0, len(questions), _BATCH):
                some = questions[start : start + _BATCH]
                read = self.tokenizer([prompt_of(question) for question in some], return_tensors="pt", padding=True)
                tokens = self.model.generate(**read, do_sample=True, top_k=0, max_new_tokens=TOKENS)
                asked = read["input_ids"].shape[1]
                texts = self.tokenizer.batch_decode(tokens[:, asked:], skip_special_tokens=True)
                drawn.conversations.extend(conversation(*pair) for pair in zip(some, texts, strict=True))
                drawn.tokens.append(tokens)
                drawn.asked.append(asked)
        return drawn

    def log_probability(self, drawn: Drawn) -> np.ndarray:
        """The log-probability (N,) of each drawn answer, with its end, in nats."""
        blocks = zip(drawn.tokens, drawn.asked, strict=True)
        with torch.no_grad():
            return torch.cat([self._log_probability(tokens, asked) for tokens, asked in blocks]).numpy()

    def _log_probability(self, tokens: Tensor, asked: int) -> Tensor:
        is_token = tokens != self.tokenizer.pad_token_id
        logits = self.model(input_ids=tokens, attention_mask=is_token.long()).logits[:, asked - 1 : -1]
        taken = logits.log_softmax(-1).gather(-1, tokens[:, asked:, None]).squeeze(-1)
        return (taken * is_token[:, asked:]).sum(dim=1)


def prompt_of(question: str) -> str:
    """What the policy reads before its answer."""
    return question + "\n"


def question_of(prompt: str) -> str:
    """The question that stands in a prompt."""
    return prompt.removesuffix("\n")


def train_policy(conversations: Sequence[Messages], folder: Path, *, width: int, epochs: int, seed: int) -> None:
    """Train a decoder to answer as the answers of a log are.

    Args:
        conversations: Questions, each with an answer.
        folder: The folder to write.
        width: The width of the decoder.
        epochs: Passes over the answers.
        seed: The seed of weights and batches.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    texts = (turn["content"] for turns in conversations for turn in turns)
    rows = {
        "prompt": [prompt_of(turns[0]["content"]) for turns in conversations],
        "completion": [turns[1]["content"] for turns in conversations],
    }
    with tempfile.TemporaryDirectory() as scratch:
        begin = make_tiny_decoder(texts, scratch, hidden_size=width, vocab_size=512, seed=seed)
        tokenizer, model = AutoTokenizer.from_pretrained(begin), AutoModelForCausalLM.from_pretrained(begin)
        settings = SFTConfig(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            seed=seed,
            **QUIET,
        )
        data = Dataset.from_dict(rows)
        trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    save_checkpoint(model, tokenizer, folder)
