"""From a log to batches of tokens: rows in memory, and their collation, packed or padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from irm_fast.data.log import Log
from irm_fast.models.token_store import Tokens

_DTYPES = {
    "feedback": torch.int8,
    "preference": torch.int8,
    "weight": torch.float32,
    "propensity": torch.float32,
    "features": torch.float32,
    "row": torch.long,
}


class Rows(NamedTuple):
    """N rows, ready to be collated.

    Attributes:
        tokens: The token ids of all rows, one row after the other, (T,) int32.
        lengths: The number of tokens of each row, (N,) int64.
        columns: Everything else that the rows have, each a tensor (N, ...), by its name.
        margin: The margins of P pairs, (P,) float32, whose sides are the last 2P rows: chosen, rejected, chosen, ...;
            None if the rows belong to a data set without pairs.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    columns: Mapping[str, Tensor]
    margin: Tensor | None = None


class TokenizedRows(Dataset):
    """The rows of a log with their token ids, as arrays; whole batches are taken out by index.

    Args:
        input_ids: The token ids of N rows: `Tokens`, or an array for each.
        columns: Everything else that the rows have, each an array or tensor (N, ...), by its name: `feedback`,
            `preference`, `weight`, `propensity`, `features` or `row`.

    Attributes:
        tokens: The token ids.
        lengths: The number of tokens of each row, (N,) int64.
        sides: The number of the last rows that are sides of pairs, see `with_sides`.
        margin: The margin of each pair, (sides / 2,) float32; None where pairs are not taken out as such.

    Examples:
        >>> rows = TokenizedRows([np.array([5, 6]), np.array([7])], {"feedback": [[1], [0]]})
        >>> batch = Collator(pad_token_id=0)(rows.__getitems__([1, 0]))
        >>> batch["input_ids"].tolist()
        [[7, 0], [5, 6]]
        >>> batch["feedback"].tolist()
        [[0], [1]]
    """

    def __init__(self, input_ids: Tokens | Sequence[np.ndarray], columns: Mapping[str, Any] | None = None) -> None:
        self.tokens = input_ids if isinstance(input_ids, Tokens) else Tokens.of(input_ids)
        self.lengths = self.tokens.lengths
        self.columns = {name: torch.as_tensor(values, dtype=_DTYPES[name]) for name, values in (columns or {}).items()}
        self.sides = 0
        self.margin: Tensor | None = None

    @classmethod
    def from_log(cls, log: Log, input_ids: Tokens | Sequence[np.ndarray]) -> TokenizedRows:
        """The rows of a log, numbered from 0 in the column `row`.

        Args:
            log: The log, of N rows. Without weights every row gets 1.
            input_ids: The token ids of the rows, as of the class.
        """
        size = len(log)
        columns: dict[str, Any] = {
            # The loss takes no empty signal axis: explicit preferences alone get one that is always missing.
            "feedback": log.feedback if log.signals else np.full((size, 1), -1, dtype=np.int8),
            "row": np.arange(size),
            "preference": log.preference,
            "weight": np.ones(size, dtype=np.float32) if log.weight is None else log.weight,
        }
        for name in ("propensity", "features"):
            values = getattr(log, name)
            if values is not None and values.shape[1]:
                columns[name] = values
        return cls(input_ids, columns)

    def with_sides(self, input_ids: Tokens | Sequence[np.ndarray], margin: np.ndarray | None = None) -> TokenizedRows:
        """These rows, and after them the sides of P pairs: chosen, rejected, chosen, ...

        In the columns a side has nothing recorded and the weight 0, and else what the first row has.

        Args:
            input_ids: The token ids of the 2P sides.
            margin: The margin of each pair, (P,), for batches in which whole pairs follow all other rows; None for
                batches that take sides as rows.
        """
        size, count = len(self), len(input_ids)
        others = input_ids if isinstance(input_ids, Tokens) else Tokens.of(input_ids)
        result = TokenizedRows(self.tokens.followed_by(others))
        index = np.append(np.arange(size), np.zeros(count, np.int64))
        result.columns = {name: values[index] for name, values in self.columns.items()}
        for name, values in {"feedback": -1, "preference": -1, "weight": 0, "propensity": 0.5}.items():
            if name in result.columns:
                result.columns[name][size:] = values
        result.columns["row"] = torch.arange(size + count)
        result.sides = count
        result.margin = None if margin is None else torch.as_tensor(margin, dtype=torch.float32)
        return result

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, index: Sequence[int] | np.ndarray) -> Rows:
        """The rows of these numbers, in their order; torch's `DataLoader` asks so for a whole batch at once."""
        tokens = self.tokens[np.asarray(index, np.int64)]
        chosen = torch.as_tensor(index, dtype=torch.long)
        sides = chosen[chosen >= len(self) - self.sides] - (len(self) - self.sides)
        return Rows(
            tokens.gathered(),
            tokens.lengths,
            {name: values.index_select(0, chosen) for name, values in self.columns.items()},
            None if self.margin is None else self.margin[sides[::2] // 2],
        )

    def filler(self, row: int = 0) -> Rows:
        """One row for a batch of no rows: the last token of a row, with weight 0 and the number -1."""
        chosen = self.__getitems__([row])
        columns = {**chosen.columns, "weight": torch.zeros(1), "row": torch.full((1,), -1)}
        return Rows(chosen.tokens[-1:], np.ones(1, np.int64), columns, chosen.margin)


def stack_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Rows that were made one by one.

    Args:
        rows: Mappings with `input_ids`, the token ids of a row, and the columns of `TokenizedRows`, the same in each.
    """
    ids = [np.asarray(row["input_ids"]) for row in rows]
    names = [name for name in rows[0] if name in _DTYPES]
    columns = {name: torch.tensor([row[name] for row in rows], dtype=_DTYPES[name]) for name in names}
    return Rows(np.concatenate(ids), np.array([len(row) for row in ids], dtype=np.int64), columns)


class Collator:
    """Makes a batch of N rows, packed or padded on the right.

    A packed batch has `input_ids` and `position_ids` (1, T); the ends of the rows as flash attention takes them,
    `cu_seq_lens_q` and `cu_seq_lens_k`, each (N + 1,) int32; and the length of the longest row as the numbers
    `max_length_q` and `max_length_k`. A padded batch has `input_ids` and `attention_mask` (N, T). Both have the columns
    of the rows, each (N, ...), where there are pairs `margin` (P,) of those whose sides are the last 2P rows, and
    `counts`, the size of the batch (`Counts`).

    Args:
        pad_token_id: The token that fills rows up.
        packed: Whether rows stand one after the other, without padding.
        filler: The row that takes the place of no rows, since all processes have to take part in every pass; see
            `TokenizedRows.filler`.
    """

    def __init__(self, pad_token_id: int, *, packed: bool = False, filler: Rows | None = None) -> None:
        self.pad_token_id, self.packed, self.filler = pad_token_id, packed, filler

    def __call__(self, rows: Rows) -> dict[str, Any]:
        examples = len(rows.lengths)
        if not examples:
            assert self.filler is not None
            rows = self.filler
        batch = _pack(rows) if self.packed else _pad(rows, self.pad_token_id)
        batch |= rows.columns
        if rows.margin is not None:
            batch["margin"] = rows.margin
        # Numbers and not tensors: they stay on the host, and reading them waits for no device.
        tokens, slots = len(rows.tokens), batch["input_ids"].numel()
        pairs = 0 if rows.margin is None else len(rows.margin)
        batch["counts"] = Counts(examples, tokens, slots, int(np.square(rows.lengths).sum()), pairs)
        return batch


class Counts(NamedTuple):
    """The size of a batch.

    Attributes:
        examples: The number of rows, sides of pairs too, without fillers.
        tokens: The number of their tokens.
        slots: The number of tokens and of padding.
        squares: The sum of the squared lengths.
        pairs: The number of pairs.
    """

    examples: int
    tokens: int
    slots: int
    squares: int
    pairs: int = 0

    @property
    def rows(self) -> int:
        """The number of rows that are no sides of pairs."""
        return self.examples - 2 * self.pairs


def _pad(rows: Rows, pad_token_id: int) -> dict[str, Any]:
    mask = np.arange(rows.lengths.max()) < rows.lengths[:, None]
    input_ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    input_ids[mask] = rows.tokens
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def _pack(rows: Rows) -> dict[str, Any]:
    ends = np.concatenate([[0], rows.lengths.cumsum()])
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], rows.lengths)
    cu_seq_lens, longest = torch.from_numpy(ends.astype(np.int32)), int(rows.lengths.max())
    return {
        "input_ids": torch.from_numpy(rows.tokens.astype(np.int64))[None],
        "position_ids": torch.from_numpy(positions)[None],
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }
