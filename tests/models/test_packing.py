"""Which rows meet in a pass: every row once, packs within their budget, equal steps for all."""

from itertools import chain

import numpy as np
import pytest

from irm_fast.models.packing import PackSampler, by_length, spread

RNG = np.random.default_rng(0)
LENGTHS = np.clip(np.exp(RNG.normal(4, 0.9, 301)), 3, 400).astype(int)


def epoch_of(sampler: PackSampler, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


SETTINGS = [
    {"rows": 8},
    {"rows": 8, "processes": 2, "micro_batches": 3},
    {"rows": 400},
    {"tokens": 400},
    {"tokens": 1000, "processes": 3, "micro_batches": 2},
    {"rows": 5, "tokens": 500, "processes": 2},
    {"tokens": 100_000},
]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_row_once_within_the_budget(settings, padded):
    sampler = PackSampler(LENGTHS, epochs=4, padded=padded, seed=3, **settings)
    packs_a_step = settings.get("processes", 1) * settings.get("micro_batches", 1)
    for epoch in range(4):
        packs = epoch_of(sampler, epoch)
        assert sorted(row for pack in packs for row in pack) == list(range(301))
        assert len(packs) == len(sampler) == sampler.steps * packs_a_step
        for pack in packs:
            slots = len(pack) * LENGTHS[pack].max(initial=0) if padded else LENGTHS[pack].sum()
            assert slots <= settings.get("tokens", np.inf)
        if "rows" in settings:
            for step in range(sampler.steps):
                rows = packs[step * packs_a_step : (step + 1) * packs_a_step]
                assert sum(map(len, rows)) <= settings["rows"] * packs_a_step


def test_order_depends_on_seed_and_epoch_alone():
    def make(seed=0):
        return PackSampler(LENGTHS, tokens=800, processes=2, seed=seed, epochs=2)

    assert epoch_of(make(), 1) == epoch_of(make(), 1)
    assert epoch_of(make(), 1) != epoch_of(make(), 0) != epoch_of(make(1), 0)


def test_steps_are_alike_however_they_are_split():
    def steps(processes, micro_batches, rows):
        packs = epoch_of(PackSampler(LENGTHS, rows=rows, processes=processes, micro_batches=micro_batches))
        count = processes * micro_batches
        return [sorted(chain(*packs[i : i + count])) for i in range(0, len(packs), count)]

    assert steps(1, 1, 16) == steps(2, 1, 8) == steps(1, 2, 8) == steps(2, 4, 2)


def test_every_epoch_has_as_many_steps():
    """Where one order needs a step more than another, the other splits one."""
    sampler = PackSampler(LENGTHS, tokens=420, epochs=12)
    natural = {len(sampler._plan(epoch)) for epoch in range(12)}
    assert len(natural) > 1  # the case must arise
    for epoch in range(12):
        packs = epoch_of(sampler, epoch)
        assert len(packs) == max(natural)
        assert all(packs)


def test_packs_of_a_step_are_equally_long_and_steps_equally_mixed():
    sampler = PackSampler(LENGTHS, tokens=2000, processes=4)
    packs = epoch_of(sampler)
    loads = np.array([LENGTHS[pack].sum() for pack in packs]).reshape(-1, 4)[:-1]
    assert (loads.max(1) / loads.min(1)).max() < 1.25
    assert loads.mean() > 0.9 * 2000
    counts = np.array([len(pack) for pack in packs]).reshape(-1, 4)[:-1].sum(1)
    assert counts.max() < 2 * counts.min()


def test_fewer_rows_than_packs_leave_some_empty():
    for padded in (False, True):
        packs = epoch_of(PackSampler([5, 9, 7], rows=8, processes=4, padded=padded))
        assert sorted(map(len, packs)) == [0, 1, 1, 1]
    assert len(epoch_of(PackSampler([5, 9, 7], rows=1, processes=2))) == 4
    assert epoch_of(PackSampler([], rows=4)) == []


def test_padded_batches_have_rows_of_similar_length():
    def padding(packs) -> float:
        return sum(len(pack) * LENGTHS[pack].max(initial=0) for pack in packs) / LENGTHS.sum() - 1

    sorted_ones = padding(epoch_of(PackSampler(LENGTHS, rows=8, padded=True)))
    assert sorted_ones < 0.3 * padding(epoch_of(PackSampler(LENGTHS, rows=8)))


@pytest.mark.parametrize("padded", [False, True])
def test_a_budget_weighs_no_row_up(padded):
    """A row counts one over the rows of its step: short and long ones alike, on average over epochs."""
    lengths = np.tile(LENGTHS, 4)
    sampler = PackSampler(lengths, tokens=2000, processes=2, padded=padded, epochs=8)
    weight = np.zeros(len(lengths))
    for epoch in range(8):
        packs = epoch_of(sampler, epoch)
        for start in range(0, len(packs), 2):
            rows = packs[start] + packs[start + 1]
            weight[rows] += 1 / len(rows)
    order = np.argsort(lengths)
    tenth = len(order) // 10
    assert 0.8 < weight[order[:tenth]].mean() / weight[order[-tenth:]].mean() < 1.05


def test_padded_packs_of_a_step_have_similar_lengths():
    """Also with a budget, where steps are drawn at random: then within each."""
    packs = epoch_of(PackSampler(LENGTHS, tokens=1000, micro_batches=8, padded=True))
    slots = sum(len(pack) * LENGTHS[pack].max(initial=0) for pack in packs)
    assert slots < 1.25 * LENGTHS.sum()


def test_spread_is_longest_first_to_the_emptiest():
    assert spread(np.array([5, 1, 4, 3, 3]), 2) == [[0, 4], [2, 3, 1]]


@pytest.mark.parametrize(("rows", "tokens"), [(8, None), (None, 500), (4, 600)])
def test_packs_for_evaluation(rows, tokens):
    packs = by_length(LENGTHS, rows=rows, tokens=tokens, processes=3)
    assert sorted(row for pack in packs for row in pack) == list(range(301))
    assert len(packs) % 3 == 0
    longest = [LENGTHS[pack].max(initial=0) for pack in packs]
    assert longest == sorted(longest, reverse=True)
    assert max(map(len, packs)) <= (rows or np.inf)
    assert max(len(pack) * top for pack, top in zip(packs, longest, strict=True)) <= (tokens or np.inf)


def test_budget_smaller_than_a_row():
    with pytest.raises(ValueError, match=r"token_budget: got 100; the longest row has \d{3} tokens.*max_length"):
        PackSampler(LENGTHS, tokens=100)
    with pytest.raises(ValueError, match=r"token_budget: got 100"):
        by_length(LENGTHS, tokens=100)
    with pytest.raises(ValueError, match="got neither"):
        PackSampler(LENGTHS)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("settings", [{"rows": 6}, {"tokens": 900}, {"rows": 6, "tokens": 900}])
def test_pairs_stay_together_and_every_step_has_its_share(padded, settings):
    pairs, shape = 100, {"processes": 2, "micro_batches": 2}
    sampler = PackSampler(LENGTHS, pairs=pairs, epochs=3, padded=padded, seed=3, **shape, **settings)
    first = len(LENGTHS) - 2 * pairs
    orders = []
    for epoch in range(3):
        packs = epoch_of(sampler, epoch)
        assert len(packs) == len(sampler) == 4 * sampler.steps
        assert sorted(row for pack in packs for row in pack) == list(range(len(LENGTHS)))
        for pack in packs:
            sides = [row for row in pack if row >= first]
            assert pack[len(pack) - len(sides) :] == sides  # last
            assert all(a % 2 == first % 2 and b == a + 1 for a, b in zip(sides[::2], sides[1::2], strict=True))
            if "tokens" in settings:
                lengths = [LENGTHS[row] for row in pack]
                assert (len(pack) * max(lengths, default=0) if padded else sum(lengths)) <= 900
        steps = [[row for pack in packs[i : i + 4] for row in pack] for i in range(0, len(packs), 4)]
        shares = [np.mean([row >= first for row in step]) for step in steps if len(step) > 8]
        assert max(abs(np.array(shares) - 2 * pairs / len(LENGTHS))) < (0.35 if padded else 0.2)
        orders.append(packs)
    assert orders[0] != orders[1]
    assert orders[0] == epoch_of(sampler, 0)
    assert sampler.lengths.tolist() == LENGTHS.tolist()
    without = PackSampler(LENGTHS, epochs=3, padded=padded, seed=3, **shape, **settings)
    assert sampler.plan["order"] != without.plan["order"]


def test_a_pair_longer_than_the_budget():
    with pytest.raises(ValueError, match="the longest row or pair has 12 tokens"):
        PackSampler([9, 5, 7], pairs=1, tokens=11)
    assert sorted(PackSampler([9, 5, 7], pairs=1, tokens=12)) == [[0], [1, 2]]
    with pytest.raises(ValueError, match="the longest row or pair has 14 tokens"):
        PackSampler([9, 5, 7], pairs=1, tokens=12, padded=True)
