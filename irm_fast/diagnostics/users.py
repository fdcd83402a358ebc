"""Checks of users: those who act on everything, and what different rows of one user have in common."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binom, norm, poisson

from irm_fast.diagnostics.context import shows_nothing
from irm_fast.diagnostics.cross_row import CrossRow, cross_row_dependence
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
)

USERS = 30  # with several rows; fewer decide nothing
ACROSS_ROWS = 0.05  # relative covariance between rows of one user that moves the scale too little to matter
EVERYTHING, MOST = 0.95, 0.75  # shares of a user's rows: more than the first is all, between the two is much
NO_USER = 0.85  # a share of rows that an eager user may act on
NAMED = 100  # users in the details
EXCLUDED = 0.2  # relative covariance in a session that is put down to chance and content


def alike(log: DiagnosedLog, user_activity: Check) -> tuple[CrossRow | None, Check]:
    """Measure what different rows of one user have in common, and check that it is nothing, or no activity.

    Args:
        log: The log; rows without a user have a number of their own.
        user_activity: The check of activity on proven rows, where users who are easier to please cannot enter.

    Returns:
        The measure, or None where there is none, and the check.
    """
    name = "users alike"
    if not log.user_names or len(log.names) < 2:
        why = "one signal assumes nothing about users" if log.user_names else "needs user ids"
        return None, Check(name, NOT_TESTABLE, why, about="scale")
    if log.rates is None:
        return None, Check(name, NOT_TESTABLE, NEEDS_PREDICTIONS, about="scale")
    found = cross_row_dependence(log.feedback, log.rates, log.users)
    if found.users < USERS or not math.isfinite(found.z):
        few = f"{found.users} users have several rows (at least {USERS} wanted)"
        return None, Check(name, TOO_FEW, few, about="scale")
    beyond = cross_row_dependence(log.feedback, log.rates, log.users, slack=ACROSS_ROWS)
    p_value = float(norm.sf(beyond.z))
    j, k = next(iter(log.pairs()), (0, 1))
    low, high = (float(bound) for bound in found.interval[j, k])
    said = (
        f"different rows of one user: z = {found.z:.1f}, relative covariance of {log.names[j]} and {log.names[k]} "
        f"{found.rho[j, k]:.2f} ({low:.2f} to {high:.2f}); {found.users} users"
    )
    result = FAILED if p_value < LEVEL else PASSED
    if result == FAILED and "user" in log.context:
        said += "; activity is modelled: the rest are users who are easier to please, or what the model misses"
        result = PASSED
    elif result == FAILED and shows_nothing(user_activity):
        said += "; proven rows show no activity: some users are easier to please, which moves the scale little"
        result = PASSED
    elif result == FAILED:
        said += "; users share an activity, or some are easier to please, or each sees responses of one kind"
    return found, Check(name, result, said, found.z, p_value, (low, high), about="scale")


def act_on_everything(log: DiagnosedLog) -> Check:
    """Check that hardly any user acts on everything, as a script does.

    Users with 10 rows or more count, and actions of positive polarity. Either one user acts on more than any person
    would (85% of the rows, by the binomial tail), or more users act on over 95% of their rows than both chance and the
    number of those who act on 75 to 95% explain: people differ, but thin out towards the end, so that of the shares
    above 75% those above 95% are at most as frequent as they are many. An activity of users in the propensities mends
    nothing here: who acts on everything acts on what does not please as well.
    """
    return scripts(log)[0]


def scripts(log: DiagnosedLog) -> tuple[Check, np.ndarray]:
    """Return the check `act_on_everything`, and a mask (N,) of the rows of the users that it names, if it fails."""
    none = np.zeros(len(log.feedback), bool)
    name = "users who act on everything"
    positive = log.feedback[:, log.polarity > 0]
    rows = (positive >= 0).any(axis=1)
    acted = (positive == 1).any(axis=1)[rows]
    index, size = np.unique(log.users[rows], return_inverse=True, return_counts=True)[1:]
    count = np.bincount(index, acted, len(size))
    many = size >= ENOUGH
    if not many.any():
        return Check(name, NOT_TESTABLE, f"needs users with {ENOUGH} rows", about="scale"), none
    share = np.where(many, count / size, 0.0)
    all_of_it, much = share > EVERYTHING, (share > MOST) & (share <= EVERYTHING)
    others = float(count[~all_of_it].sum() / max(1, size[~all_of_it].sum()))
    if others > MOST:
        return Check(name, NOT_TESTABLE, f"nearly all rows act ({others:.0%})", about="scale"), none
    alone = binom.sf(count - 1, size, NO_USER)[many].min() * many.sum()
    by_chance = binom.sf(np.floor(EVERYTHING * size), size, max(others, 1e-6))[many].sum()
    top, next_to = int(all_of_it.sum()), int(much.sum())
    possible, most = size - np.floor(MOST * size), size - np.floor(EVERYTHING * size)  # counts above these shares
    even = float((most / possible)[all_of_it | much].mean()) if top + next_to else 1.0
    together = max(float(poisson.sf(top - 1, by_chance)), float(binom.sf(top - 1, max(1, top + next_to), even)))
    p_value = min(1.0, 2 * float(min(alone, together)))
    part = float(count[all_of_it].sum() / max(1, count.sum()))
    said = (
        f"{top} of {many.sum()} users with {ENOUGH} rows or more act on over {EVERYTHING:.0%} of them, with {part:.0%} "
        f"of all rows that act; the others act on {others:.0%}"
    )
    if p_value >= LEVEL:
        return Check(name, PASSED, said, float(top), p_value, about="scale"), none
    found = np.unique(log.users[rows])[all_of_it][np.argsort(-count[all_of_it], kind="stable")]
    details = tuple({"user": str(log.user_names.get(int(number), number))} for number in found[:NAMED])
    check = Check(name, FAILED, said, float(top), p_value, about="scale", details=details)
    return check, np.isin(log.users, found)


def one_choice(log: DiagnosedLog) -> Check:
    """Check that an action in one row of a session does not forbid the same action in the others.

    Where users choose one of several answers, a silent row says that another was chosen, not that it displeased. The
    statistic is the relative covariance of a signal between different rows of a session, at predicted or mean rates.
    Where pairs are few its spread is too small, so that their number must be too small (Poisson) as well.
    """
    name = "one choice a session"
    if log.sessions is None or not log.repeated(log.sessions):
        return Check(name, NOT_TESTABLE, "needs sessions of several rows")
    found = cross_row_dependence(log.feedback, log.expected(), log.sessions)
    rho = np.diag(found.rho)
    error = (found.interval[..., 1] - found.interval[..., 0]).diagonal() / (2 * 1.96)
    if found.users < USERS or not np.isfinite(error).any() or not (error > 0).any():
        return Check(name, TOO_FEW, f"{found.users} sessions have several rows (at least {USERS} wanted)")
    with np.errstate(invalid="ignore", divide="ignore"):
        normal = np.where(error > 0, norm.cdf((rho + EXCLUDED) / error), 1.0)
    tails = np.maximum(normal, [_few_pairs(log, k) for k in range(len(rho))])
    k = int(np.nanargmin(tails))
    p_value = min(1.0, float(tails[k]) * len(rho))
    said = f"{log.names[k]} acts in two rows of a session {1 + rho[k]:.2f} times as often as if they were unrelated"
    interval = (float(1 + rho[k] - 1.96 * error[k]), float(1 + rho[k] + 1.96 * error[k]))
    return Check(name, FAILED if p_value < LEVEL else PASSED, said, float(1 + rho[k]), p_value, interval)


def _few_pairs(log: DiagnosedLog, k: int) -> float:
    """Return the Poisson tail of the pairs of rows of one session in which signal k acts."""
    assert log.sessions is not None
    rates = log.expected()[:, k]
    recorded = (log.feedback[:, k] >= 0) & np.isfinite(rates)
    index = np.unique(log.sessions, return_inverse=True)[1][recorded]
    acted, rate = log.feedback[recorded, k], rates[recorded]
    count = np.bincount(index, acted)
    pairs, expected = (count * (count - 1)).sum() / 2, (np.bincount(index, rate) ** 2).sum() / 2 - (rate**2).sum() / 2
    return float(poisson.cdf(pairs, (1 - EXCLUDED) * expected))
