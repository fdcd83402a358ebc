"""Collation and the order of rows."""

import numpy as np

from irm_fast.batches import Collator, LengthGroupedSampler, as_dataset


def test_collator_pads_on_the_right(make_log):
    log = make_log(3)
    ids = [np.arange(5, 5 + n, dtype=np.int32) for n in (2, 4, 1)]
    batch = Collator(pad_token_id=9)(as_dataset(log, ids).to_list())
    assert batch["input_ids"].tolist() == [[5, 6, 9, 9], [5, 6, 7, 8], [5, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert (batch["feedback"].numpy() == log.feedback).all()
    assert batch["weight"].tolist() == [1, 1, 1]


def test_explicit_preferences_get_a_missing_signal(make_log):
    rows = as_dataset(make_log(2, signals=()), [np.arange(2)] * 2)
    assert rows["feedback"][:] == [[-1], [-1]]


def test_sampler_groups_lengths_and_repeats_by_epoch():
    lengths = np.random.default_rng(0).integers(1, 100, 203)
    sampler = LengthGroupedSampler(lengths, step_size=8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(203))
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert list(sampler) == first

    def padding(order) -> float:
        steps = [lengths[order[i : i + 8]] for i in range(0, 203, 8)]
        return sum(step.max() * len(step) for step in steps) / lengths.sum() - 1

    assert padding(first) < 0.5 * padding(np.random.default_rng(2).permutation(203))


def test_sampler_of_fewer_rows_than_a_step():
    assert sorted(LengthGroupedSampler([3, 1, 2], step_size=8, seed=0)) == [0, 1, 2]
