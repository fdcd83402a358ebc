"""From a log to batches of tokens: tokenisation and collation, packed or padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from datasets import Dataset

    from irm_fast.data.log import Log

_DTYPES = {
    "feedback": torch.int8,
    "preference": torch.int8,
    "weight": torch.float32,
    "propensity": torch.float32,
    "features": torch.float32,
    "row": torch.long,
}


def as_dataset(log: Log, input_ids: Sequence[np.ndarray]) -> Dataset:
    """The rows of a log with their token ids, numbered, as an Arrow table in memory."""
    from datasets import Dataset

    size = len(log)
    columns: dict[str, Any] = {
        "input_ids": input_ids,
        # The loss takes no empty signal axis: explicit preferences alone get one that is always missing.
        "feedback": log.feedback if log.signals else np.full((size, 1), -1, dtype=np.int8),
        "row": range(size),
        "length": [len(row) for row in input_ids],
        "preference": log.preference,
        "weight": np.ones(size, dtype=np.float32) if log.weight is None else log.weight,
    }
    for name in ("propensity", "features"):
        if getattr(log, name) is not None and getattr(log, name).shape[1]:
            columns[name] = getattr(log, name)
    return Dataset.from_dict({name: list(values) for name, values in columns.items()})


class Collator:
    """Makes a batch of N rows of `as_dataset`, packed or padded on the right.

    Packed: `input_ids` and `position_ids` (1, T), the ends of the rows as flash attention takes them, `cu_seq_lens_q`
    and `cu_seq_lens_k` (N + 1,) int32, and the longest as `max_length_q` and `max_length_k`, whole numbers. Padded:
    `input_ids` and `attention_mask` (N, T). Beside them `feedback`, `preference`, `weight` and what else the rows have,
    each (N, ...); `row` (N,), their numbers; and `counts`, see `Counts`.

    filler: the row that stands, with weight 0 and number -1, in the batch of no rows: all processes have to take part
    in every pass.
    """

    def __init__(self, pad_token_id: int, *, packed: bool = False, filler: Mapping[str, Any] | None = None) -> None:
        self.pad_token_id, self.packed = pad_token_id, packed
        self.filler = filler and {**filler, "input_ids": filler["input_ids"][-1:], "weight": 0.0, "row": -1}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        examples = len(rows)
        if not rows:
            assert self.filler is not None
            rows = [self.filler]
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        lengths = torch.tensor([len(row) for row in ids])
        batch: dict[str, Any] = _pack(ids, lengths) if self.packed else _pad(ids, self.pad_token_id)
        for name in rows[0].keys() & _DTYPES.keys():
            batch[name] = torch.tensor([row[name] for row in rows], dtype=_DTYPES[name])
        # Numbers and not tensors: they stay on the host, and reading them waits for no device.
        batch["counts"] = Counts(examples, int(lengths.sum()), batch["input_ids"].numel(), int(lengths.square().sum()))
        return batch


class Counts(NamedTuple):
    """examples: without fillers.  tokens: of the rows.  slots: tokens and padding.  squares: sum of squared lengths."""

    examples: int
    tokens: int
    slots: int
    squares: int


def _pad(ids: list[Tensor], pad_token_id: int) -> dict[str, Tensor]:
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


def _pack(ids: list[Tensor], lengths: Tensor) -> dict[str, Any]:
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return {
        "input_ids": torch.cat(ids)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in ids])[None],
        **{"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest},
    }
