"""Rows that belong together, against definitions that compare all rows with each other."""

import itertools

import numpy as np
import pyarrow
import pytest

from irm_fast.data.groups import (
    NO_NAME,
    group_numbers,
    group_rows,
    number_prompts,
    numbered,
    prompt_key,
    session_numbers,
)
from irm_fast.data.joined import Joined
from irm_fast.data.texts import Names


def alike(numbers: np.ndarray) -> np.ndarray:
    """Which rows have the same number, (N, N)."""
    return numbers[:, None] == numbers


def components(tied: np.ndarray) -> np.ndarray:
    """Which rows are tied by way of others, (N, N)."""
    tied = tied | np.eye(len(tied), dtype=bool)
    while not np.array_equal(further := tied @ tied, tied):
        tied = further
    return tied


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_the_rows_that_are_tied(seed):
    rng = np.random.default_rng(seed)
    columns = [[None if name < 0 else f"n{name}" for name in rng.integers(-3, 9, 15)] for _ in range(3)]
    for count in (1, 2, 3):
        tied = np.zeros((15, 15), bool)
        for one, other in itertools.product(range(15), repeat=2):
            tied[one, other] = any(c[one] is not None and c[one] == c[other] for c in columns[:count])
        groups = group_rows(*columns[:count])
        assert np.array_equal(alike(groups), components(tied))
        assert sorted(set(groups.tolist())) == list(range(groups.max() + 1))
        assert np.array_equal(group_numbers(*map(numbered, columns[:count])), groups)


def test_names_in_arrow_get_the_numbers_of_a_list():
    values = ["b", None, "a", "b", "", "nobody", None, "a"]
    lazy = Names([*Names.of(values[:3]).batches, *Names.of(values[3:]).batches])
    assert numbered(lazy).tolist() == numbered(values).tolist() == [0, NO_NAME, 1, 0, 2, 3, NO_NAME, 1]
    some = np.array([7, 1, 0])
    assert numbered(lazy[some]).tolist() == [0, NO_NAME, 1]
    assert numbered(np.array([7, -3, 7, 2])).tolist() == [0, 1, 0, 2]
    assert numbered(Names.of([])).tolist() == numbered([]).tolist() == []


def test_names_of_several_logs_are_numbered_together():
    values = ["b", None, "a", "b", "c", None, "a"]
    coded = pyarrow.record_batch([pyarrow.array(values[3:]).dictionary_encode()], ["name"])
    for second in (Names.of(values[3:]), Names([coded]), values[3:]):
        assert numbered(Joined([Names.of(values[:3]), second])).tolist() == numbered(values).tolist()


def test_a_session_counts_within_its_user_where_several_have_it():
    sessions = ["s", "s", "t", "t", None, "s", "t"]
    users = ["a", "b", "a", None, "a", "a", "a"]
    numbers = session_numbers(sessions, users)
    want = np.zeros((7, 7), bool)
    for group in ([0, 5], [1], [2, 3, 6], [4]):
        want[np.ix_(group, group)] = True
    assert np.array_equal(alike(numbers), want) and (numbers < 0).tolist() == [False] * 4 + [True] + [False] * 2
    assert alike(session_numbers(sessions, None))[0].tolist() == [True, True, False, False, False, True, False]
    assert session_numbers([None, None], ["a", "b"]).tolist() == [NO_NAME] * 2


def turns(*texts: str) -> list[dict]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("seed", range(10))
def test_prompts_and_the_earliest_turns_that_others_asked(seed):
    rng = np.random.default_rng(seed)
    rows = [turns(*(f"t{rng.integers(3)}" for _ in range(2 * rng.integers(1, 4)))) for _ in range(20)]
    found, keys = number_prompts(rows), [prompt_key(row) for row in rows]
    assert np.array_equal(alike(found.prompts), np.array([[one == other for other in keys] for one in keys]))
    earliest = [min((k for k in keys if key[: len(k)] == k), key=len) for key in keys]
    assert np.array_equal(alike(found.conversations), np.array([[a == b for b in earliest] for a in earliest]))
    assert (found.instruction, found.instructed) == (None, 0)


def test_an_instruction_gives_way_to_the_whole_text():
    rows = [*(turns("Sum up.", f"a{i % 12}") for i in range(19)), turns("Why?", "So.")]
    found = number_prompts(rows)
    assert (found.instruction, found.instructed) == (0, 19)
    assert len(set(found.prompts.tolist())) == 13 and found.prompts[12] == found.prompts[0]
    assert np.array_equal(found.prompts, found.conversations)


def test_joined_sequences_are_one():
    parts = ["abc", "", "de", "f"]
    joined = Joined(parts)
    for start, stop, step in itertools.product((None, 0, 2, 4, -2), (None, 1, 5, -1), (None, 2, -1)):
        assert joined[start:stop:step] == list("abcdef")[start:stop:step]
    assert [joined[i] for i in range(-6, 6)] == list("abcdefabcdef") and list(joined) == list("abcdef")
    with pytest.raises(IndexError):
        joined[6]


def test_parts_of_names_with_a_dictionary_are_numbered_anew():
    values = ["b", None, "a", "b", "c"]
    column = pyarrow.array(values).dictionary_encode()
    names = Names([pyarrow.record_batch([column], ["name"])])
    assert numbered(names).tolist() == [0, NO_NAME, 1, 0, 2]
    assert numbered(names[np.array([4, 1, 2, 4])]).tolist() == [0, NO_NAME, 1, 0]
