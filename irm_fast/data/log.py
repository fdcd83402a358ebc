"""A log in memory: impressions with the feedback of several signals, and splitting it without leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.data.groups import Prompts, group_numbers, hold_out, number_prompts, numbered, prompt_key, session_numbers
from irm_fast.data.messages import Messages


@dataclass(frozen=True)
class Log:
    """N impressions, each a response that was shown to a user, with the feedback of K signals.

    What `read_log` returns holds its names and conversations in Arrow, as sequences that are equal to lists of the same
    values and make these when they are asked for (`data.texts`), so that a change of one is not kept: `replace(log,
    messages=[...])` has others. A log that is put together may hold lists.

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
            fields `platform`, `version`, `model` and `arm`, and the features that are texts.

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
        nearly all rows have, see `Prompts`.

        Args:
            apart: The share of the rows, in [0, 1], that must lie outside the largest group.

        Returns:
            Group numbers from 0, of shape (N,).
        """
        groups, parted, _ = self._grouped(apart)
        if parted:
            _warn_of_parted(parted, "groups")
        return groups

    def _grouped(self, apart: float) -> tuple[np.ndarray, list[str], Prompts]:
        """Return the numbers of `groups`, what may be in several of them (users, sessions, ...), and the prompts."""
        prompts = number_prompts(self.messages)
        return *self._parted(prompts, apart), prompts

    def _parted(self, prompts: Prompts, apart: float) -> tuple[np.ndarray, list[str]]:
        ties = {"conversations": prompts.conversations}
        if self.user_ids is not None:
            ties["users"] = numbered(self.user_ids)
        if self.session_ids is not None:
            ties["sessions"] = session_numbers(self.session_ids, self.user_ids)
        parted: list[str] = []
        turns = not np.array_equal(prompts.conversations, prompts.prompts)
        for name in ("users", "sessions", *(["conversations"] if turns else [])):
            if name in ties:
                groups = group_numbers(*ties.values())
                if len(groups) - np.bincount(groups).max() >= apart * len(groups):
                    return groups, parted
                del ties[name]
                parted.append(name)
        return group_numbers(prompts.prompts), parted

    def split(self, fraction: float, seed: int) -> tuple[Log, Log]:
        """Split the log at random into a training part and a held-out part.

        No conversation, no session and no user is in both parts, see `groups`. Where shared prompts tie so many rows
        together that less than half of the held-out rows could be found in that way, users may be in both parts, then
        sessions, then conversations, but never a prompt: a warning says so. Others say if nearly all rows have one
        prompt, so that its rows are in both parts (`Prompts`), and if the held-out part is less than half or more
        than twice as large as it was to be, because of groups that are too large.

        Args:
            fraction: The share of the rows to hold out, about, in (0, 1).
            seed: The seed of the draw.

        Returns:
            The training part and the held-out part, each with its rows in the order of the log.

        Raises:
            ValueError: The fraction is out of range, or all rows belong together.
        """
        groups, parted, prompts = self._grouped(apart=fraction / 2)
        held = hold_out(groups, fraction, seed)
        if not held.any():
            raise ValueError(
                f"cannot split {len(self)} rows: all belong together, as of one text; expected two or more groups; "
                "--validation-fraction 0 trains on all rows, without held-out ones to judge by"
            )
        remedy = "in Python, train_log(log, config, heldout=...) takes held-out rows of your choice"
        if parted:
            _warn_of_parted(parted, f"parts; {remedy}")
        if prompts.instruction is not None:
            self._warn_of_instruction(prompts.instruction, prompts.instructed, remedy)
        if not 0.5 <= held.sum() / max(1, round(fraction * len(self))) <= 2:
            text = (
                f"held out {held.sum()} of {len(self)} rows, where {fraction:.0%} were asked for: rows that must stay "
                f"together, of one prompt and such, form groups of up to {np.bincount(groups).max()}; {remedy}"
            )
            warn_caller(text)
        return self.subset(~held), self.subset(held)

    def _warn_of_instruction(self, row: int, count: int, remedy: str) -> None:
        """Warn that nearly all rows of a log that is split have one prompt, that of a row."""
        prompt = prompt_key(self.messages[row])
        shown = prompt[-1][1][:40] if prompt else ""
        warn_caller(
            f"{count} of {len(self)} rows have one prompt, {shown!r}: they are split by their responses, and "
            f"what is held out tells of other responses to this prompt; {remedy}"
        )


def _warn_of_parted(parted: Sequence[str], where: str) -> None:
    warn_caller(f"{' and '.join(parted)} share too many prompts to be parted: they may be in both {where}")
