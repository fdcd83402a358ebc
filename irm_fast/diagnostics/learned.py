"""Checks that a reward was learned at all: that it varies, and foretells actions better than constant rates do."""

from __future__ import annotations

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
BETTER = 0.05  # level at which predictions count as better than constant rates


def varies(log: DiagnosedLog) -> Check:
    """Check that the predicted rewards are not all the same, as of inputs that are equal or a network that died."""
    name = "reward varies"
    if log.own is None or not len(log.names) or np.isfinite(log.own[:, 0]).sum() < 2:
        return Check(name, NOT_TESTABLE, NEEDS_PREDICTIONS, about="reward")
    reward = logit(log.own[np.isfinite(log.own[:, 0]), 0])
    spread = float(reward.std())
    constant = spread < VARIES * max(1.0, float(np.abs(reward).mean()))
    text = f"standard deviation of the reward logits {spread:.2g}"
    return Check(name, FAILED if constant else PASSED, text, spread, about="reward")


def beats_constant(log: DiagnosedLog) -> Check:
    """Check that the predicted action rates explain the actions better than one rate a signal for all rows does.

    The held-out log-likelihoods are compared in pairs, by user. Predictions get the level that suits the rows at hand,
    as constant rates do: how good they are at telling rows apart is what counts; `calibration` judges the level.
    """
    name = "better than constant rates"
    if log.own is None or log.propensity is None or not len(log.names):
        return Check(name, NOT_TESTABLE, NEEDS_PREDICTIONS, about="learning")
    gain = np.zeros(len(log.feedback))
    actions = 0
    for k in range(len(log.names)):
        rows = (log.feedback[:, k] >= 0) & np.isfinite(log.own[:, k])
        acted = log.feedback[rows, k]
        if not 0 < acted.sum() < len(acted):
            continue
        actions += int(acted.sum())
        predicted = action_rate(log.own[rows, k], log.propensity[rows, k], log.misclick[k])
        rate, mean = refit(acted, predicted, np.empty((len(acted), 0))), acted.mean()
        gain[rows] += xlogy(acted, rate / mean) + xlogy(1 - acted, (1 - rate) / (1 - mean))
    if actions < ENOUGH:
        return Check(name, TOO_FEW, f"{actions} actions in rows with predictions", about="learning")
    users = by_user(gain, log.users)
    spread = float(np.sqrt((users**2).sum()))
    p_value = float(norm.sf(users.sum() / spread)) if spread > 0 else 1.0
    mean_gain = float(gain.sum() / actions)
    said = f"log-likelihood of the actions {mean_gain:+.3f} an action beyond that of constant rates (p = {p_value:.2g})"
    result = PASSED if p_value < BETTER else FAILED if mean_gain <= 0 else TOO_FEW
    return Check(name, result, said, mean_gain, p_value, about="learning")
