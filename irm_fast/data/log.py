"""A log in memory: impressions with the feedback of several signals, and parting them without leaks."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from irm_fast.data.rows import Messages


@dataclass(frozen=True)
class Log:
    """N impressions with the feedback of K signals.

    ids: N unique names.  messages: N conversations, the last turn of each the assistant's completion.
    signals: K names in the order of their first appearance; none if every row has a preference instead.
    polarity: K of +1 (the signal is caused by pleasure) or -1 (by displeasure).
    feedback: (N, K) int8, 1 acted, 0 silent, -1 missing.  preference: (N,) int8, 1, 0, or -1 unknown.
    weight: (N,) float32, 1 where not given, or None.
    propensity: (N, K) float32 in (0, 1], NaN where not given, or None.
    features: (N, F) float32, or None.  feature_names: F names.  user_ids: N names or None, or None at all.
    """

    ids: list[str]
    messages: list[Messages]
    signals: tuple[str, ...]
    polarity: tuple[int, ...]
    feedback: np.ndarray
    preference: np.ndarray
    weight: np.ndarray | None
    propensity: np.ndarray | None
    features: np.ndarray | None
    feature_names: tuple[str, ...]
    user_ids: list[str | None] | None

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, index: np.ndarray) -> Log:
        """The rows that `index` selects: integers or a boolean mask."""
        rows = np.arange(len(self))[index]
        return Log(
            ids=[self.ids[i] for i in rows],
            messages=[self.messages[i] for i in rows],
            signals=self.signals,
            polarity=self.polarity,
            feedback=self.feedback[rows],
            preference=self.preference[rows],
            weight=None if self.weight is None else self.weight[rows],
            propensity=None if self.propensity is None else self.propensity[rows],
            features=None if self.features is None else self.features[rows],
            feature_names=self.feature_names,
            user_ids=None if self.user_ids is None else [self.user_ids[i] for i in rows],
        )

    def split(self, fraction: float, seed: int) -> tuple[Log, Log]:
        """(train, held-out), about `fraction` of the rows held out; one prompt or user stays on one side.

        Where shared prompts tie so many users together that less than half of that can be held out, users may
        fall on both sides: a warning says so. Raises ValueError where even the prompts cannot be parted.
        """
        prompts = [prompt_key(messages) for messages in self.messages]
        held = hold_out(group_rows(prompts, self.user_ids or []), fraction, seed)
        if self.user_ids and held.sum() < fraction * len(self) / 2:
            warnings.warn("users share too many prompts to be parted; split by prompt alone", stacklevel=2)
            held = hold_out(group_rows(prompts), fraction, seed)
        if not held.any():
            raise ValueError(f"cannot split {len(self)} rows: they share one prompt; expected two or more")
        return self.subset(~held), self.subset(held)


def prompt_key(messages: Messages) -> tuple[tuple[str, str], ...]:
    """What two conversations have in common if only the last turn differs."""
    return tuple((turn["role"], turn["content"]) for turn in messages[:-1])


def group_rows(*columns: Sequence[Hashable | None]) -> np.ndarray:
    """(N,) group numbers from 0: rows that share an entry of any column, not None, are in one group."""
    parent = list(range(max(map(len, columns))))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for column in columns:
        first: dict[Hashable, int] = {}
        for i, entry in enumerate(column):
            if entry is not None:
                parent[root(i)] = root(first.setdefault(entry, i))
    return np.unique([root(i) for i in range(len(parent))], return_inverse=True)[1]


def hold_out(groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) bool: whole groups drawn at random, up to `fraction` of the rows.

    Of two groups or more, at least one is drawn and one is left. Raises ValueError for a fraction
    outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: got {fraction}; expected a number between 0 and 1")
    sizes = np.bincount(groups)
    drawn = np.zeros(len(sizes), bool)
    room = round(fraction * len(groups))
    order = np.random.default_rng(seed).permutation(len(sizes))
    for group in order:
        if sizes[group] <= room:
            drawn[group] = True
            room -= sizes[group]
    if len(sizes) > 1 and not drawn.any():
        drawn[order[np.argmin(sizes[order])]] = True
    if len(sizes) > 1 and drawn.all():
        drawn[order[-1]] = False
    return drawn[groups]


def row_groups(log: Log) -> np.ndarray:
    """(N,) group numbers: one prompt or user in one group; prompts alone where those tie most rows together."""
    prompts = [prompt_key(messages) for messages in log.messages]
    groups = group_rows(prompts, log.user_ids or [])
    return groups if np.bincount(groups).max() <= len(groups) / 2 else group_rows(prompts)
