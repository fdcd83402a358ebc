"""Is the reward identified? What is assumed, what this log can test, how far the answer could be off."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit
from scipy.stats import norm

from irm_fast.data.signals import DESIGNS, action_rate
from irm_fast.diagnostics import counts, residuals, text
from irm_fast.diagnostics.calibration import logit, refit
from irm_fast.diagnostics.cross_row import CrossRow, cross_row_dependence
from irm_fast.diagnostics.result import Diagnosis, Sensitivity
from irm_fast.diagnostics.sensitivity import rank_correlation, refit_agreement, sample, shared_activity
from irm_fast.diagnostics.subject import (
    FAILED,
    LEVEL,
    NEEDS_PREDICTIONS,
    NOT_TESTABLE,
    PASSED,
    TOO_FEW,
    Check,
    DiagnosedLog,
)

ACTIVITY = (0.5, 1.0, 2.0)  # standard deviations on the logit
USERS = 30  # with several rows; fewer decide nothing
ACROSS_ROWS = 0.05  # relative covariance between rows of one user that moves the scale too little to matter


def diagnose(
    feedback: np.ndarray,
    *,
    propensity_design: str | Sequence[str],
    signals: Sequence[str] | None = None,
    polarity: Sequence[int] | np.ndarray | None = None,
    misclick_rate: Sequence[float] | np.ndarray | None = None,
    reward_logits: np.ndarray | None = None,
    propensity_logits: np.ndarray | None = None,
    preference: np.ndarray | None = None,
    labels_ignorable: bool = False,
    weight: np.ndarray | None = None,
    users: Sequence[Hashable | None] | np.ndarray | None = None,
    fold_rewards: np.ndarray | None = None,
    feature_names: Sequence[str] = (),
) -> Diagnosis:
    """Diagnose a log, and a fit to it where predictions are given: is the reward identified, and by what?

    The predictions may be somewhat off: see `residuals`. Together the checks reject what holds about once in 60 logs.
    A failed calibration says that the fit is poor, not that an assumption is wrong: it never contradicts.

    Args:
        feedback: Integers of shape (N, K): 1 acted, 0 silent, -1 missing.
        propensity_design: constant, hidden, features or known, for all signals or for each.
        signals: The names of the K signals.
        polarity: +1 or -1 for each signal; None: all +1.
        misclick_rate: A rate in [0, 1) for each signal; None: all 0.
        reward_logits: Reward logits of shape (N,), with the bias, of a model that was not trained on these rows; NaN in
            rows without a prediction. None: diagnose what the log alone shows.
        propensity_logits: Propensity logits of shape (N, K), as the reward logits.
        preference: Explicit labels of shape (N,): 1, 0, or -1 unknown.
        labels_ignorable: The user's word that the choice of rows to label does not depend on the preference.
        weight: The weight of each row, of shape (N,). Rows of weight 0 are left out; otherwise weights change no check,
            since all are conditional on the response.
        users: The user of each row, None where unknown; or None if all are.
        fold_rewards: Reward logits of shape (F, N), of F refits on the same rows.
        feature_names: The names of what the propensity design `features` reads.

    Returns:
        The diagnosis; `print` shows it as a page of text.

    Raises:
        ValueError: An argument has the wrong shape or an unknown value.

    Examples:
        >>> import numpy as np
        >>> feedback = np.random.default_rng(0).integers(0, 2, (1000, 1))
        >>> found = diagnose(feedback, propensity_design="constant", signals=["copy"])
        >>> found.kind
        'not identified'
        >>> found.remedies[0][:52]
        'Log one more action of the same polarity that does n'
    """
    feedback = np.asarray(feedback)
    _check_feedback(feedback)
    rows, count = feedback.shape
    designs = _designs(propensity_design, count)
    shapes = {
        "signals": (signals, (count,)),
        "polarity": (polarity, (count,)),
        "misclick_rate": (misclick_rate, (count,)),
        "reward_logits": (reward_logits, (rows,)),
        "propensity_logits": (propensity_logits, (rows, count)),
        "preference": (preference, (rows,)),
        "weight": (weight, (rows,)),
    }
    _check_shapes(shapes)
    if users is not None and len(users) != rows:
        raise ValueError(f"users: got {len(users)}; expected {rows}, as the feedback's rows")
    if (reward_logits is None) != (propensity_logits is None):
        raise ValueError("reward_logits and propensity_logits: got one of the two; expected both or none")

    # The log, its predictions, and the rows that count
    log = DiagnosedLog(
        names=tuple(signals) if signals is not None else tuple(f"signal {k + 1}" for k in range(count)),
        designs=designs,
        feedback=feedback.astype(np.int64),
        polarity=np.ones(count, int) if polarity is None else np.asarray(polarity, int),
        misclick=np.zeros(count) if misclick_rate is None else np.asarray(misclick_rate, float),
        preference=np.full(rows, -1) if preference is None else np.asarray(preference),
        users=_numbers(users, rows),
        known=np.full((rows, count), np.nan),
        feature_names=feature_names,
    )
    if reward_logits is not None and propensity_logits is not None:
        log = _with_predictions(log, np.asarray(reward_logits, float), np.asarray(propensity_logits, float))
    kept = np.ones(rows, bool) if weight is None else np.asarray(weight) > 0
    named = None if users is None else [user for user, keep in zip(users, kept, strict=True) if keep]
    return _diagnosis(log.subset(kept), named, labels_ignorable, fold_rewards)


def _diagnosis(
    log: DiagnosedLog,
    users: Sequence[Hashable | None] | None,
    labels_ignorable: bool,
    fold_rewards: np.ndarray | None,
) -> Diagnosis:
    """Check the log, and put together what the checks say."""
    cross_row, users_alike = _cross_row(log, users)
    checks = _checks(log, users_alike)
    kind, verdict = text.verdict(log, checks, labels_ignorable)
    return Diagnosis(
        kind=kind,
        verdict=verdict,
        assumed=text.assumptions(log, labels_ignorable),
        tests=checks,
        sensitivity=_sensitivity(log, cross_row, fold_rewards),
        remedies=text.remedies(log, kind, checks),
        cross_row=cross_row,
    )


def _check_feedback(feedback: np.ndarray) -> None:
    """Raise ValueError unless the feedback is of shape (N, K) and holds 1, 0 and -1 only."""
    if feedback.ndim != 2 or not np.isin(feedback, (-1, 0, 1)).all():
        got = f"{feedback.shape}" if feedback.ndim != 2 else "other values"
        raise ValueError(f"feedback: got {got}; expected (N, K) of 1 acted, 0 silent, -1 missing")


def _designs(propensity_design: str | Sequence[str], count: int) -> tuple[str, ...]:
    """Return the propensity design of each signal."""
    designs = (propensity_design,) * count if isinstance(propensity_design, str) else tuple(propensity_design)
    if not set(designs) <= set(DESIGNS) or len(designs) != count:
        expected = f"one of {', '.join(DESIGNS)}, or {count} of them"
        raise ValueError(f"propensity_design: got {propensity_design!r}; expected {expected}")
    return designs


def _check_shapes(given: Mapping[str, tuple[ArrayLike | None, tuple[int, ...]]]) -> None:
    """Raise ValueError for an argument that is given and does not have its shape; `given` holds both by name."""
    for name, (value, shape) in given.items():
        if value is not None and np.shape(value) != shape:
            raise ValueError(f"{name}: got shape {np.shape(value)}; expected {shape}, as the feedback's")


def _with_predictions(log: DiagnosedLog, reward: np.ndarray, propensity: np.ndarray) -> DiagnosedLog:
    """Return the log with predicted probabilities, and action rates refitted on the rows that have a prediction."""
    own, m = expit(reward[:, None] * log.polarity), expit(propensity)
    known = np.where(np.array(log.designs) == "known", m, np.nan)
    predicted = np.isfinite(reward) & (np.isfinite(propensity) | (log.feedback < 0)).all(axis=1)
    m = np.where(np.isfinite(m), m, 0.5)  # of entries that are missing in the log as well
    rates = np.full(m.shape, np.nan)
    raw = action_rate(own, m, log.misclick)
    features = logit(np.column_stack([own[:, :1], m]))
    for k in range(m.shape[1]):
        recorded = predicted & (log.feedback[:, k] >= 0)
        rates[predicted, k] = raw[predicted, k]
        if recorded.any():
            rates[recorded, k] = refit(log.feedback[recorded, k], raw[recorded, k], features[recorded])
    own = np.where(predicted[:, None], own, np.nan)
    return replace(log, known=known, own=own, propensity=m, rates=rates)


def _numbers(users: Sequence[Hashable | None] | np.ndarray | None, rows: int) -> np.ndarray:
    """Return integers of shape (N,): one for each user, and one of its own for each row without a user."""
    if users is None:
        return np.arange(rows)
    numbers: dict[Hashable, int] = {}
    return np.array([i if user is None else numbers.setdefault(user, rows + i) for i, user in enumerate(users)], int)


def _cross_row(log: DiagnosedLog, users: Sequence[Hashable | None] | None) -> tuple[CrossRow | None, Check]:
    """Measure what different rows of one user have in common, and check that it is nothing.

    Args:
        log: The rows to check.
        users: The user of each of these rows, None where unknown; or None if all are.

    Returns:
        The measure, or None where there is none, and the check.
    """
    name = "users alike"
    if users is None or len(log.names) < 2:
        why = "needs user ids" if users is None else "one signal assumes nothing about users"
        return None, Check(name, NOT_TESTABLE, why)
    if log.rates is None:
        return None, Check(name, NOT_TESTABLE, NEEDS_PREDICTIONS)
    found = cross_row_dependence(log.feedback, log.rates, users)
    if found.users < USERS or not math.isfinite(found.z):
        return None, Check(name, TOO_FEW, f"{found.users} users have several rows (at least {USERS} wanted)")
    beyond = cross_row_dependence(log.feedback, log.rates, users, slack=ACROSS_ROWS)
    p_value = float(norm.sf(beyond.z))
    same = [pair for pair in log.pairs()] or [(0, 1)]
    j, k = same[0]
    low, high = (float(bound) for bound in found.interval[j, k])
    said = (
        f"different rows of one user: z = {found.z:.1f}, relative covariance of {log.names[j]} and {log.names[k]} "
        f"{found.rho[j, k]:.2f} ({low:.2f} to {high:.2f}); {found.users} users"
    )
    if p_value < LEVEL:
        said += "; users share an activity, or some are easier to please, or each sees responses of one kind"
    return found, Check(name, FAILED if p_value < LEVEL else PASSED, said, found.z, p_value, (low, high))


def _checks(log: DiagnosedLog, users_alike: Check) -> tuple[Check, ...]:
    """Carry out the other checks, and return all in the order of the report."""
    calibration = residuals.calibration(log)
    for_good_fits = [residuals.inequality(log), residuals.agreement(log), residuals.triples(log)]
    if "constant" in log.designs and calibration.result == FAILED:
        for_good_fits = [_undecided(check) for check in for_good_fits]
    from_counts = [counts.coactions(log), counts.nesting(log), counts.opposites(log)]
    return (*from_counts, *for_good_fits, users_alike, calibration)


def _undecided(check: Check) -> Check:
    """Take back a failure under propensities that are taken as constant: if they are not, the check fails as well."""
    if check.result != FAILED:
        return check
    why = "; propensities that are not constant do the same, and the fit is poor: fit propensity design hidden first"
    return replace(check, result=NOT_TESTABLE, text=check.text + why)


def _sensitivity(log: DiagnosedLog, crossed: CrossRow | None, refits: np.ndarray | None) -> Sensitivity:
    """Compute how far scale and ranking would move: of one signal, or of the two that act together most often."""
    agreement = None if refits is None else refit_agreement(np.asarray(refits, float))
    if log.own is None or log.propensity is None or not np.isfinite(log.own).any():
        return Sensitivity(refit_agreement=agreement)
    rows = np.flatnonzero(np.isfinite(log.own[:, 0]))
    own, m = log.own[rows], log.propensity[rows]
    g = own[:, 0] if log.polarity[0] > 0 else 1 - own[:, 0]
    mean = float(g.mean())
    if len(log.names) == 1:
        rate = own[:, 0] * m[:, 0]
        low = float(rate.mean())
        band = (low, 1.0) if log.polarity[0] > 0 else (0.0, 1 - low)
        return Sensitivity(mean, band, rank_correlation(own[:, 0], rate), refit_agreement=agreement)
    pairs = sorted(log.pairs(), key=lambda pair: -log.telling(*pair)[0])
    if not pairs:
        return Sensitivity(mean, refit_agreement=agreement)
    j, k = pairs[0]
    some = sample(np.arange(len(rows)))
    moved = tuple(shared_activity(own[some, j], m[some, j], m[some, k], sd) for sd in ACTIVITY)
    span = None
    if crossed is not None and math.isfinite(crossed.rho[j, k]) and log.polarity[j] > 0:
        span = (mean, float(np.clip(mean * (1 + max(0.0, crossed.rho[j, k])), 0, 1)))
    return Sensitivity(mean, span, None, moved, agreement)
