"""Pairs of a chosen and a rejected response, to train on beside a log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irm_fast.data.groups import NO_NAME, group_numbers, hold_out, number_prompts
from irm_fast.data.joined import Joined
from irm_fast.data.log import Log
from irm_fast.data.messages import Messages
from irm_fast.data.problems import Problems
from irm_fast.data.rated import warn_of_left_out
from irm_fast.data.ratings import pair_row
from irm_fast.data.reading.sources import Given, Source, read_rows
from irm_fast.data.rows import check_ids


@dataclass(frozen=True)
class Pairs:
    """P pairs of conversations, the response of one preferred to that of the other.

    Attributes:
        ids: P unique names.
        chosen: P conversations; the last turn of each is the preferred response.
        rejected: P conversations that end with the other response.
        margin: By how much the reward of the chosen response is to be higher, in logits (float32), of shape (P,), 0
            where not given.
    """

    ids: list[str]
    chosen: list[Messages]
    rejected: list[Messages]
    margin: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sides(self) -> list[Messages]:
        """The 2P conversations: chosen and rejected of the first pair, of the second, ..."""
        return [side for pair in zip(self.chosen, self.rejected, strict=True) for side in pair]

    def subset(self, index: np.ndarray) -> Pairs:
        """Return the pairs that an index selects: numbers, or a mask of shape (P,)."""
        numbers = np.arange(len(self))[index]
        return Pairs(
            ids=[self.ids[i] for i in numbers],
            chosen=[self.chosen[i] for i in numbers],
            rejected=[self.rejected[i] for i in numbers],
            margin=self.margin[numbers],
        )

    def split(self, log: Log, heldout: Log, fraction: float, seed: int) -> tuple[Pairs, Pairs]:
        """Split the pairs beside a log that was split.

        Pairs of a conversation of the held-out part are held out, see `Log.groups`. Those of a conversation of the
        training part alone are not. Others are drawn, whole conversations at a time, until the share is reached.

        Args:
            log: The training part.
            heldout: The held-out part.
            fraction: The share of the pairs to hold out, about, in [0, 1).
            seed: The seed of the draw.

        Returns:
            The pairs to train on, and the pairs that are held out, each in their order; either may be empty.
        """
        rows = len(log) + len(heldout)
        texts = Joined([log.messages, heldout.messages, self.chosen, self.rejected])
        first, second = np.split(number_prompts(texts).conversations, [rows + len(self)])
        groups = group_numbers(first, np.append(np.full(rows, NO_NAME), second))
        training, held_out, own = np.split(groups, [len(log), rows])
        held = np.isin(own, held_out)
        free = np.flatnonzero(~held & ~np.isin(own, training))
        room = round(fraction * len(self)) - held.sum()
        if 0 < room < len(free):
            free = free[hold_out(np.unique(own[free], return_inverse=True)[1], room / len(free), seed)]
        if room > 0:
            held[free] = True
        return self.subset(~held), self.subset(held)


def read_pairs(source: Given) -> Pairs:
    """Read pairs of a chosen and a rejected response.

    A row holds `chosen` and `rejected`, with or without a separate `prompt`: lists of messages, or texts, without a
    prompt in the layout of hh-rlhf, "\\n\\nHuman: ...\\n\\nAssistant: ...". It may have an `id`, and a `margin` of 0 or
    more. Pairs in which a response is empty, or both sides are the same, are left out with a warning.

    Args:
        source: A file, several, or rows in memory, as of `read_log`.

    Returns:
        The pairs, in the order of the source.

    Raises:
        DataError: All that is wrong with it, by file, line and field.
    """
    source = Source.of(source)
    problems = Problems(source)
    parsed = [pair for line, raw in read_rows(source, problems) if (pair := pair_row(line, raw, problems))]
    rows = [pair for pair in parsed if pair.chosen != pair.rejected]
    if not rows and not problems.total:
        problems.add(None, "file", "no usable pair; expected at least one")
    check_ids([(pair.line, pair.id) for pair in rows], problems)
    problems.raise_if_any()
    problems.warn_of_notes()
    warn_of_left_out(problems)
    problems.left_out = [pair.line for pair in parsed if pair.chosen == pair.rejected]
    warn_of_left_out(problems, "both responses are the same")
    return Pairs(
        ids=[pair.id for pair in rows],
        chosen=[pair.chosen for pair in rows],
        rejected=[pair.rejected for pair in rows],
        margin=np.array([pair.margin for pair in rows], np.float32),
    )
