"""Propensities that depend on who was shown a response, when and where: against slow definitions, and in made logs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from torch import Tensor

from examples.identification.real_logs import RealLog, draw
from irm_fast.embeddings.context import Bins, fingerprint, numbered, places
from irm_fast.embeddings.context_layer import (
    GRID,
    ContextLayer,
    ContextRows,
    context_logits,
    fit_layer,
    pattern_score,
)
from irm_fast.embeddings.context_step import FoundContext, fit_context
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.observed import observe
from tests.embeddings.embedding_cases import make, model

# --- a layer, against loops over all that can happen ---------------------------------------------------------------

SIDES, FREE, CERTAIN = (1, 1, -1, -1, 1), (True, True, True, True, False), (True, True, True, False, True)
AFTER = 0.9  # what an action of signal 1 adds to the logit of signal 2


def layer(columns: int = 3) -> ContextLayer:
    """Any layer: five signals, three columns, users."""
    generator = torch.Generator().manual_seed(0)
    shift, mix, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64) / 2 for shape in ((5,), (5, 5), (5, columns))
    )
    sd, power = torch.tensor(1.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    return ContextLayer(shift, torch.eye(5) + mix / 4, weight, sd, power, torch.tensor(FREE))


def rows_of(n: int = 60, users: int = 12, seed: int = 0) -> tuple[ContextRows, Tensor]:
    """Rows with everything a log may have, and reward logits: both polarities, labels, missing entries, weights.

    Signal 2 may follow signal 1, signal 4 may be a misclick, and then proves in some rows alone, signal 5 is known.
    """
    random = np.random.default_rng(seed)
    side, certain = np.array(SIDES), np.array(CERTAIN)
    pleases = random.random(n) < 0.6
    own = pleases[:, None] == (side > 0)
    feedback = ((random.random((n, 5)) < 0.5) & (own | (~certain & (random.random((n, 5)) < 0.3)))).astype(int)
    feedback[random.random((n, 5)) < 0.2] = -1
    feedback[0], feedback[1] = -1, 0
    proves = certain | (random.random((n, 5)) < 0.5)
    acted = ((feedback == 1) & proves & own).any(1)
    labelled = random.random(n) < 0.2
    proven = np.where(acted | labelled, np.where(pleases, 1, -1), 0)
    order = np.zeros((n, 5))
    order[:, 1] = AFTER * (feedback[:, 0] == 1)
    fields = (random.normal(size=(n, 5)), random.normal(size=(n, 3)), order, feedback.astype(float))
    base, columns, before, entries = (torch.from_numpy(values) for values in fields)
    rows = ContextRows(
        base=base,
        columns=columns,
        order=before,
        feedback=entries,
        side=torch.tensor(SIDES),
        free=torch.tensor(FREE),
        proves=torch.from_numpy(proves),
        proven=torch.from_numpy(proven),
        labelled=torch.from_numpy(labelled),
        weight=torch.from_numpy(random.choice([0.5, 1.0, 2.0], n)),
        user=torch.from_numpy(random.integers(0, users, n)),
    )
    return rows, torch.from_numpy(random.normal(size=n))


def logits_of(found: ContextLayer, rows: ContextRows, row: int, offset: float) -> np.ndarray:
    """The logits (5,) of a row whose user has an offset, by the formula at the head of `context_layer`."""
    base, columns = rows.base[row].numpy(), rows.columns[row].numpy()
    logits = found.mix.numpy() @ base + found.shift.numpy() + found.weight.numpy() @ columns + offset
    return np.where(FREE, logits, base)


def chance(logits: np.ndarray, pattern: dict[int, int]) -> float:
    """The probability of a pattern of actions, each signal by itself, but signal 2 after signal 1."""
    m = expit(logits + AFTER * np.array([0, pattern.get(0) == 1, 0, 0, 0]))
    return math.prod(m[k] if acted else 1 - m[k] for k, acted in pattern.items())


def pattern_chance(rows: ContextRows, row: int, logits: np.ndarray) -> float:
    """The probability of the pattern of a proven row among all patterns that prove it, which are listed."""
    side, entries = int(rows.proven[row]), rows.feedback[row].numpy()
    own = [k for k in range(5) if SIDES[k] == side and entries[k] >= 0]
    total = 0.0
    for pattern in itertools.product((0, 1), repeat=len(own)):
        tried = dict(zip(own, pattern, strict=True))
        if rows.labelled[row] or any(acted and rows.proves[row, k] for k, acted in tried.items()):
            total += chance(logits, tried)
    return chance(logits, {k: int(entries[k]) for k in own}) / total


def presence_chance(rows: ContextRows, row: int, logits: np.ndarray, reward: float) -> float:
    """The probability that a row has proof of its side, or none, with both sides and all patterns listed."""
    if rows.labelled[row]:
        return 1.0  # it was not an action that proved it
    total = 0.0
    for side in (1, -1):
        sure = [k for k in range(5) if SIDES[k] == side and rows.feedback[row, k] >= 0 and rows.proves[row, k]]
        for pattern in itertools.product((0, 1), repeat=len(sure)):
            if (side if any(pattern) else 0) == int(rows.proven[row]):
                total += expit(side * reward) * chance(logits, dict(zip(sure, pattern, strict=True)))
    return total


def test_patterns_of_proven_rows() -> None:
    rows, _ = rows_of()
    found = layer()
    logits = found.logits(rows.base, rows.columns)[:, None, :] + GRID[:, None] * rows.free
    got, proven = rows.patterns(logits).exp(), np.flatnonzero(rows.proven)
    assert len(proven) > 30 and rows.labelled[proven].any() and (rows.feedback[proven] < 0).any()
    for row, q in itertools.product(proven, (3, 12, 20)):
        want = pattern_chance(rows, row, logits_of(found, rows, row, float(GRID[q])))
        assert float(got[row, q]) == pytest.approx(want, rel=1e-9)


def test_presence_of_actions() -> None:
    rows, reward = rows_of()
    found = layer()
    got = rows.presence(found.logits(rows.base, rows.columns), reward).exp()
    for row, q in itertools.product(range(60), (3, 12, 20)):
        want = presence_chance(rows, row, logits_of(found, rows, row, float(GRID[q])), float(reward[row]))
        assert float(got[row, q]) == pytest.approx(want, rel=1e-9)


def offsets_given_others(found: ContextLayer, rows: ContextRows, row: int, presence: Tensor) -> np.ndarray:
    """The probabilities (25,) of the offset of a row's user, given the other rows, in a loop over these."""
    logs = -(GRID.numpy() ** 2) / (2 * float(found.sd) ** 2)
    for other in range(len(rows.base)):
        if other == row or rows.user[other] != rows.user[row]:
            continue
        logs = logs + float(rows.weight[other] * found.power) * presence[other].numpy()
        if rows.proven[other] != 0:
            each = [pattern_chance(rows, other, logits_of(found, rows, other, float(u))) for u in GRID]
            logs = logs + float(rows.weight[other]) * np.log(each)
    return np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()


def test_logits_are_those_of_a_mixture_over_the_offsets_given_the_other_rows() -> None:
    """The product of the likelihoods by the chain rule is that of the whole pattern; each alone is a mean."""
    rows, reward = rows_of()
    found = layer()
    presence = rows.presence(found.logits(rows.base, rows.columns), reward)
    got = context_logits(found, rows, presence)
    several = 0
    for row in range(60):
        weight = offsets_given_others(found, rows, row, presence)
        each = np.array([logits_of(found, rows, row, float(u)) for u in GRID])
        ms = expit(each + rows.order[row].numpy())
        np.testing.assert_allclose(torch.sigmoid(got.alone[row]), weight @ ms, rtol=1e-8)
        for side in (1, -1):
            own = [k for k in range(5) if SIDES[k] == side and FREE[k] and rows.feedback[row, k] >= 0]
            entries = {k: int(rows.feedback[row, k]) for k in own}
            several += len(own) > 1
            want = sum(w * chance(logits, entries) for w, logits in zip(weight, each, strict=True))
            m = torch.sigmoid(got.pattern[row]).tolist()
            product = math.prod(m[k] if acted else 1 - m[k] for k, acted in entries.items())
            assert product == pytest.approx(want, rel=1e-8)
    assert several > 50
    assert torch.equal(got.alone[:, 4], rows.base[:, 4]) and torch.equal(got.pattern[:, 4], rows.base[:, 4])  # known


def test_scores_of_users_are_those_of_a_mixture() -> None:
    """All proven rows of a user have one offset, of which the presence of actions says its part."""
    rows, reward = rows_of()
    found = layer()
    presence = rows.presence(found.logits(rows.base, rows.columns), reward)
    got = pattern_score(found, rows, presence)
    for user in range(12):
        own = np.flatnonzero(rows.user == user)
        proven = [row for row in own if rows.proven[row]]
        weights = np.exp(-(GRID.numpy() ** 2) / (2 * 1.3**2) + 0.7 * (rows.weight[own] @ presence[own]).numpy())
        each = [
            math.prod(
                pattern_chance(rows, row, logits_of(found, rows, row, float(u))) ** float(rows.weight[row])
                for row in proven
            )
            for u in GRID
        ]
        assert float(got[user]) == pytest.approx(np.log(weights @ each / weights.sum()), rel=1e-6, abs=1e-9)


def test_a_row_says_nothing_about_itself() -> None:
    """Its own feedback moves the offsets of its user for the other rows alone."""
    rows, reward = rows_of()
    found = layer()

    def alone(rows: ContextRows) -> Tensor:
        return context_logits(found, rows, rows.presence(found.logits(rows.base, rows.columns), reward)).alone

    before, row = alone(rows), int(torch.nonzero((rows.proven > 0) & ~rows.labelled)[0])
    feedback, proven = rows.feedback.clone(), rows.proven.clone()
    feedback[row], proven[row] = 0, 0
    moved = (alone(replace(rows, feedback=feedback, proven=proven)) - before).abs().max(1).values
    others = (rows.user == rows.user[row]) & (torch.arange(60) != row)
    assert moved[row] < 1e-12 and (moved[rows.user != rows.user[row]] < 1e-12).all()
    assert 2 <= others.sum() and (moved[others] > 0.01).all()


def test_a_layer_is_fitted_to_what_it_is_drawn_from() -> None:
    """Patterns of two signals on proven rows, of which 1,000 users have ten each; without their offsets, no level."""
    random = np.random.default_rng(0)
    user, late = np.repeat(np.arange(1000), 10), random.random(10_000) < 0.5
    offset = 1.5 * random.normal(size=1000)[user]
    truth = expit(np.array([-0.6, -1.2]) - 0.8 * late[:, None] + offset[:, None])
    please = random.random(10_000) < 0.5
    feedback = (random.random((10_000, 2)) < truth) & please[:, None]
    kept = torch.from_numpy(feedback.any(1))
    rows = ContextRows(
        base=torch.zeros(10_000, 2, dtype=torch.float64),
        columns=torch.from_numpy(late[:, None] - 0.5),
        order=torch.zeros(10_000, 2, dtype=torch.float64),
        feedback=torch.from_numpy(feedback).double(),
        side=torch.tensor([1, 1]),
        free=torch.tensor([True, True]),
        proves=torch.ones(10_000, 2, dtype=torch.bool),
        proven=kept.long(),
        labelled=torch.zeros(10_000, dtype=torch.bool),
        weight=torch.ones(10_000, dtype=torch.float64),
        user=torch.from_numpy(user),
    )
    everywhere = torch.ones(10_000, dtype=torch.bool)
    plain = fit_layer(rows, None, everywhere)
    presence = rows.presence(torch.tensor([-1.0, -1.6]) - 0.8 * rows.columns, torch.zeros(10_000))
    found = fit_layer(rows, presence, everywhere)
    assert float(plain.sd) == 0 and float(found.sd) == pytest.approx(1.5, abs=0.2)
    np.testing.assert_allclose(found.shift, [-1.0, -1.6], atol=0.2)
    assert (plain.shift > found.shift + 0.8).all()  # proven rows are those of active users
    np.testing.assert_allclose(found.weight[:, 0], [-0.8, -0.8], atol=0.25)
    plain_means, means = (
        torch.sigmoid(context_logits(one, rows, seen).alone).mean(0).numpy()
        for one, seen in ((plain, None), (found, presence))
    )
    np.testing.assert_allclose(means, truth.mean(0), atol=0.02)
    assert (plain_means > truth.mean(0) + 0.1).all()


# --- columns and names ---------------------------------------------------------------------------------------------


def test_bins() -> None:
    values = np.concatenate([np.arange(100.0), [np.nan] * 50])
    bins = Bins.of(values)
    columns = bins.columns(values)
    assert columns.shape == (150, 10) and not columns[100:].any()
    np.testing.assert_allclose(columns[:100].mean(0), 0, atol=1e-12)
    assert (np.diff(columns[:100].argmax(1)) >= 0).all()
    assert set(np.bincount(columns[:100].argmax(1))) <= {9, 10, 11}
    np.testing.assert_array_equal(bins.columns(np.array([-1e9, 1e9])).argmax(1), [0, 9])  # the nearest
    assert Bins.of(np.full(9, 4.0)) is None and Bins.of(np.full(9, np.nan)) is None
    assert len(Bins.of(np.array([0.0, 0, 1, 1])).means) == 2


def test_places_in_sessions() -> None:
    sessions, users = ["a", "a", None, "b", "a", "a"], [1, 1, 1, 1, 2, None]
    np.testing.assert_array_equal(places(sessions, None, None), [0, 1, np.nan, 0, 2, 3])
    np.testing.assert_array_equal(places(sessions, None, users), [0, 1, np.nan, 0, 0, 0])
    np.testing.assert_array_equal(places(sessions, np.array([5, 4, 3, 2, 1, 6.0]), None), [2, 1, np.nan, 0, 0, 3])


def test_names_are_numbers() -> None:
    numbers = numbered(["ann", None, "bob", "ann", None])
    assert numbers[0] == numbers[3] and len(set(numbers.tolist())) == 4
    assert fingerprint("ann") == fingerprint("ann") != fingerprint("bob")
    assert fingerprint(7) == fingerprint(np.int64(7)) == fingerprint(7.0) == fingerprint("7") != fingerprint(7.5)
