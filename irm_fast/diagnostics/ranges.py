"""The range of the mean preference: how far violations that a log can hide would move scale and ranking.

Each end is the furthest that one violation of a size that is named here takes the fit, and chance beyond it. Where a
check shows that the log is not as the scale takes it to be, nothing but the action rates bounds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.special import logit as exact_logit

from irm_fast.data.signals import action_rate
from irm_fast.diagnostics.calibration import logit
from irm_fast.diagnostics.level import refit_level
from irm_fast.diagnostics.sensitivity import (
    Misclicks,
    SharedActivity,
    rank_correlation,
    refit_agreement,
    sample,
    shared_activity,
    with_misclicks,
)
from irm_fast.diagnostics.subject import DiagnosedLog

ACTIVITY = (0.5, 1.0, 2.0)  # standard deviations on the logit
HIDDEN, HIDDEN_IF_QUIET = 2.25, 1.0  # the same, that the range of the mean preference allows for
MISCLICKS = (0.0, 0.01, 0.05)
HIDDEN_MISCLICKS = 0.1  # the same, above and below the declared rates
LOST = 0.5  # the same, of the silent rows; as much as if every row that acts were logged twice
ERRORS = 1.645  # of chance beyond the ends: at each end 5% (Imbens and Manski, Econometrica 2004)
BISECTIONS = 50


@dataclass(frozen=True)
class Sensitivity:
    """How far scale and ranking of the reward would move if an assumption were wrong; see `sensitivity`.

    A field is None where there are no predictions, or nothing to compare.

    Attributes:
        mean_g: The mean preference as fitted: a point to rely on only where `mean_g_range` is None.
        mean_g_range: The range of the mean preference, unless known propensities or labels fix it. Without two signals
            of one polarity, or where a check of ranking or scale fails, all that the action rates allow. Else it holds
            the fit before and after any correction, and where the first would move under each of these: misclicks of up
            to 10 points more or less than declared; a shared activity of sd up to 2.25, or up to 1 if users, sessions,
            times and segments are known and proven rows show that none comes from them; half of the silent rows never
            logged; and one signal that waits for the other, unless times of actions or a third signal show that none
            does: then all that the action rates allow on the upper side. Chance adds 1.645 standard errors.
        mean_g_error: The standard error of the mean preference, of chance alone.
        lost_silent: With two signals or more, the mean preference if half of the silent rows had never been logged.
        funnel: With two signals, the mean preference up to which they may be one signal of two stages; None where times
            of actions or a third signal tell.
        rank_with_action_rate: With one signal, Spearman's correlation of the fitted preference with the action rate:
            with the ranking that a constant propensity gives. A constant preference would leave no ranking at all.
        shared_activity: With two signals or more, what the reward would be under a shared activity of several sizes.
        refit_agreement: The mean of Spearman's correlations of refits; agreement does not prove that they are right.
        misclick: With two signals or more, the mean preference under several misclick rates.
    """

    mean_g: float | None = None
    mean_g_range: tuple[float, float] | None = None
    rank_with_action_rate: float | None = None
    shared_activity: tuple[SharedActivity, ...] = ()
    refit_agreement: float | None = None
    misclick: tuple[Misclicks, ...] = ()
    mean_g_error: float | None = None
    lost_silent: float | None = None
    funnel: float | None = None


def measure(
    log: DiagnosedLog,
    *,
    fixed: bool,
    broken: bool,
    quiet: bool = False,
    in_order: bool = False,
    refits: np.ndarray | None = None,
    uncorrected_mean: float | None = None,
    misclick_sensitivity: Sequence[tuple[float, float]] | None = None,
    mean_error: float | None = None,
) -> Sensitivity:
    """Compute how far scale and ranking would move: of one signal, or of the two that act together most often.

    Args:
        log: The log with its predictions.
        fixed: Whether known propensities or labels fix the scale, so that there is no range.
        broken: Whether the log contradicts what ranking or scale rest on, so that all the action rates allow goes.
        quiet: Whether proven rows show that no activity comes from users, sessions, places, times or segments: then the
            range allows for a shared activity of sd 1, else 2.25.
        in_order: Whether nothing shows that no signal waits for another.
        refits: Reward logits of shape (F, N), of F refits on the same rows.
        uncorrected_mean: The mean preference of the fit before any correction for activity. None: the predictions are
            not corrected.
        misclick_sensitivity: Pairs of a misclick rate and the mean preference of a fit under it. None: to first order.
        mean_error: The standard error of the mean preference. None: that of the level alone (`level.refit_level`).
    """
    agreement = None if refits is None else refit_agreement(np.asarray(refits, float))
    if log.own is None or log.propensity is None or not np.isfinite(log.own).any():
        return Sensitivity(refit_agreement=agreement)
    part = log.subset(np.isfinite(log.own[:, 0]))
    assert part.own is not None and part.propensity is not None
    mean = float((part.own[:, 0] if log.polarity[0] > 0 else 1 - part.own[:, 0]).mean())
    bounds = _bounds(part)
    pairs = sorted(log.pairs(), key=lambda pair: -log.telling(*pair)[0])
    if not pairs:
        one = len(log.names) == 1
        rank = rank_correlation(part.own[:, 0], part.own[:, 0] * part.propensity[:, 0]) if one else None
        return Sensitivity(mean, None if fixed else bounds, rank, refit_agreement=agreement)

    # Two signals of one side, as the fit had them before it was corrected
    j, k = pairs[0]
    some = sample(np.arange(len(part.own)))
    own, m_j, m_k = part.own[some, j], part.propensity[some, j], part.propensity[some, k]
    if uncorrected_mean is not None:
        target = uncorrected_mean if log.polarity[j] > 0 else 1 - uncorrected_mean
        own, m_j, m_k = _at_mean(own, m_j, m_k, target)
    moved = tuple(shared_activity(own, m_j, m_k, sd) for sd in ACTIVITY)
    hidden = shared_activity(own, m_j, m_k, HIDDEN_IF_QUIET if quiet else HIDDEN)
    declared = np.array([log.misclick[j], log.misclick[k]])
    lines = MISCLICKS if declared.max() <= max(MISCLICKS) else _around(declared.mean())
    rates = [with_misclicks(own, declared, np.full(2, e)) for e in lines]
    hidden_rates = [with_misclicks(own, declared, np.clip(declared + d, 0, 0.95)) for d in _around(0.0)]
    acted = (part.feedback == 1).any(axis=1).mean()
    lost = float(own.mean()) * (1 - LOST) / (1 - LOST * acted)

    # In terms of the preference
    if log.polarity[j] < 0:
        moved, hidden, lost = tuple(_mirrored(entry) for entry in moved), _mirrored(hidden), 1 - lost
        rates, hidden_rates = [1 - rate for rate in rates], [1 - rate for rate in hidden_rates]
    clicks = tuple(Misclicks(e, value) for e, value in misclick_sensitivity or zip(lines, rates, strict=True))
    start = mean if uncorrected_mean is None else uncorrected_mean
    ends = [mean, start, hidden.mean_g, lost, *hidden_rates, *(entry.mean_g for entry in clicks)]
    funnel = (bounds[1] if log.polarity[j] > 0 else bounds[0]) if in_order else None
    ends += [funnel] if funnel is not None else []
    ends += bounds if broken else ()
    error = refit_level(part, part.misclick).error if mean_error is None else mean_error
    span = _beyond(min(ends), -error, mean), _beyond(max(ends), error, mean)
    return Sensitivity(mean, None if fixed else span, None, moved, agreement, clicks, error, lost, funnel)


def _around(rate: float) -> tuple[float, float, float]:
    """Return the misclick rates that the range allows for where one is declared."""
    return rate - HIDDEN_MISCLICKS, rate, rate + HIDDEN_MISCLICKS


def _beyond(end: float, error: float, mean: float) -> float:
    """Move an end of the range by chance: on the logit, so that it stays within 0 and 1.

    Args:
        end: The end.
        error: The standard error of the mean preference, negative to move downwards.
        mean: The mean preference.
    """
    mean = min(max(mean, 1e-3), 1 - 1e-3)
    return float(expit(exact_logit(min(max(end, 0.0), 1.0)) + ERRORS * error / (mean * (1 - mean))))


def _mirrored(entry: SharedActivity) -> SharedActivity:
    return SharedActivity(entry.sd, 1 - entry.mean_g, entry.rank_correlation, entry.impossible)


def _bounds(log: DiagnosedLog) -> tuple[float, float]:
    """Return the mean preference that the action rates allow, for propensities of up to 1: a signal bounds its side."""
    assert log.own is not None and log.propensity is not None
    rates = action_rate(log.own, log.propensity, 0.0)
    liked = rates[:, log.polarity > 0].max(axis=1, initial=0.0).mean()
    disliked = rates[:, log.polarity < 0].max(axis=1, initial=0.0).mean()
    return float(liked), float(1 - disliked)


def _at_mean(
    own: np.ndarray, m_j: np.ndarray, m_k: np.ndarray, mean: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift the logits of `own` so that its mean is `mean`, at the same action rates; all of shape (N,)."""
    low, high = -30.0, 30.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(logit(own) + middle).mean() < mean else (low, middle)
    shifted = np.maximum(expit(logit(own) + low), own * np.maximum(m_j, m_k))  # a propensity is at most 1
    return shifted, own * m_j / shifted, own * m_k / shifted
