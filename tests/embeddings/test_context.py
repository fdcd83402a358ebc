"""Propensities that depend on who was shown a response, when and where: against slow definitions, and in made logs."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from torch import Tensor

from examples.identification.real_logs import RealLog, draw
from irm_fast.data.groups import group_rows
from irm_fast.embeddings import context_step
from irm_fast.embeddings.context import Bins, fingerprint, places
from irm_fast.embeddings.context_layer import (
    GRID,
    ContextLayer,
    ContextRows,
    context_logits,
    fit_layer,
    pattern_score,
    signs,
)
from irm_fast.embeddings.context_step import FoundContext, fit_context
from irm_fast.embeddings.estimator import EmbeddingRewardModel
from irm_fast.embeddings.observed import Observed, observe
from irm_fast.embeddings.reward_step import PropensityLogits
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
    got = rows.patterns(found.logits(rows.base, rows.columns), GRID).exp()
    proven = np.flatnonzero(rows.proven)
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
    got = context_logits(found, rows, signs(found, rows, presence))
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
        presence = rows.presence(found.logits(rows.base, rows.columns), reward)
        return context_logits(found, rows, signs(found, rows, presence)).alone

    before, row = alone(rows), int(torch.nonzero((rows.proven > 0) & ~rows.labelled)[0])
    feedback, proven = rows.feedback.clone(), rows.proven.clone()
    feedback[row], proven[row] = 0, 0
    moved = (alone(replace(rows, feedback=feedback, proven=proven)) - before).abs().max(1).values
    others = (rows.user == rows.user[row]) & (torch.arange(60) != row)
    assert moved[row] < 1e-12 and (moved[rows.user != rows.user[row]] < 1e-12).all()
    assert others.sum() >= 2 and (moved[others] > 0.01).all()


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


def test_rows_above_a_number_that_nearly_all_have_are_a_bin() -> None:
    places = np.repeat([0.0, 1, 2], [900, 60, 40])
    bins = Bins.of(places)
    assert bins.edges.tolist() == [1] and bins.means.tolist() == [0.9, 0.1]
    np.testing.assert_allclose(bins.columns(np.array([0.0, 2])), [[0.1, -0.1], [-0.9, 0.9]])
    assert Bins.of(np.repeat([0.0, 1], [970, 30])).means.tolist() == [0.97, 0.03]
    assert Bins.of(np.repeat([0.0, 1], [971, 29])) is None  # too few to show anything
    np.testing.assert_array_equal(Bins.of(np.repeat([0.0, 5], [30, 970])).edges, [5])  # the quantiles tell them


def test_places_in_sessions() -> None:
    sessions, users = ["a", "a", None, "b", "a", "a"], [1, 1, 1, 1, 2, None]
    np.testing.assert_array_equal(places(sessions, None, None), [0, 1, np.nan, 0, 2, 3])
    np.testing.assert_array_equal(places(sessions, None, users), [0, 1, np.nan, 0, 0, 0])
    np.testing.assert_array_equal(places(sessions, np.array([5, 4, 3, 2, 1, 6.0]), None), [2, 1, np.nan, 0, 0, 3])


def test_names_are_numbers() -> None:
    numbers = group_rows(["ann", None, "bob", "ann", None])
    assert numbers[0] == numbers[3] and len(set(numbers.tolist())) == 4
    assert fingerprint("ann") == fingerprint("ann") != fingerprint("bob")
    assert fingerprint(7) == fingerprint(np.int64(7)) == fingerprint(7.0) == fingerprint("7") != fingerprint(7.5)


# --- what is read of a log -----------------------------------------------------------------------------------------


def test_unknown_times_and_sessions_are_neutral() -> None:
    bins = Bins.of(np.arange(50.0))
    np.testing.assert_array_equal(bins.columns(np.array([np.nan, 3.0]))[0], np.zeros(10))
    assert not bins.columns(np.full(5, np.nan)).any()


def fitted_context(feedback: np.ndarray, users: np.ndarray, folds: np.ndarray) -> FoundContext | None:
    """A context that is fitted to base logits of 0 and rewards of 0, without proof by anything but actions."""
    design = {"design": "hidden", "polarity": 1, "misclick_rate": 0.0}
    observed = observe(len(feedback), feedback, **design, users=users)
    return context_of(observed, torch.zeros(feedback.shape), torch.zeros(len(feedback)), folds)


def context_of(observed: Observed, logits: Tensor, reward: Tensor, folds: np.ndarray) -> FoundContext | None:
    """A context that is fitted to these base logits and rewards; every action proves its side."""
    none = PropensityLogits(0 * logits, 0 * logits)
    problem = SimpleNamespace(folds=folds, order=lambda _: none)
    split = SimpleNamespace(
        found=None, logits=PropensityLogits(logits, logits), reward=SimpleNamespace(held_out=reward)
    )
    return fit_context(problem, split, observed, torch.ones(logits.shape))


def test_users_are_held_out_as_a_whole() -> None:
    """What the layers of a fold say depends on no row of it, and the logits of a row on no other fold's users."""
    users = np.repeat(np.arange(200), 10)
    case = make(2000, 4, slopes=(0, 0), activity=2 * np.random.default_rng(0).normal(size=200)[users])
    folds = users % 3
    before = fitted_context(case.feedback, users, folds)
    changed = case.feedback.copy()
    changed[folds == 0] = 1 - changed[folds == 0]
    after = fitted_context(changed, users, folds)
    assert before.offsets is not None and after.offsets is not None and not before.bins
    torch.testing.assert_close(before.by_fold[0].shift, after.by_fold[0].shift, rtol=0, atol=1e-8)
    assert (before.by_fold[1].shift - after.by_fold[1].shift).abs().min() > 0.05
    moved = before.held_out.alone[folds == 0] - after.held_out.alone[folds == 0]
    assert moved.abs().mean() > 0.5


@pytest.mark.parametrize("last", [1, 200])
def test_a_log_of_two_users_is_fitted(last: int) -> None:
    """A fold whose other folds hardly show a propensity is nothing to choose by."""
    users = ["x"] * (400 - last) + ["y"] * last
    case = make(400, 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*degrees of freedom.*")
        fitted = model(hidden_layers=(), n_folds=2).fit(case.x, case.feedback, users=users)
    assert np.isfinite(fitted.coef_).all() and (last > 1 or fitted.context_ == ())


# --- logs of which all is known ------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """AUROC on clean preferences, error of the mean preference, the parts of the context."""

    auroc: float
    off: float
    parts: tuple[str, ...]


def outcome(log: RealLog, known: bool = False, **arguments: Any) -> Outcome:
    settings: dict[str, Any] = {"propensity_design": "known"} if known else {}
    given = {"propensity": log.propensity} if known else arguments
    fitted = model(**settings).fit(log.X, log.feedback, **given)
    logits = fitted.decision_function(log.test_X)
    off = float(expit(logits).mean() - log.test_g.mean())
    return Outcome(float(roc_auc_score(log.test_preference, logits)), off, fitted.context_)


@lru_cache
def logs(rows: int = 5000, **world: Any) -> list[RealLog]:
    return [draw(seed, rows=rows, **world) for seed in range(2)]


def means(outcomes: list[Outcome]) -> tuple[float, float]:
    """The mean AUROC and the mean error of the mean preference."""
    return tuple(np.mean([(one.auroc, one.off) for one in outcomes], axis=0))


def test_users_who_differ_in_activity() -> None:
    """The factor that stood here before ranked .009 below known propensities; without users g is .32 of .50."""
    redraws = logs(activity=2.0, rows_a_user=20)
    found = [outcome(log, **log.arguments) for log in redraws]
    assert [one.parts for one in found] == [("user",)] * 2
    auroc, off = means(found)
    assert auroc > means([outcome(log, known=True) for log in redraws])[0] - 0.006
    assert abs(off) < 0.03
    assert means([outcome(log) for log in redraws])[1] < -0.15


def test_users_who_differ_in_taste() -> None:
    """Easily pleased users are not taken for active ones: the factor that stood here before gave g .58 of .50."""
    found = [outcome(log, **log.arguments) for log in logs(taste=1.5, rows_a_user=10)]
    assert sum("user" in one.parts for one in found) <= 1
    assert max(abs(one.off) for one in found) < 0.04


@pytest.mark.parametrize(
    ("part", "world"),
    [("time", {"redesign": 2.0, "bias": 0.5, "rows": 6000}), ("place", {"fatigue": 0.3, "bias": 0.5, "rows": 6000})],
)
def test_propensities_that_change_with(part: str, world: dict[str, Any]) -> None:
    """Without times or sessions g is .39 and .40 of .50, as it was before."""
    found, without = (
        [outcome(log, **arguments(log)) for log in logs(**world)] for arguments in (given_all, given_none)
    )
    assert [one.parts for one in found] == [(part,)] * 2
    assert abs(means(found)[1]) < 0.06 and means(without)[1] < -0.07
    assert means(found)[0] > means(without)[0] + 0.002


def given_all(log: RealLog) -> dict[str, Any]:
    return dict(log.arguments)


def given_none(log: RealLog) -> dict[str, Any]:
    return {}


def test_few_rows_at_another_time_are_told_apart() -> None:
    """8% of the rows are of a later version, in which propensities are .84, not .30; all others have one time."""
    random = np.random.default_rng(0)
    x, late = random.normal(size=(2000, 8)), random.random(2000) < 0.08
    acts = expit(np.where(late, 2, -1)[:, None] + x[:, [1, 2]])
    feedback = ((random.random((2000, 1)) < expit(2 * x[:, :1])) & (random.random((2000, 2)) < acts)).astype(int)
    times = np.where(late, 2e9 + random.random(2000) * 1e6, 1e9)
    plain, found = model().fit(x, feedback), model().fit(x, feedback, times=times)
    assert found.context_ == ("time",)
    means = found.predict_propensity(x[late], times=times[late]).mean(), plain.predict_propensity(x[late]).mean()
    assert means[0] == pytest.approx(acts[late].mean(), abs=0.05) and means[1] < acts[late].mean() - 0.4
    assert found.predict_proba(x[late])[:, 1].mean() == pytest.approx(0.5, abs=0.05)


def test_what_users_hide_is_found_once_they_are_told_apart() -> None:
    """Both at once: of the columns alone, time does not predict better, as proven rows are those of active users."""
    row = np.arange(4000)
    users = row % 400
    moved = 2 * np.random.default_rng(2).normal(size=400)[users] - 2 * (row >= 2000)
    case = make(4000, 5, activity=1 + moved)
    found = model().fit(case.x, case.feedback, users=users, times=row)
    assert found.context_ == ("time", "user")
    assert found.predict_proba(case.x)[:, 1].mean() == pytest.approx(case.g.mean(), abs=0.05)


def test_independent_users_change_nothing() -> None:
    """Times, sessions and users that say nothing: a part of them is kept by chance at most, and moves nothing."""
    for log in logs(rows_a_user=10):
        more = {**log.arguments, "times": np.arange(5000), "sessions": np.arange(5000) // 5}
        plain, found = outcome(log, groups=log.arguments["users"]), outcome(log, **more)
        assert len(found.parts) <= 1
        assert found.auroc == pytest.approx(plain.auroc, abs=0.003) and found.off == pytest.approx(plain.off, abs=0.02)


@pytest.mark.parametrize("rates", [(0.05, 0.05), (0.0, 0.3)])
def test_active_users_who_misclick(rates: tuple[float, float]) -> None:
    """Without users g is .37 and .32 of .50.

    A row is proven by an action that would prove it alone, whatever has acted: else patterns of several actions are
    picked, and g is .33 and .26.
    """
    random, users = np.random.default_rng(0), np.arange(6000) // 10
    case = make(6000, activity=1.5 * np.random.default_rng(50).normal(size=600)[users], bias=0.0)
    wrong = (random.random((6000, 2)) < case.m * rates) & (case.preferred == 0)[:, None]
    found = model(misclick_rate=rates).fit(case.x, np.where(wrong, 1, case.feedback), users=users)
    assert found.context_ == ("user",)
    assert found.predict_proba(case.x)[:, 1].mean() == pytest.approx(case.g.mean(), abs=0.05)


def test_both_polarities_and_missing_entries() -> None:
    """Users of mean propensity .41; without users .56 to .60."""
    users, sides = np.arange(6000) // 10, (1, 1, -1, -1)
    activity = 1.5 * np.random.default_rng(5).normal(size=600)[users]
    case = make(6000, 6, polarity=sides, slopes=(1, 1, 1, 1), activity=activity)
    feedback = np.where(np.random.default_rng(0).random((6000, 4)) < 0.2, -1, case.feedback)
    plain, found = (model(polarity=sides).fit(case.x, feedback, **more) for more in ({}, {"users": users}))
    assert found.context_ == ("user",)
    off = found.predict_propensity(case.x, users=users).mean(axis=0) - case.m.mean(axis=0)
    assert (np.abs(off) < 0.05).all()
    assert (plain.predict_propensity(case.x).mean(axis=0) - case.m.mean(axis=0) > 0.12).all()


def test_labels_show_the_context_of_one_signal() -> None:
    users = np.arange(5000) // 10
    case = make(5000, 6, polarity=(1,), slopes=(0,), activity=2 * np.random.default_rng(5).normal(size=500)[users])
    labels = np.where(np.random.default_rng(3).random(5000) < 0.3, case.preferred, -1)
    found = model().fit(case.x, case.feedback, preference=labels, users=users)
    assert found.context_ == ("user",)
    m = found.predict_propensity(case.x, users=users)[:, 0]
    assert np.corrcoef(m, case.m[:, 0])[0, 1] > 0.8 and m.mean() == pytest.approx(case.m.mean(), abs=0.04)


def test_known_propensities_stay_in_a_context() -> None:
    users = np.arange(4000) // 10
    case = make(
        4000, 4, polarity=(1, 1, 1), slopes=(0, 0, 0), activity=np.random.default_rng(5).normal(size=400)[users]
    )
    base = torch.full((4000, 3), -0.5, dtype=torch.float64)
    observed = observe(
        4000,
        case.feedback,
        design=("known", "hidden", "hidden"),
        polarity=1,
        misclick_rate=0.0,
        propensity=expit(base.numpy()),
        users=users,
    )
    reward = torch.from_numpy(np.log(case.g / (1 - case.g)))
    found = context_of(observed, base, reward, users % 3)
    assert found.context(observed).parts == ("user",)
    for seen in (found.training, found.held_out):
        assert torch.equal(seen.alone[:, 0], base[:, 0]) and torch.equal(seen.pattern[:, 0], base[:, 0])
        assert np.corrcoef(torch.sigmoid(seen.alone[:, 1]), case.m[:, 1])[0, 1] > 0.5


# --- later rows, files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> EmbeddingRewardModel:
    """User 0 acts always, user 1 never; time and place matter."""
    row = np.arange(4000)
    users = row // 5 % 400
    offset = np.random.default_rng(2).normal(size=400)
    offset[:2] = 4, -4
    case = make(4000, 5, activity=1.5 + offset[users] - 2 * (row > 2000) - row % 5 / 2)
    names = [f"person-{user}@example.org" for user in users]
    return model().fit(case.x, case.feedback, users=names, times=row, sessions=row // 5)


def test_later_rows_of_known_and_unknown_users(fitted: EmbeddingRewardModel) -> None:
    assert fitted.context_ == ("time", "place", "user")
    x = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)

    def mean(**context: Any) -> np.ndarray:
        return fitted.predict_propensity(x, **context).mean(axis=0)

    active, passive, stranger = (mean(users=[f"person-{name}@example.org"] * 50) for name in (0, 1, "x"))
    assert (active > stranger + 0.15).all() and (passive < stranger - 0.08).all()
    np.testing.assert_array_equal(mean(users=[None] * 50), mean())
    np.testing.assert_array_equal(stranger, mean())
    early, late, later = (mean(times=np.full(50, when)) for when in (0, 3999, 1e9))
    assert (early > late + 0.1).all() and (late == later).all()
    assert (early > mean()).all() and (mean() > late).all()
    np.testing.assert_array_equal(mean(times=np.full(50, np.nan)), mean())
    session = fitted.predict_propensity(x[:1].repeat(5, axis=0), sessions=["s"] * 5)
    assert (np.diff(session, axis=0) < 0).mean() > 0.7 and (session[4] < session[0] - 0.1).all()


def test_an_unknown_user_is_one_drawn_at_random(fitted: EmbeddingRewardModel) -> None:
    """The mean over the prior of the offsets, not the user of offset 0."""
    x = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)
    context, scaled = fitted._fitted.context, fitted._fitted.scaler(x)
    logits = context.layer.logits(
        fitted._fitted.propensities.logits(scaled).double(), torch.zeros(50, 15, dtype=torch.float64)
    )
    draws = np.random.default_rng(0).normal(size=4000) * float(context.layer.sd)
    want = expit(logits.numpy()[:, :, None] + draws).mean(axis=2)
    np.testing.assert_allclose(fitted.predict_propensity(x), want, atol=0.015)


def test_saved_and_read_without_names(fitted: EmbeddingRewardModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    again = EmbeddingRewardModel.load(tmp_path)
    x = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    context = {
        "users": [None, "person-0@example.org", "person-1@example.org", "nobody"] * 10,
        "times": np.linspace(0, 5000, 40),
        "sessions": ["a", "b"] * 20,
    }
    assert again.context_ == fitted.context_
    np.testing.assert_array_equal(again.predict_propensity(x, **context), fitted.predict_propensity(x, **context))
    for file in tmp_path.iterdir():
        assert b"person" not in file.read_bytes()


def test_a_large_log_is_looked_at_in_parts_of_whole_users(monkeypatch: pytest.MonkeyPatch) -> None:
    users = np.random.default_rng(1).integers(250, size=1500)
    case = make(1500, 4, activity=2 * np.random.default_rng(2).normal(size=250)[users])
    times, names = np.arange(1500) * 60.0, [f"user {user}" for user in users]

    def rewards() -> np.ndarray:
        fitted = model(n_folds=2).fit(case.x, case.feedback, users=names, times=times)
        assert "user" in fitted.context_
        return np.column_stack([fitted.decision_function(case.x), fitted.predict_propensity(case.x, users=names)])

    whole = rewards()
    monkeypatch.setattr(context_step, "PART", 40)
    np.testing.assert_array_equal(rewards(), whole)
