"""From a log to padded batches of tokens: tokenisation, collation, and an order that pads little."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from irm_fast.backbone import encode

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from irm_fast.log import Log

_CHUNK = 1000  # conversations rendered and tokenised at a time
_DTYPES = {
    "feedback": torch.int8,
    "preference": torch.int8,
    "weight": torch.float32,
    "propensity": torch.float32,
    "features": torch.float32,
}
MODEL_INPUTS = ("input_ids", "attention_mask", "propensity", "features")


def tokenise(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[dict[str, str]]], max_length: int
) -> tuple[list[np.ndarray], int]:
    """Token ids of each conversation, int32, and how many lost their beginning; ValueError as `encode`."""
    rows, truncated = [], 0
    for start in range(0, len(conversations), _CHUNK):
        ids, longer = encode(tokenizer, conversations[start : start + _CHUNK], max_length)
        rows += [np.array(row, dtype=np.int32) for row in ids]
        truncated += longer
    return rows, truncated


def as_dataset(log: Log, input_ids: Sequence[np.ndarray]) -> Dataset:
    """The rows of a log with their token ids, as an Arrow table in memory."""
    from datasets import Dataset

    size = len(log)
    columns: dict[str, Any] = {
        "input_ids": input_ids,
        # The loss takes no empty signal axis: explicit preferences alone get one that is always missing.
        "feedback": log.feedback if log.signals else np.full((size, 1), -1, dtype=np.int8),
        "length": [len(row) for row in input_ids],
        "preference": log.preference,
        "weight": np.ones(size, dtype=np.float32) if log.weight is None else log.weight,
    }
    for name in ("propensity", "features"):
        if getattr(log, name) is not None and getattr(log, name).shape[1]:
            columns[name] = getattr(log, name)
    return Dataset.from_dict({name: list(values) for name, values in columns.items()})


class Collator:
    """Pads token ids on the right and stacks the rest; padding is marked in `attention_mask`."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        for name in rows[0].keys() & _DTYPES.keys():
            batch[name] = torch.tensor([row[name] for row in rows], dtype=_DTYPES[name])
        return batch


class LengthGroupedSampler(Sampler[int]):
    """A new random order each epoch in which the rows of one optimiser step have similar lengths.

    Rows are shuffled, sorted by length within windows of `window` steps, cut into steps, and the steps
    shuffled. The order depends on the seed and the epoch alone, so a resumed run meets the same rows.
    The window is a compromise: dialogues that fill a third of their batches in random order fill three
    quarters at 8, and a wider one makes the steps of a small log all too unlike each other.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int, window: int = 8) -> None:
        self.lengths, self.step_size, self.seed, self.window = np.asarray(lengths), step_size, seed, window
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        whole = len(order) - len(order) % self.step_size  # the rest makes a last, smaller step
        size = self.window * self.step_size
        windows = [order[i : min(i + size, whole)] for i in range(0, whole, size)]
        ordered = [rows[np.argsort(self.lengths[rows], kind="stable")] for rows in windows]
        steps = np.concatenate([*ordered, order[:0]]).reshape(-1, self.step_size)
        return iter([*rng.permutation(steps).ravel().tolist(), *order[whole:].tolist()])
