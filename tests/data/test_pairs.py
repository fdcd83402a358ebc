"""Pairs to train on: what they are read from, and which of them are held out."""

import json

import numpy as np
import pytest

from irm_fast.data.pairs import Pairs, read_pairs
from irm_fast.data.read import DataError
from tests.data.test_rated import A2, OTHER, PAIRS, Q2, A, Q


@pytest.fixture
def pairs_of(tmp_path):
    def read(*rows):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_pairs(path)

    return read


def text_pair(prompt, **fields):
    return {"prompt": prompt, "chosen": "So.", "rejected": "Go away."} | fields


@pytest.mark.parametrize("name", PAIRS)
def test_layouts_and_margins(pairs_of, name):
    pairs = pairs_of(PAIRS[name] | {"margin": 1.5}, {"id": "x"} | PAIRS[name])
    assert pairs.ids == ["row-1", "x"] and pairs.chosen == [[Q, A, Q2, A2]] * 2
    assert pairs.rejected == [[Q, A, Q2, OTHER]] * 2
    assert pairs.margin.dtype == np.float32 and pairs.margin.tolist() == [1.5, 0]
    assert pairs.sides == [[Q, A, Q2, A2], [Q, A, Q2, OTHER]] * 2


def test_other_files(tmp_path):
    import gzip

    import pyarrow as pa
    from pyarrow import parquet

    rows = [PAIRS["messages"] | {"margin": 1}, PAIRS["messages"]]
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    for name in ("pairs.jsonl.gz", "pairs.parquet"):
        pairs = read_pairs(tmp_path / name)
        assert pairs.chosen == [[Q, A, Q2, A2]] * 2 and pairs.margin.tolist() == [1, 0]


def test_errors_name_the_line(pairs_of):
    with pytest.raises(DataError) as error:
        pairs_of(
            text_pair("a", margin=-1),
            text_pair("b", chosen=None),
            {"chosen": "So.", "rejected": "Go away."},
            text_pair("c", magin=1),
            {"id": "row-4", "prompt": "d", "completion": "So."},
            text_pair("e", id="x"),
            text_pair("f", id="x"),
        )
    found = error.value.problems
    for text in (
        ":1: margin: got -1; expected a number that is not negative",
        ":2: chosen: missing; expected the other response",
        ":3: chosen: got 'So.'; expected messages, or, without a prompt, text that begins",
        ":4: magin: unknown field; did you mean 'margin'?",
        ":5: chosen: missing; expected the other response",
        ":7: id: 'x' is also in line 6",
    ):
        assert any(text in problem for problem in found), (text, found)


def test_pairs_without_a_difference_are_left_out(pairs_of):
    same, empty = text_pair("a", rejected="So."), text_pair("b", rejected=" ")
    with pytest.warns(UserWarning) as given:
        pairs = pairs_of(same, text_pair("c"), empty)
    assert pairs.ids == ["row-2"]
    assert [str(warning.message).split(": ", 1)[1] for warning in given] == [
        "1 pairs left out because a response is empty: lines 3",
        "1 pairs left out because both responses are the same: lines 1",
    ]
    with pytest.raises(DataError, match="no usable pair"):
        pairs_of(same)


def _pairs(*prompts, turns=()):
    conversation = [[*turns, {"role": "user", "content": prompt}] for prompt in prompts]
    margin = np.arange(len(prompts), dtype=np.float32)
    ids = [str(prompt) for prompt in prompts]
    return Pairs(ids, [[*turns, A] for turns in conversation], [[*turns, OTHER] for turns in conversation], margin)


def test_no_conversation_is_on_both_sides(make_log):
    log = make_log(20)
    train, heldout = log.split(0.25, 0)
    ask = [turns[0]["content"] for turns in log.messages]
    pairs = _pairs(*ask, *(f"other {i // 2}" for i in range(20)))
    training, held = pairs.split(train, heldout, 0.25, seed=0)
    of_log = [turns[0]["content"] for turns in heldout.messages]
    assert set(of_log) < set(held.ids) and not set(training.ids) & set(held.ids)
    assert len(of_log) == 5 and len(held) == 9 and len(training) == 31  # two of one prompt at a time
    assert not {turns[0]["content"] for turns in train.messages} & set(held.ids)
    assert [pairs.chosen[i] for i in held.margin.astype(int)] == held.chosen
    again, other = (pairs.split(train, heldout, 0.25, seed=seed)[1].ids for seed in (0, 1))
    assert held.ids == again != other

    # A later turn of held-out conversations, or a part of the log in which no pair can be held out
    later = Pairs(["0"], [[*heldout.messages[0], Q2, A2]], [[*heldout.messages[0], Q2, OTHER]], np.zeros(1, np.float32))
    assert [len(part) for part in later.split(train, heldout, 0.25, seed=0)] == [0, 1]
    tied = _pairs(*(turns[0]["content"] for turns in train.messages))
    assert [len(part) for part in tied.split(train, heldout, 0.25, seed=0)] == [15, 0]
    assert [len(part) for part in _pairs("x", "y").split(train, heldout, 0, seed=0)] == [2, 0]
