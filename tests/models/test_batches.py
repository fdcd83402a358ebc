"""Collation: packed, padded, and the batch of no rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from irm_fast.models.batches import Collator, Counts, TokenizedRows, stack_rows

IDS = [np.arange(5, 5 + n, dtype=np.int32) for n in (2, 4, 1)]


def test_padded_on_the_right(make_log):
    log = make_log(3)
    batch = Collator(pad_token_id=9)(TokenizedRows.from_log(log, IDS).__getitems__([0, 1, 2]))
    assert batch["input_ids"].tolist() == [[5, 6, 9, 9], [5, 6, 7, 8], [5, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert (batch["feedback"].numpy() == log.feedback).all()
    assert batch["weight"].tolist() == [1, 1, 1]
    assert batch["row"].tolist() == [0, 1, 2]
    assert batch["counts"] == Counts(examples=3, tokens=7, slots=12, squares=4 + 16 + 1)


def test_packed(make_log):
    batch = Collator(pad_token_id=9, packed=True)(TokenizedRows.from_log(make_log(3), IDS).__getitems__([0, 1, 2]))
    assert batch["input_ids"].tolist() == [[5, 6, 5, 6, 7, 8, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 0]]
    for side in "qk":
        assert batch[f"cu_seq_lens_{side}"].tolist() == [0, 2, 6, 7]
        assert batch[f"cu_seq_lens_{side}"].dtype == torch.int32
        assert batch[f"max_length_{side}"] == 4
        assert type(batch[f"max_length_{side}"]) is int
    assert "attention_mask" not in batch  # transformers would attend across the pack
    assert batch["counts"] == Counts(examples=3, tokens=7, slots=7, squares=21)


def test_no_rows_give_a_filler_without_weight(make_log):
    dataset = TokenizedRows.from_log(make_log(3), IDS)
    for packed in (False, True):
        batch = Collator(9, packed=packed, filler=dataset.filler(1))(dataset.__getitems__([]))
        assert batch["row"].tolist() == [-1]
        assert batch["weight"].tolist() == [0]
        assert batch["input_ids"].tolist() == [[8]]
        assert batch["feedback"].shape == (1, 2)
        assert batch["counts"].examples == 0


def test_explicit_preferences_get_a_missing_signal(make_log):
    rows = TokenizedRows.from_log(make_log(2, signals=()), [np.arange(2)] * 2)
    assert rows.columns["feedback"].tolist() == [[-1], [-1]]


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_come_last_with_their_margins(make_log, packed):
    log = replace(make_log(3), features=np.arange(3, dtype=np.float32)[:, None], feature_names=("a",))
    sides = [np.full(n, 50 + n, np.int32) for n in (1, 2, 3, 4)]
    rows = TokenizedRows.from_log(log, IDS).with_sides(sides, np.array([0.5, 1.5], np.float32))
    assert len(rows) == 7 and rows.sides == 4
    collate = Collator(9, packed=packed, filler=rows.filler())
    batch = collate(rows.__getitems__([2, 5, 6]))
    assert batch["margin"].tolist() == [1.5] and batch["row"].tolist() == [2, 5, 6]
    assert batch["feedback"][1:].tolist() == [[-1, -1]] * 2 and batch["weight"].tolist() == [1, 0, 0]
    assert batch["preference"][1:].tolist() == [-1, -1] and batch["features"].flatten().tolist() == [2, 0, 0]
    assert (batch["counts"].pairs, batch["counts"].rows, batch["counts"].examples) == (1, 1, 3)
    ids = batch["input_ids"]
    assert (ids[0] if packed else ids[ids != 9]).tolist() == [5, 53, 53, 53, 54, 54, 54, 54]
    assert collate(rows.__getitems__([3, 4, 5, 6]))["margin"].tolist() == [0.5, 1.5]
    assert collate(rows.__getitems__([]))["margin"].shape == (0,)
    as_rows = collate(TokenizedRows.from_log(log, IDS).with_sides(sides).__getitems__([3, 6]))
    assert as_rows["row"].tolist() == [3, 6] and "margin" not in as_rows and as_rows["counts"].rows == 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_loader_gives_the_batches_of_rows_made_one_by_one(make_log, packed):
    """Whatever rows a sampler chooses: the same entries, types and values."""
    rng = np.random.default_rng(0)
    log = replace(
        make_log(20),
        weight=rng.random(20).astype(np.float32),
        propensity=np.where(rng.random((20, 2)) < 0.3, np.nan, 0.5).astype(np.float32),
        features=rng.random((20, 3)).astype(np.float32),
        feature_names=("a", "b", "c"),
    )
    ids = [rng.integers(3, 90, rng.integers(1, 12)).astype(np.int32) for _ in range(20)]
    names = ("feedback", "preference", "weight", "propensity", "features")
    rows = [
        {"input_ids": ids[i], "row": i} | {name: getattr(log, name)[i].tolist() for name in names} for i in range(20)
    ]
    packs = [rng.permutation(20)[:size].tolist() for size in (1, 7, 20)]
    collate = Collator(9, packed=packed)
    loader = DataLoader(TokenizedRows.from_log(log, ids), batch_sampler=packs, collate_fn=collate)
    for pack, got in zip(packs, loader, strict=True):
        want = collate(stack_rows([rows[i] for i in pack]))
        assert got.keys() == want.keys() >= {"row", "counts", *names}
        for name, value in want.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(got[name], value, rtol=0, atol=0, equal_nan=True)
            else:
                assert got[name] == value
        lengths = got["cu_seq_lens_q"].diff() if packed else got["attention_mask"].sum(1)
        assert lengths.tolist() == [len(ids[i]) for i in pack]
