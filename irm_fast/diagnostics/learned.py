"""Checks that a reward was learned at all: that it varies, and foretells actions better than constant rates do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import xlogy
from scipy.stats import norm

from irm_fast.data.signals import action_rate
from irm_fast.diagnostics.calibration import logit, refit
from irm_fast.diagnostics.subject import (
    ENOUGH,
    FAILED,
    NEEDS_PREDICTIONS,
    NOT_TESTABLE,
    PASSED,
    TOO_FEW,
    Check,
    DiagnosedLog,
    by_user,
)

VARIES = 1e-6  # standard deviation of reward logits, relative to their size if that is above 1
CERTAIN = 16.0  # reward logit
BETTER = 0.05  # level at which predictions count as better than constant rates
NAME = "better than constant rates"

LEARNED, NOT_LEARNED, NOT_TESTED = "learned", "not learned", "not tested"
UNTESTED = "not tested on held-out rows whether it was learned"


def is_constant(reward: np.ndarray) -> bool:
    """Return whether reward logits (N,) are the same but for rounding, as of a model that learned nothing.

    So are those beyond 16 on one side: there a preference is certain to 1e-7, and rewards do not tell rows apart.
    """
    reward = np.clip(reward, -CERTAIN, CERTAIN)
    return float(reward.std()) < VARIES * max(1.0, float(np.abs(reward).mean()))


def constant_in_words(reward: np.ndarray) -> str:
    """Return what is wrong with rewards for which `is_constant` holds."""
    low, high = float(reward.min()), float(reward.max())
    if low > CERTAIN or high < -CERTAIN:
        return f"the reward is {low:.4g} to {high:.4g} for all of {len(reward)} rows, a certain preference"
    spread = f"standard deviation {reward.std():.2g}"
    return f"the reward is the same, {reward.mean():.4g}, for all of {len(reward)} rows ({spread})"


def varies(log: DiagnosedLog) -> Check:
    """Check that the predicted rewards are not all the same, as of inputs that are equal or a network that died."""
    name = "reward varies"
    if log.preferred is None or np.isfinite(log.preferred).sum() < 2:
        return Check(name, NOT_TESTABLE, NEEDS_PREDICTIONS, about="reward")
    reward = logit(log.preferred[np.isfinite(log.preferred)])
    spread = float(reward.std())
    text = f"standard deviation of the reward logits {spread:.2g}"
    return Check(name, FAILED if is_constant(reward) else PASSED, text, spread, about="reward")


def beats_constant(log: DiagnosedLog) -> Check:
    """Check that the predicted action rates explain the actions better than one rate a signal for all rows does.

    The held-out log-likelihoods are compared in pairs, by user. Predictions get the level that suits the rows at hand,
    as constant rates do: how good they are at telling rows apart is what counts; `calibration` judges the level. Where
    no signal acts, the predicted preferences are compared with the labels alike.
    """
    if log.own is None or log.preferred is None or log.propensity is None:
        return Check(NAME, NOT_TESTABLE, NEEDS_PREDICTIONS, about="learning")
    signals = [
        (log.feedback[:, k], action_rate(log.own[:, k], log.propensity[:, k], log.misclick[k]))
        for k in range(len(log.names))
    ]
    acted = any((seen == 1).any() for seen, _ in signals)
    gain, count = _gain(signals if acted else [(log.preference, log.preferred)])
    what = "actions" if acted else "labels of the rarer kind"
    if count < ENOUGH:
        return Check(NAME, TOO_FEW, f"{count} {what} in rows with predictions", about="learning")
    spread = float(np.sqrt((by_user(gain, log.users) ** 2).sum()))
    p_value = float(norm.sf(gain.sum() / spread)) if spread > 0 else 1.0
    mean_gain, error = float(gain.sum() / count), spread / count
    one = "an action" if acted else "a label"
    said = (
        f"log-likelihood {mean_gain:+.3f} {one} beyond that of constant rates, standard error {error:.3f} "
        f"(p = {p_value:.2g})"
    )
    result = PASSED if p_value < BETTER else FAILED if mean_gain <= 0 else TOO_FEW
    details = ({"gain": mean_gain, "standard_error": error},)
    return Check(NAME, result, said, mean_gain, p_value, about="learning", details=details)


def _gain(columns: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, int]:
    """Return how much more likely predictions make each row than constant rates do, and the number of actions.

    Args:
        columns: Pairs of what was seen, (N,) of 1, 0 and -1 unknown, and of its predicted rate, (N,), NaN without one.
    """
    gain, count = np.zeros(len(columns[0][0])), 0
    for seen, predicted in columns:
        rows = (seen >= 0) & np.isfinite(predicted)
        acted = seen[rows]
        if not 0 < acted.sum() < len(acted):
            continue
        count += int(acted.sum())
        rate, mean = refit(acted, predicted[rows], np.empty((len(acted), 0))), acted.mean()
        gain[rows] += xlogy(acted, rate / mean) + xlogy(1 - acted, (1 - rate) / (1 - mean))
    return gain, count


def verdict(log: DiagnosedLog, checks: Sequence[Check]) -> tuple[str, str]:
    """Return whether the reward was learned, one of `LEARNED`, `NOT_LEARNED` and `NOT_TESTED`, and the same in words.

    Both are empty where the log has no predictions: then no reward is in question. A reward that is better than
    constant rates by less than chance might make of it is not learned either.
    """
    check = next(check for check in checks if check.name == NAME)
    if log.own is None:
        return "", ""
    if check.result == PASSED:
        return LEARNED, ""
    if check.statistic is None:
        return NOT_TESTED, f"{UNTESTED}: {check.text}"
    return NOT_LEARNED, f"not learned: it foretells actions no better than constant rates do, {check.text}"
