"""The reward that TRL trains on pairs of a log: two answers to one question, of which one drew an action.

It has another budget than the other rewards. At the sizes of `Settings` a log of 7,500 rows has some 1,050 pairs: four
passes over them in batches of 32 are about 132 updates, with one learning rate, 2e-3, and the last model is kept. The
others pass four times over the rows that are not held out in batches of 64, about 420 updates, with 2e-2 for the heads
beside 2e-3, and keep the model of the pass that is best on held-out rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.experiments.downstream.policy import QUIET, prompt_of
from irm_fast.models.checkpoint import save_checkpoint

_BATCH = 256  # answers


def pairs_of(log: Log) -> dict[str, list[str]]:
    """ "chosen" and "rejected" texts: to each question, every answer that drew an action with every silent one."""
    by_question: dict[str, tuple[list[str], list[str]]] = {}
    for messages, acted in zip(log.messages, log.feedback.max(axis=1), strict=True):
        by_question.setdefault(messages[0]["content"], ([], []))[1 - acted].append(_text(messages))
    pairs = [pair for answers in by_question.values() for pair in product(*answers)]
    return {"chosen": [chosen for chosen, _ in pairs], "rejected": [rejected for _, rejected in pairs]}


def train_on_pairs(log: Log, decoder: Path, folder: Path, epochs: int, seed: int) -> None:
    """Train a classifier by `trl.RewardTrainer` on the pairs of a log.

    Args:
        log: The log.
        decoder: The folder of the model to start from.
        folder: The folder to write.
        epochs: Passes over the pairs.
        seed: The seed of head and batches.
    """
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    model = AutoModelForSequenceClassification.from_pretrained(decoder, num_labels=1)
    with tempfile.TemporaryDirectory() as scratch:
        settings = RewardConfig(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            seed=seed,
            **QUIET,
        )
        data = Dataset.from_dict(pairs_of(log))
        trainer = RewardTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    save_checkpoint(model, tokenizer, folder)


class Classifier:
    """What `train_on_pairs` leaves in a folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, conversations: Sequence[Messages]) -> np.ndarray:
        """The rewards (N,) of answers."""
        texts = [_text(messages) + self._tokenizer.eos_token for messages in conversations]
        found = []
        with torch.no_grad():
            for start in range(0, len(texts), _BATCH):
                tokens = self._tokenizer(texts[start : start + _BATCH], return_tensors="pt", padding=True)
                found.append(self._model(**tokens).logits.squeeze(-1))
        return torch.cat(found).numpy()


def _text(messages: Messages) -> str:
    return prompt_of(messages[0]["content"]) + messages[1]["content"]
