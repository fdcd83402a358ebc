import pickle
import random

import numpy as np
import pytest

from irm_fast.data import texts
from irm_fast.data.texts import Conversations, Names, Store, batch_of


def _conversations(count: int) -> list[list[dict]]:
    """Plain ones, longer ones, and such that are nearly plain."""
    odd = [
        [{"role": "user", "content": "é"}, {"role": "assistant", "content": "", "tool_calls": [{"a": 1.5}]}],
        [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "u", "name": "n"}, {"role": "assistant", "content": "a"}],
        [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")],
    ]
    plain = [[{"role": "user", "content": f"p{i}"}, {"role": "assistant", "content": f"c{i}"}] for i in range(count)]
    return [odd[i % 4] if i % 3 == 2 else plain[i] for i in range(count)]


def _stored(values: list, parts: int) -> list:
    """The data of conversations that came in several batches."""
    store = Store()
    for index in np.array_split(np.arange(len(values)), parts):
        store.add(batch_of([values[i] for i in index]))
    return store.close()


@pytest.mark.parametrize("limit", [2**28, 0])
def test_conversations_are_like_a_list(limit, monkeypatch, tmp_path):
    monkeypatch.setattr(texts, "IN_MEMORY", limit)
    monkeypatch.setattr(texts, "_WRITTEN_AT_ONCE", 1000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(texts.tempfile, "tempdir", None)
    values = _conversations(3000)
    lazy = Conversations(_stored(values, 7))
    assert (len(lazy.batches) > 1) == (limit == 0)
    assert not list(tmp_path.iterdir())  # the file has no name any more
    shuffled = np.random.default_rng(0).permutation(3000)
    for part, expected in (
        (lazy, values),
        (lazy[shuffled], [values[i] for i in shuffled]),
        (lazy[shuffled][::-3], [values[i] for i in shuffled][::-3]),
        (lazy[shuffled % 2 == 0][5:9], [values[i] for i in np.flatnonzero(shuffled % 2 == 0)][5:9]),
        (lazy[2990:], values[2990:]),
        (lazy[0:0], []),
    ):
        assert len(part) == len(expected) and part == expected and list(part) == expected
        assert pickle.loads(pickle.dumps(part)) == expected
        assert part != [*expected, values[0]]
        if expected:
            assert part[-1] == expected[-1] and part[0] == expected[0]
            assert part != [*expected[:-1], [{"role": "user", "content": "another"}]]
            with pytest.raises(IndexError):
                part[len(expected)]
        if isinstance(part, Conversations):
            with pytest.raises(IndexError):
                part[np.array([0, len(expected)])]
            assert part[np.array([-1], np.int8)] == expected[-1:]
            for index in (np.array([True]), np.array([0.0])):
                with pytest.raises(IndexError, match="expected"):
                    part[index]
    assert type(lazy[2:4]) is list  # as of a list: libraries ask whether what they get is one
    assert lazy[2:4] + values[:1] == [*values[2:4], values[0]] and values[:1] + lazy[:1] == [values[0]] * 2


def test_an_unfinished_store_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(texts, "IN_MEMORY", 0)
    monkeypatch.setattr(texts.tempfile, "tempdir", str(tmp_path))
    store = Store()
    store.add(batch_of(_conversations(10)))
    assert not list(tmp_path.iterdir())  # nor does a program that is killed here
    del store


def test_names(monkeypatch):
    values = [random.Random(i).choice(["a", "b", None]) for i in range(50)]
    names = Names.of(values)
    assert names == values and names[:3] != [*names[3:6], "a"]
    assert names.column().to_pylist() == values
    rows = np.arange(0, 50, 7)
    assert names[rows].column().to_pylist() == [values[i] for i in rows]
    assert repr(Names.of(["x", None])) == "<Names of 2 rows: ['x', None]>"
    assert Names.of([]) == [] and not Names.of([])
