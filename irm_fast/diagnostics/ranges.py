"""The range of the mean preference: how far violations that a log can hide would move scale and ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from irm_fast.data.signals import action_rate
from irm_fast.diagnostics.calibration import logit
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
HIDDEN_MISCLICKS = 0.1
BISECTIONS = 50


@dataclass(frozen=True)
class Sensitivity:
    """How far scale and ranking of the reward would move if an assumption were wrong; see `sensitivity`.

    A field is None where there are no predictions, or nothing to compare.

    Attributes:
        mean_g: The mean preference as fitted: a point to rely on only where `mean_g_range` is None.
        mean_g_range: The range of the mean preference, unless known propensities or labels fix it. Without two signals
            of one polarity, all that the action rates allow. Else it holds the fit before and after any correction, and
            where the first would move under misclicks of up to 10% and a shared activity of sd up to 2.25; up to 1 if
            users, sessions and times are known and proven rows show that none comes from them.
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


def measure(
    log: DiagnosedLog,
    *,
    fixed: bool,
    broken: bool,
    quiet: bool = False,
    refits: np.ndarray | None = None,
    uncorrected_mean: float | None = None,
    misclick_sensitivity: Sequence[tuple[float, float]] | None = None,
) -> Sensitivity:
    """Compute how far scale and ranking would move: of one signal, or of the two that act together most often.

    Args:
        log: The log with its predictions.
        fixed: Whether known propensities or labels fix the scale, so that there is no range.
        broken: Whether the log contradicts what even the ranking rests on, so that all the action rates allow goes.
        quiet: Whether proven rows show that no activity comes from users, sessions, places or times: then the range
            allows for a shared activity of sd 1, else 2.25.
        refits: Reward logits of shape (F, N), of F refits on the same rows.
        uncorrected_mean: The mean preference of the fit before any correction for activity. None: the predictions are
            not corrected.
        misclick_sensitivity: Pairs of a misclick rate and the mean preference of a fit under it. None: to first order.
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
    declared = (log.misclick[j], log.misclick[k])
    rates = [with_misclicks(own, declared, e) for e in (*MISCLICKS, HIDDEN_MISCLICKS)]

    # In terms of the preference
    if log.polarity[j] < 0:
        moved, hidden = tuple(_mirrored(entry) for entry in moved), _mirrored(hidden)
        rates = [1 - rate for rate in rates]
    clicks = tuple(Misclicks(e, value) for e, value in misclick_sensitivity or zip(MISCLICKS, rates, strict=False))
    start = mean if uncorrected_mean is None else uncorrected_mean
    ends = [mean, start, hidden.mean_g, rates[-1], *(entry.mean_g for entry in clicks)]
    ends += bounds if broken else ()
    span = (max(0.0, min(ends)), min(1.0, max(ends)))
    return Sensitivity(mean, None if fixed else span, None, moved, agreement, clicks)


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
