"""Rows that belong together: of one prompt, one conversation, one user, one session. Names become numbers first."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from irm_fast.data.joined import Joined
from irm_fast.data.messages import Messages
from irm_fast.data.texts import Names

NO_NAME = -1
INSTRUCTION = 0.9  # a prompt of more rows than this share is an instruction


def is_instruction(count: int, rows: int) -> bool:
    """Return whether a prompt is one that nearly all rows have: the fixed instruction of a product with one task."""
    return rows > 1 and count > INSTRUCTION * rows


def prompt_key(messages: Messages) -> tuple[tuple[str, str], ...]:
    """Return the turns before the response, which two responses to one prompt have in common."""
    return tuple(turn_key(turn) for turn in messages[:-1])


def prompt_numbers(conversations: Sequence[Messages]) -> np.ndarray:
    """Number the prompts of N conversations, (N,) from 0; an instruction that all have is one, as of any other.

    Where rows are held out, and so an instruction says nothing of a row, use `number_prompts`.
    """
    return numbered([prompt_key(messages) for messages in conversations])


def turn_key(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Return the role of a turn and all that it says, calls of tools too."""
    if len(turn) == 2:
        return turn["role"], turn["content"]
    return turn["role"], json.dumps({**turn, "name": None}, sort_keys=True)


class Prompts(NamedTuple):
    """What N rows that belong together have in common, as numbers, (N,) int64.

    Attributes:
        prompts: The prompt of each row, but for an instruction the whole text: an instruction that nearly all rows
            have (`is_instruction`) says nothing of the response, and would leave no rows to hold out.
        conversations: The shortest of all prompts with which the prompt of a row begins: the earliest known turn. A
            beginning is a prompt that ends with the user's turn: a system's turn alone is shared by conversations that
            have nothing else in common.
        instruction: A row of an instruction, or None if there is none.
        instructed: The number of rows that have it.
    """

    prompts: np.ndarray
    conversations: np.ndarray
    instruction: int | None
    instructed: int


def number_prompts(conversations: Sequence[Messages]) -> Prompts:
    """Number the prompts of N conversations.

    Of a text 8 bytes of BLAKE2b are kept: of ten million prompts two are taken for one with a probability below 3e-6.

    Args:
        conversations: The conversations, each of which is asked for once.

    Examples:
        >>> first, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}
        >>> later = [first, answer, {"role": "user", "content": "Why?"}, answer]
        >>> found = number_prompts([later, [first, answer]])
        >>> found.prompts.tolist(), found.conversations.tolist()
        ([0, 1], [1, 1])
    """
    own, whole, asked = array("q"), array("q"), array("b")  # a number and a flag for each row
    begun, ends = array("q"), array("q", [0])  # the beginnings of all prompts, and where those of each row end
    for messages in conversations:
        digest, number = hashlib.blake2b(digest_size=8), 0
        for earlier, turn in enumerate(messages[:-1]):
            if earlier:
                begun.append(number)
            digest.update(json.dumps(turn_key(turn)).encode())
            number = _number(digest)
        own.append(number)
        asked.append(len(messages) > 1 and messages[-2]["role"] == "user")
        digest.update(json.dumps([messages[-1]["role"], messages[-1]["content"]]).encode())
        whole.append(_number(digest))
        ends.append(len(begun))
    return _numbered_prompts(*(np.asarray(values) for values in (own, whole, asked, begun, ends)))


def _number(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "little", signed=True)


def _numbered_prompts(
    own: np.ndarray, whole: np.ndarray, asked: np.ndarray, begun: np.ndarray, ends: np.ndarray
) -> Prompts:
    """Number prompts by their hashes, see `number_prompts`."""
    # An instruction, which the whole text stands for
    instruction, count = None, 0
    if len(own):
        values, counts = np.unique(own, return_counts=True)
        most = int(counts.argmax())
        count = int(counts[most])
        if is_instruction(count, len(own)):
            rows = own == values[most]
            instruction = int(np.flatnonzero(rows)[0])
            own, asked = np.where(rows, whole, own), np.where(rows, 0, asked)

    # The first beginning of each row that is a prompt by itself
    first = own.copy()
    known = np.flatnonzero(np.isin(begun, own[asked == 1]))
    row = np.searchsorted(ends, known, side="right") - 1
    rows_begun, places = np.unique(row, return_index=True)
    first[rows_begun] = begun[known[places]]
    both = numbered(np.concatenate([own, first]))
    return Prompts(both[: len(own)], both[len(own) :], instruction, count if instruction is not None else 0)


def numbered(names: Sequence[Hashable | None] | np.ndarray) -> np.ndarray:
    """Number names, of users, sessions or prompts; a row without a name has no number.

    Where such a row counts as one that shares with no other, use `group_rows`.

    Args:
        names: N names, None where unknown; or whole numbers (N,).

    Returns:
        Numbers from 0 in the order of first appearance, and `NO_NAME` for None, of shape (N,).

    Examples:
        >>> numbered(["b", None, "a", "b"]).tolist()
        [0, -1, 1, 0]
    """
    if isinstance(names, np.ndarray) and names.dtype.kind in "iu":
        return _by_appearance(names)
    held = names.parts if isinstance(names, Joined) else [names]
    if held and all(isinstance(part, Names) for part in held):
        import pyarrow

        columns = [part.column() for part in held]  # type: ignore[union-attr]
        if len({column.type for column in columns}) > 1:  # of logs that were read in different ways
            columns = [column.cast(pyarrow.string()) for column in columns]
        chunks = [chunk for column in columns for chunk in column.chunks]
        parts = pyarrow.chunked_array(chunks, columns[0].type).dictionary_encode().unify_dictionaries().chunks
        codes = np.concatenate([np.empty(0, np.int64), *(part.indices.fill_null(NO_NAME).to_numpy() for part in parts)])
        named = codes >= 0
        codes[named] = _by_appearance(codes[named])  # a part of a log has the codes of all of it
        return codes
    known: dict[Hashable, int] = {}
    return np.array([NO_NAME if name is None else known.setdefault(name, len(known)) for name in names], np.int64)


def _by_appearance(values: np.ndarray) -> np.ndarray:
    """Number whole numbers (N,) from 0 in the order of first appearance."""
    _, first, codes = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    found: np.ndarray = rank[codes]
    return found


def group_rows(*columns: Sequence[Hashable | None] | np.ndarray) -> np.ndarray:
    """Number the groups of rows that share an entry of any column, directly or by way of other rows.

    Args:
        columns: Sequences of N entries; None is shared with no other row.

    Returns:
        Group numbers from 0, of shape (N,).

    Examples:
        >>> group_rows(["a", "a", "b", "c"], [None, "user 1", "user 1", None]).tolist()
        [0, 0, 0, 1]
    """
    return group_numbers(*map(numbered, columns))


def user_or_prompt(users: Sequence[str | None] | None, prompts: np.ndarray) -> np.ndarray:
    """Number the users of N rows; a row whose user is unknown belongs to its prompt.

    Args:
        users: The user of each row, None where unknown; None if all are unknown.
        prompts: Numbers from 0, (N,), equal for rows of one prompt.

    Returns:
        Group numbers from 0, of shape (N,).

    Examples:
        >>> user_or_prompt([None, "a", None, "a"], np.array([0, 0, 0, 1])).tolist()
        [0, 1, 0, 1]
    """
    if users is None:
        return _by_appearance(prompts)
    user = numbered(users)
    return _by_appearance(np.where(user == NO_NAME, user.max(initial=NO_NAME) + 1 + prompts, user))


def group_numbers(*numbers: np.ndarray) -> np.ndarray:
    """Do what `group_rows` does of columns that are numbers already.

    Args:
        numbers: Numbers (N,) from 0, and `NO_NAME`, which is shared with no other row.

    Returns:
        Group numbers from 0, of shape (N,).
    """
    if len(numbers) == 1:
        [codes] = numbers
        alone = np.flatnonzero(codes < 0)
        codes = codes.copy()
        codes[alone] = codes.max(initial=0) + 1 + np.arange(len(alone))
        return _by_appearance(codes)
    parent = array("q", range(max(map(len, numbers))))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for codes in numbers:
        _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        earliest = first[inverse]
        later = np.flatnonzero((codes >= 0) & (earliest != np.arange(len(codes))))
        for start in range(0, len(later), 2**16):  # as numbers of Python, which are large
            some = later[start : start + 2**16]
            for i, other in zip(some.tolist(), earliest[some].tolist(), strict=True):
                parent[root(i)] = root(other)
    roots = np.asarray(parent)
    while not np.array_equal(above := roots[roots], roots):
        roots = above
    groups: np.ndarray = np.unique(roots, return_inverse=True)[1]
    return groups


def session_numbers(sessions: Sequence[str | None], users: Sequence[str | None] | None) -> np.ndarray:
    """Number the sessions of N rows, each with its user where several users have one of this name.

    Args:
        sessions: The session of each row, None where unknown.
        users: The user of each row, likewise; None if no row has one.

    Returns:
        Numbers from 0, and `NO_NAME` where unknown, of shape (N,).
    """
    session = numbered(sessions)
    user = np.full(len(session), NO_NAME) if users is None else numbered(users)
    pairs = np.unique(np.column_stack([session, user])[(session >= 0) & (user >= 0)], axis=0)
    owners = np.bincount(pairs[:, 0], minlength=session.max(initial=NO_NAME) + 1)
    shared = (session >= 0) & (owners[session] > 1) if len(owners) else np.zeros(len(session), bool)
    width = user.max(initial=NO_NAME) + 2  # users from 0, and the unknown one
    codes = session * width + np.where(shared, user + 1, 0)
    return np.where(session >= 0, codes, NO_NAME)


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
