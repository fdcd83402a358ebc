"""Checks that signals are independent given the response, by the counts of a log alone: one check a function.

The model (implicit feedback as in arXiv:2603.23184, several signals): P(f_k=1 | x) = g m_k, and given x and the
preference the signals are independent. The checks that need predictions are in `residuals`.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import binom, norm, poisson

from irm_fast.diagnostics.subject import (
    ENOUGH,
    FAILED,
    LEVEL,
    NOT_TESTABLE,
    PASSED,
    TOO_FEW,
    Check,
    DiagnosedLog,
    by_user,
)

NESTED_ABOVE = 0.96  # share of the inner signal's actions; a propensity as high as that is not believed


def coactions(log: DiagnosedLog) -> Check:
    """Check that two signals of one polarity act together often enough to tell preference from propensity."""
    name = "co-actions"
    pairs = list(log.pairs())
    if not pairs:
        return Check(name, NOT_TESTABLE, "needs two signals of one polarity")
    counts = {pair: log.telling(*pair) for pair in pairs}
    (j, k), (count, varied) = max(counts.items(), key=lambda item: item[1][0] * item[1][1])
    what = f"{log.names[j]} and {log.names[k]}"
    if not log.recorded(j, k).any():
        return Check(name, TOO_FEW, "no two signals of one polarity are recorded in the same rows", 0.0)
    if not varied:
        text = f"{what}: one is recorded only where the other acts ({count} times), which tells nothing"
        return Check(name, TOO_FEW, text, float(count))
    text = f"{what} act together in {count} of {log.recorded(j, k).sum()} rows"
    return Check(name, PASSED if count >= ENOUGH else TOO_FEW, f"{text} (at least {ENOUGH} wanted)", float(count))


def nesting(log: DiagnosedLog) -> Check:
    """Check that no signal acts only where another does, apart from a few errors, and that no two are one.

    Under independence, P(outer=1 | inner=1) is the outer signal's propensity m. Nesting looks exactly like m=1, and no
    log can tell the two apart: what is rejected is a propensity of at most 0.96 (or of what is known), by the exact
    binomial tail.
    """
    name = "nesting"
    cases = []
    for pair in log.pairs():
        count, varied = log.telling(*pair)
        for inner, outer in (pair, pair[::-1]) if varied else ():
            rows = log.recorded(inner, outer) & (log.feedback[:, inner] == 1)
            known = log.known[rows, outer]
            limit = max(NESTED_ABOVE, float(known.mean())) if rows.any() and np.isfinite(known).all() else NESTED_ABOVE
            tail = float(binom.sf(count - 1, rows.sum(), limit)) if rows.any() else 1.0
            cases.append((tail, 1 - count / max(1, rows.sum()), inner, outer))
    if not cases:
        return Check(name, NOT_TESTABLE, "needs two signals of one polarity, recorded in the same rows")
    level = LEVEL / len(cases)
    tail, apart, inner, outer = min(cases)
    one, other, share = log.names[inner], log.names[outer], 1 - apart
    text = f"{other} acts in {share:.1%} of the rows where {one} acts"
    p_value = min(1.0, tail * len(cases))
    if tail < level:
        back = next(case for case in cases if case[2:] == (outer, inner))
        what = f"{one} and {other} act in the same rows" if back[0] < level else f"{one} acts only where {other} acts"
        return Check(name, FAILED, f"{what}: {text}", share, p_value)
    return Check(name, TOO_FEW if share > NESTED_ABOVE else PASSED, text, share, p_value)


def opposites(log: DiagnosedLog) -> Check:
    """Check that signals of opposite polarity do not act together more often than the misclick rates explain.

    P(f_j=1, f_k=1) = g m_j e_k m_k + (1-g) e_j m_j m_k <= e_k P(f_j) + e_j P(f_k): free of predictions.
    """
    name = "opposite signals"
    cases = []
    for j, k in log.pairs(same=False):
        rows = log.recorded(j, k)
        f_j, f_k = log.feedback[rows, j], log.feedback[rows, k]
        excess = f_j * f_k - log.misclick[k] * f_j - log.misclick[j] * f_k
        allowed = log.misclick[k] * f_j.sum() + log.misclick[j] * f_k.sum()
        count = int((f_j * f_k).sum())
        spread = np.sqrt((by_user(excess, log.users[rows]) ** 2).sum())
        normal = float(norm.sf(excess.sum() / spread)) if spread else 1.0
        cases.append((max(normal, float(poisson.sf(count - 1, allowed))) if allowed else float(not count), j, k, count))
    if not cases:
        return Check(name, NOT_TESTABLE, "all signals have one polarity")
    p_value, j, k, count = min(cases)
    text = f"{log.names[j]} and {log.names[k]} act together {count} times"
    failed = p_value * len(cases) < LEVEL
    why = ", more often than the declared misclicks explain" if failed else ""
    return Check(name, FAILED if failed else PASSED, text + why, float(count), min(1.0, p_value * len(cases)))
