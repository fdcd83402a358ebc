"""A log in memory: impressions with the feedback of several signals, and splitting it without leaks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from irm_fast.data.messages import Messages
from irm_fast.data.warning import warn_caller


@dataclass(frozen=True)
class Log:
    """N impressions, each a response that was shown to a user, with the feedback of K signals.

    What `read_log` returns holds its names and conversations in Arrow, as sequences that are equal to lists of the same
    values and make these when they are asked for (`data.texts`); a log that is put together may hold lists.

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

    ids: Sequence[str]
    messages: Sequence[Messages]
    signals: tuple[str, ...]
    polarity: tuple[int, ...]
    feedback: np.ndarray
    preference: np.ndarray
    weight: np.ndarray | None
    propensity: np.ndarray | None
    features: np.ndarray | None
    feature_names: tuple[str, ...]
    user_ids: Sequence[str | None] | None
    session_ids: Sequence[str | None] | None = None
    times: np.ndarray | None = None
    positions: np.ndarray | None = None
    label_probability: np.ndarray | None = None
    acted_at: np.ndarray | None = None
    segments: dict[str, Sequence[str | None]] = field(default_factory=dict)

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
        """Number the groups of rows that must not be parted, since to learn from one is to know of the others.

        Rows of one conversation are in one group, those of one session and those of one user: rows of one prompt, and
        of a prompt with which another row's messages begin, as at an earlier turn. A session's name counts within its
        user where several users have it. Popular prompts can tie most rows together in that way. Where fewer than
        `apart` of the rows lie outside the largest group, a user may be in several groups, which a warning says; if
        that is not enough, so may a session, and then a conversation, but never a prompt, but for an instruction that
        nearly all rows have, see `prompt_keys`.

        Args:
            apart: The share of the rows, in [0, 1], that must lie outside the largest group.

        Returns:
            Group numbers from 0, of shape (N,).
        """
        groups, parted = self._grouped(apart)
        if parted:
            _warn_of_parted(parted, "groups")
        return groups

    def _grouped(self, apart: float) -> tuple[np.ndarray, list[str]]:
        """Return the numbers of `groups`, and what may be in several of them: users, sessions, conversations."""
        prompts = prompt_keys(self.messages)
        conversations = conversation_keys(prompts)
        known = {"conversations": conversations, "users": self.user_ids, "sessions": self._sessions()}
        ties: dict[str, Sequence[Hashable | None]] = {name: names for name, names in known.items() if names}
        parted: list[str] = []
        for name in ("users", "sessions", *(["conversations"] if conversations != prompts else [])):
            if name in ties:
                groups = group_rows(*ties.values())
                if len(groups) - np.bincount(groups).max() >= apart * len(groups):
                    return groups, parted
                del ties[name]
                parted.append(name)
        return group_rows(prompts), parted

    def _sessions(self) -> list[Hashable | None] | None:
        """Return the session of each row, with its user where several users have one of this name."""
        if self.session_ids is None:
            return None
        named = list(zip(self.session_ids, self.user_ids or [None] * len(self), strict=True))
        owners = Counter(session for session, user in set(named) if user is not None)
        return [
            None if session is None else (session, user if owners[session] > 1 else None) for session, user in named
        ]

    def split(self, fraction: float, seed: int) -> tuple[Log, Log]:
        """Split the log at random into a training part and a held-out part.

        No conversation, no session and no user is in both parts, see `groups`. Where shared prompts tie so many rows
        together that less than half of the held-out rows could be found in that way, users may be in both parts, then
        sessions, then conversations, but never a prompt: a warning says so. Others say if nearly all rows have one
        prompt, so that its rows are in both parts (`prompt_keys`), and if the held-out part is less than half or more
        than twice as large as it was to be, because of groups that are too large.

        Args:
            fraction: The share of the rows to hold out, about, in (0, 1).
            seed: The seed of the draw.

        Returns:
            The training part and the held-out part, each with its rows in the order of the log.

        Raises:
            ValueError: The fraction is out of range, or all rows belong together.
        """
        groups, parted = self._grouped(apart=fraction / 2)
        held = hold_out(groups, fraction, seed)
        if not held.any():
            raise ValueError(
                f"cannot split {len(self)} rows: all belong together, as of one text; expected two or more groups; "
                "--validation-fraction 0 trains on all rows, without held-out ones to judge by"
            )
        remedy = "in Python, train_log(log, config, heldout=...) takes held-out rows of your choice"
        if parted:
            _warn_of_parted(parted, f"parts; {remedy}")
        _warn_of_instruction(self.messages, remedy)
        if not 0.5 <= held.sum() / max(1, round(fraction * len(self))) <= 2:
            text = (
                f"held out {held.sum()} of {len(self)} rows, where {fraction:.0%} were asked for: rows that must stay "
                f"together, of one prompt and such, form groups of up to {np.bincount(groups).max()}; {remedy}"
            )
            warn_caller(text)
        return self.subset(~held), self.subset(held)


def _warn_of_parted(parted: Sequence[str], where: str) -> None:
    warn_caller(f"{' and '.join(parted)} share too many prompts to be parted: they may be in both {where}")


def _warn_of_instruction(conversations: Sequence[Messages], remedy: str) -> None:
    """Warn if nearly all rows of a log that is split have one prompt."""
    prompt, count = Counter(map(prompt_key, conversations)).most_common(1)[0]
    if is_instruction(count, len(conversations)):
        shown = prompt[-1][1][:40] if prompt else ""
        warn_caller(
            f"{count} of {len(conversations)} rows have one prompt, {shown!r}: they are split by their responses, and "
            f"what is held out tells of other responses to this prompt; {remedy}"
        )


INSTRUCTION = 0.9  # a prompt of more rows than this share is an instruction


def is_instruction(count: int, rows: int) -> bool:
    """Return whether a prompt is one that nearly all rows have: the fixed instruction of a product with one task."""
    return rows > 1 and count > INSTRUCTION * rows


def prompt_keys(conversations: Sequence[Messages]) -> list[tuple[tuple[str, str], ...]]:
    """Return what rows that belong together have in common: the prompt, but for an instruction the whole text.

    An instruction that nearly all rows have (`is_instruction`) says nothing of the response, and would leave no rows to
    hold out.

    Args:
        conversations: N conversations.
    """
    prompts = [prompt_key(messages) for messages in conversations]
    counts = Counter(prompts)
    return [
        (*prompt, (messages[-1]["role"], messages[-1]["content"]))
        if is_instruction(counts[prompt], len(prompts))
        else prompt
        for prompt, messages in zip(prompts, conversations, strict=True)
    ]


def conversation_keys(prompts: Sequence[tuple[tuple[str, str], ...]]) -> list[tuple[tuple[str, str], ...]]:
    """Return for each prompt the shortest of all prompts with which it begins: the earliest known turn.

    Args:
        prompts: N prompts, by `prompt_key`. A beginning is one that ends with the user's turn: a system's turn alone is
            shared by conversations that have nothing else in common.

    Examples:
        >>> first, later = (("user", "Hi"),), (("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?"))
        >>> conversation_keys([later, first]) == [first, first]
        True
    """
    asked = {prompt for prompt in prompts if prompt and prompt[-1][0] == "user"}
    starts = ((prompt[:turns] for turns in range(1, len(prompt))) for prompt in prompts)
    return [next(filter(asked.__contains__, begun), prompt) for begun, prompt in zip(starts, prompts, strict=True)]


def prompt_key(messages: Messages) -> tuple[tuple[str, str], ...]:
    """Return the turns before the response, which two responses to one prompt have in common."""
    return tuple(turn_key(turn) for turn in messages[:-1])


def turn_key(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Return the role of a turn and all that it says, calls of tools too."""
    if len(turn) == 2:
        return turn["role"], turn["content"]
    return turn["role"], json.dumps({**turn, "name": None}, sort_keys=True)


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
