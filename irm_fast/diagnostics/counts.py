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

RARELY = 0.2  # of the co-actions of unrelated signals: fewer are no matter of what the responses are
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
            cases.append((tail, 1 - count / max(1, rows.sum()), inner, outer, int(rows.sum())))
    if not cases:
        return Check(name, NOT_TESTABLE, "needs two signals of one polarity, recorded in the same rows")
    level = LEVEL / len(cases)
    tail, apart, inner, outer, acts = min(cases)
    one, other, share = log.names[inner], log.names[outer], 1 - apart
    text = f"{other} acts in {share:.1%} of the rows where {one} acts"
    p_value = min(1.0, tail * len(cases))
    if tail < level:
        back = next(case for case in cases if case[2:4] == (outer, inner))
        what = f"{one} and {other} act in the same rows" if back[0] < level else f"{one} acts only where {other} acts"
        return Check(name, FAILED, f"{what}: {text}", share, p_value)
    if share <= NESTED_ABOVE:
        return Check(name, PASSED, text, share, p_value)
    seen = ({"inner": one, "outer": other, "rows": acts},) if acts >= ENOUGH else ()
    return Check(name, TOO_FEW, text, share, p_value, details=seen)


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


def exclusive(log: DiagnosedLog) -> Check:
    """Check that two signals of one polarity act together at all: what they speak for makes both likelier.

    P(f_j=1, f_k=1 | x) >= P(f_j=1 | x) P(f_k=1 | x) follows from the model. The check rejects a fifth of that, by the
    Poisson tail: so few co-actions come from a wrong polarity, or from signals that exclude each other. `inequality` is
    the finer check, where predictions say what the responses explain.
    """
    name = "act together"
    cases = []
    rates = log.expected()
    for j, k in log.pairs():
        rows = log.recorded(j, k) & np.isfinite(rates[:, [j, k]]).all(axis=1)
        count = int((log.feedback[rows][:, [j, k]] == 1).all(axis=1).sum())
        expected = float((rates[rows, j] * rates[rows, k]).sum())
        cases.append((float(poisson.cdf(count, RARELY * expected)), j, k, count, expected))
    if not cases:
        return Check(name, NOT_TESTABLE, "needs two signals of one polarity")
    tail, j, k, count, expected = min(cases)
    p_value = min(1.0, tail * len(cases))
    text = (
        f"{log.names[j]} and {log.names[k]} act together in {count} rows; {expected:.0f} would be expected of "
        "unrelated signals, and fewer are impossible"
    )
    ratio = count / expected if expected else float("nan")
    few = expected < ENOUGH
    result = FAILED if p_value < LEVEL else TOO_FEW if few else PASSED
    details = ({"signals": [log.names[j], log.names[k]], "together": count, "expected": expected},)
    return Check(name, result, text, ratio, p_value, details=details)


def labels(log: DiagnosedLog) -> Check:
    """Check that signals act on rows labelled with the other side no more often than the misclick rates explain.

    P(f_k=1 | other side) = e_k m_k, where P(f_k=1 | own side) = m_k: the ratio of both rates is the misclick rate.
    """
    name = "labels"
    if not (log.preference >= 0).any() or not len(log.names):
        return Check(name, NOT_TESTABLE, "needs explicit labels", about="scale")
    cases = []
    for k, e in enumerate(log.misclick):
        own = log.preference == (1 if log.polarity[k] > 0 else 0)
        other = (log.preference >= 0) & ~own
        on_own, on_other = (log.feedback[rows & (log.feedback[:, k] >= 0), k] for rows in (own, other))
        if len(on_own) < ENOUGH or len(on_other) < ENOUGH:
            continue
        count, m = int(on_other.sum()), (on_own.sum() + 1) / (len(on_own) + 2)
        tail = float(binom.sf(count - 1, len(on_other), e * m)) if e else float(not count)
        error = np.sqrt(e * m * (1 - e * m) / len(on_other) + e**2 * m * (1 - m) / len(on_own))
        normal = float(norm.sf((on_other.mean() - e * m) / error)) if error else 0.0
        cases.append((max(tail, normal), k, float(on_other.mean()), float(m), count))
    if not cases:
        return Check(name, TOO_FEW, f"fewer than {ENOUGH} labels of each side", about="scale")
    tail, k, rate, m, count = min(cases)
    p_value = min(1.0, tail * len(cases))
    text = (
        f"{log.names[k]} acts in {rate:.1%} of the rows labelled with the other side ({count}), in {m:.1%} of those on "
        f"its own: a misclick rate of {min(rate / m, 1.0):.2f}, {log.misclick[k]:g} is declared"
    )
    result = FAILED if p_value < LEVEL else PASSED
    details = ({"signal": log.names[k], "misclick_rate": min(rate / m, 1.0)},)
    return Check(name, result, text, rate / m, p_value, about="scale", details=details)


def known_propensities(log: DiagnosedLog) -> Check:
    """Check that signals act no more often than their known propensities allow: P(f_k=1 | x) <= m_k.

    Overall and by decile of the known propensity: the count of actions must be too large by the Poisson tail (that of
    the sum of Bernoulli draws is smaller), and by the normal one, robust to users.
    """
    name = "known propensities"
    cases = []
    for k, signal in enumerate(log.names):
        rows = np.flatnonzero(np.isfinite(log.known[:, k]) & (log.feedback[:, k] >= 0))
        order = rows[np.argsort(log.known[rows, k], kind="stable")]
        parts = [("in all rows", rows), *((f"in decile {d + 1}", p) for d, p in enumerate(np.array_split(order, 10)))]
        for where, part in parts:
            if not len(part):
                continue
            f, m = log.feedback[part, k], log.known[part, k]
            spread = np.sqrt((by_user(f - m, log.users[part]) ** 2).sum())
            normal = float(norm.sf((f - m).sum() / spread)) if spread else 1.0
            tail = max(normal, float(poisson.sf(f.sum() - 1, m.sum())))
            cases.append((tail, signal, where, float(f.mean()), float(m.mean())))
    if not cases:
        return Check(name, NOT_TESTABLE, "needs known propensities")
    tail, signal, where, rate, allowed = min(cases)
    p_value = min(1.0, tail * len(cases))
    failed = p_value < LEVEL
    text = f"{signal} acts in {rate:.2%} {where}; its known propensities there allow {allowed:.2%} at most"
    return Check(name, FAILED if failed else PASSED, text, rate - allowed, p_value)
