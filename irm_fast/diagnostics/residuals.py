"""Checks that signals are independent given the response, by the residuals of a fit: one check a function.

All is conditional on x. Errors of the predictions must not look like dependence: rates are refitted on the rows at
hand (`calibration.refit`), only products of two errors remain, and a check rejects beyond a slack, never at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import chi2, norm, poisson

from irm_fast.data.signals import action_rate
from irm_fast.diagnostics.calibration import calibrate, logit, refit
from irm_fast.diagnostics.subject import (
    ENOUGH,
    FAILED,
    LEVEL,
    NEEDS_PREDICTIONS,
    NOT_TESTABLE,
    PASSED,
    TOO_FEW,
    Check,
    DiagnosedLog,
    by_user,
)

SLACK = 0.1  # relative covariance that is put down to errors of the predictions
SLACK_GIVEN = 0.07  # the same where one acted: an activity that three signals share comes to 0.12 at sd 1
STRATA = 5


def inequality(log: DiagnosedLog) -> Check:
    """Check that P(f_j, f_k | x) >= P(f_j | x) P(f_k | x) for one polarity, and the reverse for two.

    It follows from 0 <= g <= 1. The statistic is the residual covariance relative to the product of the rates, overall
    and in strata of the predicted rates. Where actions are rare its own spread is too small, so the count of co-actions
    must be too small (Poisson) as well.
    """
    name = "inequality"
    part = log.predicted()
    pairs = [(*pair, sign) for same, sign in ((True, 1), (False, -1)) for pair in log.pairs(same)]
    if not pairs or part is None:
        return Check(name, NOT_TESTABLE, "needs two signals" if not pairs else NEEDS_PREDICTIONS)
    cases = []
    for j, k, sign in pairs:
        rows = part.recorded(j, k)
        order = np.argsort(part.rates[rows][:, [j, k]].sum(axis=1), kind="stable")  # type: ignore[index]
        index = np.flatnonzero(rows)[order]
        for stratum in (index, *np.array_split(index, STRATA)):
            cases.append((*_covariance(part, j, k, sign, stratum), j, k))
    tails = [case[0] for case in cases]
    p_value = min(1.0, min(tails) * len(cases))
    j, k = cases[int(np.argmin(tails))][-2:]
    _, ratio, error, *_ = next(case for case in cases[:: STRATA + 1] if case[-2:] == (j, k))
    interval = (1 + ratio - 1.96 * error, 1 + ratio + 1.96 * error)
    bound = "at least" if part.polarity[j] == part.polarity[k] else "at most"
    strata = [1 + case[1] for case in cases if case[-2:] == (j, k)][1:]
    text = (
        f"{log.names[j]} and {log.names[k]} act together {max(0.0, 1 + ratio):.2f} times as often as if unrelated "
        f"({interval[0]:.2f} to {interval[1]:.2f}; {min(strata):.2f} to {max(strata):.2f} in {STRATA} strata); "
        f"{bound} 1 is possible"
    )
    few = max(case[3] for case in cases) < ENOUGH
    result = FAILED if p_value < LEVEL else TOO_FEW if few else PASSED
    return Check(name, result, text, 1 + ratio, p_value, interval, details=_strata(part, cases))


def _strata(
    log: DiagnosedLog, cases: Sequence[tuple[float, float, float, float, int, int]]
) -> tuple[Mapping[str, Any], ...]:
    """Return a mapping for each pair and stratum, the whole first: co-actions over those of unrelated signals."""
    return tuple(
        {
            "signals": [log.names[j], log.names[k]],
            "stratum": i % (STRATA + 1) or None,
            "ratio": 1 + ratio,
            "interval": [1 + ratio - 1.96 * error, 1 + ratio + 1.96 * error],
        }
        for i, (_, ratio, error, _, j, k) in enumerate(cases)
    )


def _covariance(log: DiagnosedLog, j: int, k: int, sign: int, rows: np.ndarray) -> tuple[float, float, float, float]:
    """Return tail probability, relative covariance and its standard error, and co-actions of unrelated signals."""
    p, f = log.rates[rows], log.feedback[rows]  # type: ignore[index]
    product, base = (f[:, j] - p[:, j]) * (f[:, k] - p[:, k]), p[:, j] * p[:, k]
    expected = float(base.sum())
    if expected <= 0:
        return 1.0, 0.0, float("inf"), 0.0
    ratio = float(product.sum() / expected)
    error = float(np.sqrt((by_user(product - ratio * base, log.users[rows]) ** 2).sum()) / expected)
    count = int(((f[:, j] == 1) & (f[:, k] == 1)).sum())
    if sign > 0:
        counted = float(poisson.cdf(count, (1 - SLACK) * expected))
    else:
        counted = float(poisson.sf(count - 1, (1 + SLACK) * expected))
    normal = float(norm.cdf((sign * ratio + SLACK) / error)) if error > 0 else 1.0
    return max(normal, counted), ratio, error, expected


def agreement(log: DiagnosedLog) -> Check:
    """Check that the preference that each two of three signals imply, P_j P_k / P_jk = g, is one.

    The relative residual covariances E[e_j e_k]/(p_j p_k) = 1/g - 1 of the three pairs are compared, each row with the
    same weight in all, so that a g that varies cancels: by a Wald test of two differences with the covariance of the
    rows (of the users), less the slack.
    """
    name = "pairwise agreement"
    part = log.predicted()
    triples = [t for t in combinations(range(len(log.names)), 3) if len(set(log.polarity[list(t)])) == 1]
    if not triples or part is None:
        return Check(name, NOT_TESTABLE, "needs three signals of one polarity" if not triples else NEEDS_PREDICTIONS)
    cases = [case for triple in triples if (case := _pairs_of(part, triple)) is not None]
    if not cases:
        return Check(name, TOO_FEW, f"fewer than {ENOUGH} co-actions in a pair of every three signals")
    tail, apart, implied, triple = min(cases, key=lambda case: case[0])
    shown = ", ".join(
        f"{log.names[j]}+{log.names[k]} {value:.2f}"
        for (j, k), value in zip(combinations(triple, 2), implied, strict=True)
    )
    p_value = min(1.0, tail * len(cases))
    failed = p_value < LEVEL
    text = f"mean preference that the pairs imply: {shown}"
    return Check(name, FAILED if failed else PASSED, text, apart, p_value)


def _pairs_of(log: DiagnosedLog, triple: tuple[int, ...]) -> tuple[float, float, list[float], tuple[int, ...]] | None:
    """Return tail probability, relative spread of 1/g, implied g of the pairs, and the triple; None if too few act."""
    rows, index = log.recorded(*triple), list(triple)
    f, p, own = log.feedback[rows][:, index], log.rates[rows][:, index], log.own[rows][:, index]  # type: ignore[index]
    pairs = list(combinations(range(3), 2))
    if min([(f[:, j] * f[:, k]).sum() for j, k in pairs]) < ENOUGH:
        return None
    e = log.misclick[index]
    size = p * (1 - e) * own / (own + e * (1 - own))  # the part of the rate that the preference causes
    weight = size.prod(axis=1) ** (2 / 3)
    row = [(f[:, j] - p[:, j]) * (f[:, k] - p[:, k]) / (size[:, j] * size[:, k]) * weight for j, k in pairs]
    ratio = np.array([1 + r.sum() / weight.sum() for r in row])
    if (ratio <= 0).any():
        return None
    users = log.users[rows]
    centred = [(r - (v - 1) * weight) / v for r, v in zip(row, ratio, strict=True)]
    influence = np.stack([by_user(c, users) / weight.sum() for c in centred])
    contrast = np.array([[1, -1, 0], [0, 1, -1]])
    moved, spread = contrast @ np.log(ratio), contrast @ (influence @ influence.T) @ contrast.T
    statistic = float(moved @ np.linalg.solve(spread + 1e-12 * np.eye(2), moved))
    # Beyond the slack: what is left of the statistic when the logarithms come closer by it.
    apart = float(np.ptp(np.log(ratio)))
    left = max(0.0, 1 - np.log1p(SLACK) / apart) if apart > 0 else 0.0
    return float(chi2.sf(statistic * left**2, 2)), float(np.expm1(apart)), list(1 / ratio), triple


def triples(log: DiagnosedLog) -> Check:
    """Check that where one of three signals acted the two others are unrelated given x: there the response pleased.

    The statistic is the residual covariance of the others on those rows, relative to the product of their rates there
    (refitted on those rows), less what the declared misclicks explain. It is the one check of single rows that a shared
    activity cannot pass.
    """
    name = "third signal"
    part = log.predicted()
    found = [t for t in combinations(range(len(log.names)), 3) if len(set(log.polarity[list(t)])) == 1]
    if not found or part is None:
        return Check(name, NOT_TESTABLE, "needs three signals of one polarity" if not found else NEEDS_PREDICTIONS)
    cases = []
    for triple in found:
        parts = [p for first in triple if (p := _given(part, first, [k for k in triple if k != first])) is not None]
        if not parts:
            continue
        product, base, users = (np.concatenate(column) for column in zip(*parts, strict=True))
        if base.sum() < ENOUGH:
            continue
        ratio = float(product.sum() / base.sum())
        error = float(np.sqrt((by_user(product - ratio * base, users) ** 2).sum()) / base.sum())
        cases.append((float(2 * norm.sf(max(0.0, abs(ratio) - SLACK_GIVEN) / error)), ratio, error, triple))
    if not cases:
        return Check(name, TOO_FEW, f"fewer than {ENOUGH} actions of every three signals together expected")
    tail, ratio, error, triple = min(cases, key=lambda case: case[0])
    p_value, interval = min(1.0, tail * len(cases)), (ratio - 1.96 * error, ratio + 1.96 * error)
    text = (
        f"where one of {', '.join(log.names[k] for k in triple)} acted, the relative covariance of the two others is "
        f"{ratio:.2f} ({interval[0]:.2f} to {interval[1]:.2f}); within {SLACK_GIVEN} is expected"
    )
    return Check(name, FAILED if p_value < LEVEL else PASSED, text, ratio, p_value, interval)


def _given(log: DiagnosedLog, first: int, others: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return products of the others' residuals, products of their rates, and users, of the rows where `first` acted."""
    part = log.subset(log.recorded(first, *others) & (log.feedback[:, first] == 1))
    if len(part.feedback) < 3 * ENOUGH:
        return None
    index = [first, *others]
    m, own = part.propensity[:, index], part.own[:, first]  # type: ignore[index]
    e, f = part.misclick[index], part.feedback[:, index]
    pleased = own / (own + e[0] * (1 - own))  # P(own side | first acted)
    expected = action_rate(pleased[:, None], m[:, 1:], e[1:])
    features = logit(np.column_stack([own, m]))
    rate = np.column_stack([refit(f[:, 1 + k], expected[:, k], features) for k in range(2)])
    explained = pleased * (1 - pleased) * (m[:, 1:] * (1 - e[1:])).prod(axis=1)
    return (f[:, 1:] - rate).prod(axis=1) - explained, rate.prod(axis=1), part.users


def calibration(log: DiagnosedLog) -> Check:
    """Check predicted against observed rates by decile: a check of the fit, which identifies nothing."""
    name = "fit: calibration"
    if log.own is None or log.propensity is None:
        return Check(name, NOT_TESTABLE, NEEDS_PREDICTIONS, about="fit")
    cases, details = [], []
    for k, signal in enumerate(log.names):
        rows = (log.feedback[:, k] >= 0) & np.isfinite(log.own[:, k])
        acted, own = log.feedback[rows, k], log.own[rows, k]
        if acted.sum() < ENOUGH:
            continue
        found = calibrate(acted, action_rate(own, log.propensity[rows, k], log.misclick[k]))
        gap = np.abs(found.observed - found.predicted)
        worst = int(gap.argmax())
        tail = float(chi2.sf(found.statistic, len(gap)))
        for predicted, observed, size in zip(found.predicted, found.observed, found.rows, strict=True):
            decile = {"predicted": float(predicted), "observed": float(observed), "rows": int(size)}
            details.append({"signal": signal, **decile})
        cases.append((tail, signal, found.observed[worst], found.predicted[worst], found.statistic))
    if not cases:
        return Check(name, TOO_FEW, f"no signal acts {ENOUGH} times in rows with predictions", about="fit")
    tail, signal, observed, predicted, statistic = min(cases)
    tail = min(1.0, tail * len(cases))
    text = f"{signal}: in the decile that is furthest off {observed:.3f} acted, {predicted:.3f} were predicted"
    result = FAILED if tail < LEVEL else PASSED
    return Check(name, result, text, float(statistic), tail, about="fit", details=tuple(details))
