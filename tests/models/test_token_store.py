"""Token ids in memory and in a file: the same rows, parts that share them, workers that map them."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest

from irm_fast.models import token_store
from irm_fast.models.batches import TokenizedRows
from irm_fast.models.token_store import Tokens, TokenStore

RNG = np.random.default_rng(0)
ROWS = [RNG.integers(0, 90_000, size).tolist() for size in (3, 1, 0, 7, 2, 5)]


@pytest.fixture(params=["memory", "file"])
def tokens(request, monkeypatch) -> Tokens:
    if request.param == "file":
        monkeypatch.setattr(token_store, "IN_MEMORY", 8)
        monkeypatch.setattr(token_store, "_WRITTEN_AT_ONCE", 8)
    store = TokenStore()
    for start in range(0, len(ROWS), 2):
        store.add(ROWS[start : start + 2])
    tokens = store.close()
    assert (tokens.file is not None) == (request.param == "file")
    return tokens


def rows_of(tokens: Tokens) -> list[list[int]]:
    return [tokens[number].tolist() for number in range(len(tokens))]


def test_rows_and_parts_of_them(tokens):
    assert (rows_of(tokens), tokens.lengths.tolist()) == (ROWS, [3, 1, 0, 7, 2, 5])
    assert tokens.flat.dtype == np.int32
    assert rows_of(tokens[2:]) == ROWS[2:]
    assert rows_of(tokens[np.array([4, 0, 4])]) == [ROWS[4], ROWS[0], ROWS[4]]
    assert rows_of(tokens[tokens.lengths > 2]) == [row for row in ROWS if len(row) > 2]
    assert tokens[np.array([3, 1])].gathered().tolist() == ROWS[3] + ROWS[1]
    assert np.shares_memory(tokens[3:].flat, tokens.flat)


def test_rows_after_others_share_one_array_or_are_copied(tokens):
    both = tokens[3:].followed_by(tokens[:3])
    assert rows_of(both) == ROWS[3:] + ROWS[:3] and np.shares_memory(both.flat, tokens.flat)
    other = Tokens.of([np.array([5, 6], np.int32)])
    assert rows_of(tokens[4:].followed_by(other)) == [*ROWS[4:], [5, 6]]
    assert rows_of(other.followed_by(tokens[4:])) == [[5, 6], *ROWS[4:]]


def test_nothing_has_no_rows():
    store = TokenStore()
    assert len(store.close()) == len(Tokens.of([])) == len(TokenStore().close()) == 0


def test_a_copy_by_pickle_holds_the_tokens(tokens):
    assert rows_of(pickle.loads(pickle.dumps(tokens[1:]))) == ROWS[1:]


def seen_by_worker(rows: TokenizedRows, pipe) -> None:
    pipe.send((rows.__getitems__([3, 0]).tokens.tolist(), rows.tokens.file is not None))
    pipe.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_have_the_rows_and_are_sent_no_tokens(tokens, method):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    worker = context.Process(target=seen_by_worker, args=(TokenizedRows(tokens), theirs))
    worker.start()
    assert ours.recv() == (ROWS[3] + ROWS[0], tokens.file is not None)
    worker.join()
    assert worker.exitcode == 0


def test_the_file_has_no_name_and_ends_with_the_tokens(monkeypatch, tmp_path):
    monkeypatch.setattr(token_store, "IN_MEMORY", 8)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = TokenStore()
    store.add(ROWS)
    tokens = store.close()
    assert not os.listdir(tmp_path) and rows_of(tokens) == ROWS
    number = tokens.file.fileno()
    os.fstat(number)
    del tokens, store
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
