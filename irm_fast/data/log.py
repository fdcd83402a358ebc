"""A log in memory: impressions with the feedback of several signals, and splitting it without leaks."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from irm_fast.data.rows import Messages


@dataclass(frozen=True)
class Log:
    """N impressions, each a response that was shown to a user, with the feedback of K signals.

    Attributes:
        ids: N unique names.
        messages: N conversations; the last turn of each is the assistant's response.
        signals: The names of the K signals, in the order of their first appearance; none where every row has an
            explicit preference instead.
        polarity: For each signal +1 if users give it when a response pleases them, as a copy, or -1 if they give it
            when a response displeases them, as a thumbs-down.
        feedback: Integers (int8) of shape (N, K): 1 the user acted, 0 the user could have acted and did not, -1 it is
            missing, which says nothing.
        preference: Integers (int8) of shape (N,), from labels: 1 the response was preferred, 0 it was not, -1 unknown.
        weight: The weight of each row (float32) of shape (N,), 1 where the row gives none; None if no row gives one.
        propensity: Known propensities in (0, 1] (float32) of shape (N, K), NaN where a row gives none; None if no row
            gives one.
        features: Numbers (float32) of shape (N, F) that the propensities may depend on, or None.
        feature_names: The names of the F features.
        user_ids: The user of each row, None where unknown; None if all are unknown.
        session_ids: The session of each row, as `user_ids`.
        times: When each response was shown (float64), in seconds since 1970, of shape (N,), NaN where unknown; None if
            no row gives one.
        positions: Places on the page or in the session (float64) of shape (N,), NaN where unknown; None if no row gives
            one.
        label_probability: The probability in (0, 1] with which each row was drawn for labelling (float64), of shape
            (N,), NaN where not given; None if no row gives one.
        acted_at: When each signal acted (float64), in seconds since 1970, of shape (N, K), NaN where it did not or the
            row does not say; None if no row gives one.
        segments: Categories of the rows by name, such as the platform: N texts each, None where unknown. They are the
            fields `platform`, `version` and `model`, and the features that are texts.

    Examples:
        >>> from irm_fast import read_log
        >>> log = read_log("log.jsonl")  # doctest: +SKIP
        >>> train, held_out = log.split(0.1, seed=0)  # doctest: +SKIP
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
    session_ids: list[str | None] | None = None
    times: np.ndarray | None = None
    positions: np.ndarray | None = None
    label_probability: np.ndarray | None = None
    acted_at: np.ndarray | None = None
    segments: dict[str, list[str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, index: np.ndarray) -> Log:
        """Return the rows that an index selects: row numbers, or a mask of shape (N,)."""
        rows = np.arange(len(self))[index]

        def of(values: Any) -> Any:
            """Return these rows of a list or an array, if there is one."""
            return [values[i] for i in rows] if isinstance(values, list) else None if values is None else values[rows]

        return replace(
            self,
            ids=of(self.ids),
            messages=of(self.messages),
            feedback=of(self.feedback),
            preference=of(self.preference),
            weight=of(self.weight),
            propensity=of(self.propensity),
            features=of(self.features),
            user_ids=of(self.user_ids),
            session_ids=of(self.session_ids),
            times=of(self.times),
            positions=of(self.positions),
            label_probability=of(self.label_probability),
            acted_at=of(self.acted_at),
            segments={name: of(values) for name, values in self.segments.items()},
        )

    def groups(self, apart: float = 0.5) -> np.ndarray:
        """Number the groups of rows that must not be parted, so that no prompt and no user is on two sides.

        Rows of one prompt or of one user are in one group; where the user is unknown, rows of one session are. Popular
        prompts can tie most rows together in that way: where fewer than `apart` of the rows lie outside the largest
        group, rows of one prompt are in one group, and a user may be in several.

        Args:
            apart: The share of the rows, in [0, 1], that must lie outside the largest group.

        Returns:
            Group numbers from 0, of shape (N,).
        """
        return self._grouped(apart)[0]

    def _grouped(self, apart: float) -> tuple[np.ndarray, bool]:
        """Return the numbers of `groups`, and whether every user is in one group."""
        prompts = [prompt_key(messages) for messages in self.messages]
        if people := self._people():
            groups = group_rows(prompts, people)
            if len(groups) - np.bincount(groups).max() >= apart * len(groups):
                return groups, True
        return group_rows(prompts), not people

    def _people(self) -> Sequence[Hashable | None] | None:
        """Return the user of each row, or where unknown the session, None where both are; None if all are unknown."""
        if self.session_ids is None:
            return self.user_ids
        users = self.user_ids or [None] * len(self)
        # A session is that of one user, but its name may be known within the user alone
        return [
            ("user", user) if user is not None else None if session is None else ("session", session)
            for user, session in zip(users, self.session_ids, strict=True)
        ]

    def split(self, fraction: float, seed: int) -> tuple[Log, Log]:
        """Split the log at random into a training part and a held-out part.

        No prompt is in both parts, and no user. Where shared prompts tie so many users together that less than half of
        the held-out rows could be found in that way, a user may be in both parts: a warning says so. See `groups`.

        Args:
            fraction: The share of the rows to hold out, about, in (0, 1).
            seed: The seed of the draw.

        Returns:
            The training part and the held-out part, each with its rows in the order of the log.

        Raises:
            ValueError: The fraction is out of range, or all rows share one prompt.
        """
        groups, users_together = self._grouped(apart=fraction / 2)
        held = hold_out(groups, fraction, seed)
        if not users_together:
            warnings.warn("users share too many prompts to be parted; split by prompt alone", stacklevel=2)
        if not held.any():
            raise ValueError(f"cannot split {len(self)} rows: they share one prompt; expected two or more")
        return self.subset(~held), self.subset(held)


def prompt_key(messages: Messages) -> tuple[tuple[str, str], ...]:
    """Return the turns before the response, which two responses to one prompt have in common."""
    return tuple((turn["role"], turn["content"]) for turn in messages[:-1])


NO_NAME = -1


def numbered(names: Sequence[Hashable | None] | np.ndarray) -> np.ndarray:
    """Number names, of users, sessions or prompts; a row without a name has no number.

    Where such a row counts as one that shares with no other, use `group_rows`.

    Args:
        names: N names, None where unknown.

    Returns:
        Numbers from 0 in the order of first appearance, and `NO_NAME` for None, of shape (N,).

    Examples:
        >>> numbered(["b", None, "a", "b"]).tolist()
        [0, -1, 1, 0]
    """
    known: dict[Hashable, int] = {}
    return np.array([NO_NAME if name is None else known.setdefault(name, len(known)) for name in names], np.int64)


def group_rows(*columns: Sequence[Hashable | None]) -> np.ndarray:
    """Number the groups of rows that share an entry of any column, directly or by way of other rows.

    Args:
        columns: Sequences of N entries; None is shared with no other row.

    Returns:
        Group numbers from 0, of shape (N,).

    Examples:
        >>> group_rows(["a", "a", "b", "c"], [None, "user 1", "user 1", None]).tolist()
        [0, 0, 0, 1]
    """
    if len(columns) == 1:
        return numbered([(None, row) if name is None else name for row, name in enumerate(columns[0])])
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
    numbers: np.ndarray = np.unique([root(i) for i in range(len(parent))], return_inverse=True)[1]
    return numbers


def hold_out(groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw whole groups at random, up to a fraction of the rows.

    Of two groups or more, at least one is drawn and one is left.

    Args:
        groups: Group numbers from 0, of shape (N,).
        fraction: The share of the rows to draw, in (0, 1).
        seed: The seed of the draw.

    Returns:
        A mask of shape (N,): True for the rows that are drawn.

    Raises:
        ValueError: The fraction is out of range.
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
    held: np.ndarray = drawn[groups]
    return held
