"""Collation: packed, padded, and the batch of no rows."""

import numpy as np
import torch

from irm_fast.models.batches import Collator, Counts, TokenizedRows

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
