"""Forward passes over many rows, without gradients: by a budget of tokens, in a precision, on one device or several."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.data.telling import quiet
from irm_fast.models import Precision
from irm_fast.models.batches import Collator, TokenizedRows
from irm_fast.models.packing import by_length
from irm_fast.models.processes import is_first, share

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

_TOKENS = 16_384  # of a pass by default
_TOKENS_ON_CPU = 2_048  # whose caches are small


@dataclass(frozen=True)
class Passes:
    """How rows go through a model.

    Attributes:
        batch_size: The number of rows of a forward pass, at most. None: no limit.
        token_budget: The number of tokens of a forward pass, at most, padding included. A row that is longer goes
            through alone. None: 16,384 on a GPU, and 2,048 on a CPU.
        distributed: Whether all processes of a torchrun share the rows. All of them have to ask for the same rows then,
            and get the results of all.
        progress: Whether to show a progress bar on stderr, if that is a terminal.
        done: Called after each pass with the number of its rows, in the place of a bar. None calls nothing.
    """

    batch_size: int | None = None
    token_budget: int | None = None
    distributed: bool = False
    progress: bool = False
    done: Callable[[int], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "token_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}; expected 1 or more")

    def tokenise(
        self,
        conversations: Sequence[Messages],
        tokenise: Callable[[Sequence[Messages]], tuple[Sequence[np.ndarray], int]],
    ) -> tuple[list[np.ndarray], int]:
        """Tokenise conversations, each process its part.

        Args:
            conversations: N conversations.
            tokenise: A function that returns the token ids of conversations, and how many of them lost tokens.

        Returns:
            The token ids of each conversation, and how many of them lost tokens.
        """
        sizes = np.array([sum(len(turn["content"]) for turn in row) for row in conversations], dtype=np.int64)
        ids: list[Any] = [None] * len(conversations)
        truncated = 0
        parts = share(sizes, lambda rows: tokenise([conversations[i] for i in rows]), distributed=self.distributed)
        for rows, (part, longer) in parts:
            truncated += longer
            for row, tokens in zip(rows, part, strict=True):
                ids[row] = tokens
        return ids, truncated

    def run(
        self,
        rows: TokenizedRows,
        collate: Collator,
        device: torch.device,
        compute: Callable[[dict[str, Any]], Sequence[Tensor]],
    ) -> list[np.ndarray]:
        """Take rows through a model, those of similar length together, the longest first.

        Nothing waits for the device before the last pass is on its way.

        Args:
            rows: N rows, at least one.
            collate: What makes a batch of rows, packed or padded as the model takes them.
            device: The device of the model.
            compute: A function that returns the results of a batch (without `counts`), each of shape (n, ...).

        Returns:
            The results of all rows, float32, each of shape (N, ...), in the order of the rows.

        Raises:
            RuntimeError: A pass does not fit into the memory of the GPU.
        """
        default = _TOKENS_ON_CPU if device.type == "cpu" else _TOKENS
        packs = self._packs(rows.lengths, self.token_budget or default)
        found = share(
            np.array([rows.lengths[pack].sum() for pack in packs]),
            lambda chosen: self._run_packs(rows, [packs[i] for i in chosen], collate, device, compute),
            distributed=self.distributed,
        )
        columns = []
        for parts in zip(*(columns for _, (_, columns) in found), strict=True):
            whole = np.empty((len(rows), *parts[0].shape[1:]), dtype=np.float32)
            for (_, (order, _)), part in zip(found, parts, strict=True):
                whole[order] = part
            columns.append(whole)
        return columns

    @torch.no_grad()
    def _run_packs(
        self,
        rows: TokenizedRows,
        packs: Sequence[np.ndarray],
        collate: Collator,
        device: torch.device,
        compute: Callable[[dict[str, Any]], Sequence[Tensor]],
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Take packs of rows through a model: the numbers of these rows, (n,), and the results, each (n, ...)."""
        order = np.concatenate(packs)
        results = []
        with self._reporting(len(order)) as done:
            for pack in packs:
                batch = collate(rows.__getitems__(pack))
                slots = batch.pop("counts").slots
                try:
                    results.append(compute(moved(batch, device)))
                except torch.OutOfMemoryError as error:
                    rows_text = f"{len(pack)} rows" if len(pack) > 1 else "1 row"
                    smaller = f"a token budget (--token-budget) below {slots}" if len(pack) > 1 else "shorter rows"
                    raise RuntimeError(
                        f"a forward pass of {rows_text} and {slots} tokens does not fit into the GPU's memory; "
                        f"expected {smaller}, or bfloat16 (--precision) where it is float32"
                    ) from error
                done(len(pack))
            columns = [torch.cat(parts).float().cpu().numpy() for parts in zip(*results, strict=True)]
        return order, columns

    def _packs(self, lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
        """The rows of each pass, the longest first, given the lengths of all (N,) and the budget.

        They do not depend on the number of processes, so that the results are the same, bit by bit.
        """
        long = lengths > tokens
        alone, rest = np.flatnonzero(long), np.flatnonzero(~long)
        alone = alone[np.argsort(-lengths[alone], kind="stable")]
        packs = by_length(lengths[rest], rows=self.batch_size, tokens=tokens)
        return [np.array([row]) for row in alone] + [rest[pack] for pack in packs]

    @contextmanager
    def _reporting(self, total: int) -> Iterator[Callable[[int], Any]]:
        """What to call after each pass: `done`, or the update of a new bar of so many rows."""
        if self.done is not None:
            yield self.done
            return
        with rows_bar(total, self.progress) as bar:
            yield bar.update


def rows_bar(total: int, progress: bool) -> Any:
    """A progress bar of rows on stderr: only where that is a terminal, in the first process, and if it is wanted."""
    from tqdm.auto import tqdm

    return tqdm(
        total=total, unit="rows", disable=None if progress and is_first() and not quiet() else True, file=sys.stderr
    )


def moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on a device; it gets to a GPU from pinned memory, so that nothing waits."""
    pin = device.type == "cuda"
    return {
        name: (value.pin_memory() if pin else value).to(device, non_blocking=True)
        if isinstance(value, Tensor)
        else value
        for name, value in batch.items()
    }


def default_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def resolve_precision(precision: str, device: torch.device) -> Literal["float32", "bfloat16"]:
    """The precision to compute in: of "auto", bfloat16 on GPUs that have it, and float32 elsewhere.

    Raises:
        ValueError: The precision is none of auto, float32 and bfloat16.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision: got {precision!r}; expected one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast else "float32"
    return precision  # type: ignore[return-value]


def place(module: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Move a module to a device, its weights in a precision; no other copy of them comes to the device.

    Buffers keep their dtype, such as the frequencies of rotary positions, which in bfloat16 would be other positions,
    and so do weights of which the model says that they are for float32 alone.

    Args:
        module: The module.
        device: The device.
        dtype: The precision of the weights.
    """
    kept = [
        re.escape(name)
        for part in module.modules()
        for name in getattr(part, "_keep_in_fp32_modules_strict", None) or ()
    ]
    exact = re.compile("|".join(rf"(^|\.){name}($|\.)" for name in kept) or "(?!)")
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and not exact.search(name):
            weight.data = weight.data.to(dtype)  # where it is now: the copy that moves is the small one
    module.to(device)
