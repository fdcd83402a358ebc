"""Checks of signals that come one after the other: a funnel is one signal of two stages, not two signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
from scipy.stats import binom, norm

from irm_fast.diagnostics.proven import proven_rows
from irm_fast.diagnostics.subject import ENOUGH, FAILED, LEVEL, NOT_TESTABLE, PASSED, TOO_FEW, Check, DiagnosedLog

TIMED = 30  # co-actions of known order; fewer decide nothing
IN_ORDER, TOGETHER = 0.9, 0.85  # shares that are rejected as coming from signals that do not wait for each other
TIMES_AS_OFTEN = 2.5  # what a shared activity of sd 2 stays below


def funnel(log: DiagnosedLog) -> Check:
    """Check that no signal waits for another: by the times of actions, or, with three signals, on proven rows.

    By times: one acts after the other in at least 95% of their co-actions, and hardly ever without it. By a third
    signal: on rows that it proves, one acts far more often where the other acted than where it was silent. Two signals
    without times of actions cannot show it: one that acts mostly after the other, and a preference that is rare, look
    alike.
    """
    name = "funnel"
    if not list(log.pairs()):
        return Check(name, NOT_TESTABLE, "needs two signals of one polarity")
    cases = [*_by_times(log), *_by_third(log)]
    if not cases:
        if len(log.names) == 2 and log.acted_at is None:
            why = "two signals without the times of their actions cannot show it: needs acted_at, or a third signal"
            return Check(name, NOT_TESTABLE, why)
        return Check(name, TOO_FEW, f"fewer than {TIMED} co-actions of known order, or rows that a third signal proves")
    tail, statistic, text, first, second = min(cases)
    p_value = min(1.0, tail * len(cases))
    if p_value >= LEVEL:
        return Check(name, PASSED, text, statistic, p_value)
    return Check(name, FAILED, text, statistic, p_value, details=({"first": first, "second": second},))


def untold(checks: Sequence[Check]) -> bool:
    """Return True if no check tells whether a signal waits for another."""
    return all(check.result in (NOT_TESTABLE, TOO_FEW) for check in checks if check.name == "funnel")


Case = tuple[float, float, str, str, str]


def _by_times(log: DiagnosedLog) -> list[Case]:
    """Return tail, statistic, text and the two signals for each ordered pair whose actions have times."""
    cases: list[Case] = []
    for j, k in log.pairs() if log.acted_at is not None else ():
        rows = log.recorded(j, k)
        times, acted = log.acted_at[rows], log.feedback[rows] == 1  # type: ignore[index]
        for first, second in ((j, k), (k, j)):
            timed = acted[:, first] & acted[:, second] & np.isfinite(times[:, first] + times[:, second])
            count, waits = int(timed.sum()), int((times[timed, second] > times[timed, first]).sum())
            if count < TIMED:
                continue
            alone = acted[:, second] & ~acted[:, first]
            total, together = int(acted[:, second].sum()), int(acted[:, second].sum() - alone.sum())
            tail = max(float(binom.sf(waits - 1, count, IN_ORDER)), float(binom.sf(together - 1, total, TOGETHER)))
            one, other = log.names[first], log.names[second]
            text = (
                f"{other} comes after {one} in {waits / count:.0%} of their co-actions, and without it in "
                f"{1 - together / total:.0%} of its own"
            )
            cases.append((tail, together / total, text, one, other))
    return cases


def _by_third(log: DiagnosedLog) -> list[Case]:
    """Return the same for each ordered pair of signals, on rows that a third signal, or a label, proves."""
    cases: list[Case] = []
    for first, second in permutations(range(len(log.names)), 2):
        if log.polarity[first] != log.polarity[second]:
            continue
        without = log.feedback.copy()
        without[:, first] = -1
        rows = proven_rows(replace(log, feedback=without), second) & (log.feedback[:, first] >= 0)
        f = log.feedback[rows]
        after, alone = f[f[:, first] == 1, second], f[f[:, first] == 0, second]
        if min(len(after), len(alone)) < TIMED or after.sum() < ENOUGH:
            continue
        p, q = after.mean(), (alone.sum() + 0.5) / (len(alone) + 1)
        error = np.sqrt((1 - p) / max(after.sum(), 1) + (1 - q) / (q * len(alone)))
        tail = float(norm.sf((np.log(p / q) - np.log(TIMES_AS_OFTEN)) / error))
        one, other = log.names[first], log.names[second]
        text = f"on proven rows {other} acts in {p:.0%} where {one} acted, in {q:.0%} where it was silent"
        cases.append((tail, float(p / q), text, one, other))
    return cases
